"""Several processes against one: gradients, metrics, samples, and processes that have little or nothing to do."""

from __future__ import annotations

import json
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainer_cases import build, config, finish, rattled_slabs, run_python, write_lmdb

import escaip_fairchem  # noqa: F401
from escaip_fairchem.plugin.trainer.loaders import DividedBatchSampler

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each data set; the training set's numbers of atoms are known."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("train", "val", "single", "mixed"):
        (folder / name).mkdir()
    slabs = rattled_slabs(16, 0)
    write_lmdb(folder / "train/data.lmdb", slabs)
    np.savez(folder / "train/metadata.npz", natoms=[len(slab) for slab in slabs])
    for name, count in (("val", 7), ("single", 1)):
        write_lmdb(folder / name / "data.lmdb", rattled_slabs(count, 1))
    mixed = rattled_slabs(8, 2)
    for number in (0, 3, 5):  # single atoms among them
        atom = mixed[number][:1]
        atom.calc = mixed[number].calc.__class__()
        mixed[number] = atom
    write_lmdb(folder / "mixed/data.lmdb", mixed)
    return folder


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs, for NCCL")),
]


def settings(data: Path, train: str = "train", val: str = "val", **changes: Any) -> dict[str, Any]:
    changes = {"model__dropout": 0.0, "print_every": 100, "optimizer__ema_decay": None, **changes}
    return config(data / train / "data.lmdb", data / val / "data.lmdb", **changes)


_RANK = """
import json, os, sys, time
sys.path.insert(0, sys.argv[1])
import trainer_cases
import torch
from pathlib import Path
from fairchem.core.common import distutils
rank, count, port, settings = int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], json.loads(sys.argv[6])
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
if not settings["cpu"]:
    torch.cuda.set_device(rank)
    settings["local_rank"] = rank
torch.distributed.init_process_group("gloo" if settings["cpu"] else "nccl", rank=rank, world_size=count)
trainer = trainer_cases.build(settings, Path(sys.argv[2]), timestamp_id="run")
exec(sys.argv[7])
print(json.dumps(result))
time.sleep(0.3)
torch.distributed.destroy_process_group()
"""


def on_several(count: int, settings: dict[str, Any], code: str, folder: Path) -> list[Any]:
    """Run a piece of code, which has ``trainer`` and sets ``result``, on each of several processes."""
    folder.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [[folder, rank, count, port, json.dumps(settings), code] for rank in range(count)]
    running = [run_python(_RANK, *arguments, folder=folder) for arguments in words]
    return [json.loads(finish(process).splitlines()[-1]) for process in running]


def on_two(settings: dict[str, Any], code: str, folder: Path) -> list[Any]:
    return on_several(2, settings, code, folder)


_GRADIENTS = """
trainer.train_sampler.set_epoch_and_start_iteration(0, 0)
batch = next(iter(trainer.train_loader))
trainer.model.train()
losses = trainer.objective(trainer._forward(batch), batch, trainer.normalize_label)
trainer.compute_gradients(losses.total)
result = [batch.sid, {name.removeprefix("module."): parameter.grad.tolist()
                      for name, parameter in trainer.model.named_parameters()}]
"""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("balancing", [None, "atoms"])
def test_gradients_are_those_of_one_process_with_both_batches(
    data: Path, tmp_path: Path, balancing: str | None, device: str
):
    """Structures differ in size, and so do the batches of the two processes."""
    changes = {
        "optimizer__batch_size": 3, "optimizer__load_balancing": balancing, "optimizer__clip_grad_norm": None,
        "cpu": device == "cpu",
    }  # fmt: skip
    folder = data
    if balancing is None:  # fairchem balances wherever the numbers of atoms are known
        folder = tmp_path / "data"
        for name in ("train", "val"):
            (folder / name).mkdir(parents=True)
            (folder / name / "data.lmdb").write_bytes((data / name / "data.lmdb").read_bytes())
    (rows, first), (other_rows, second) = on_two(settings(folder, **changes), _GRADIENTS, tmp_path)
    assert first == second
    assert not set(rows) & set(other_rows)
    alone = build(settings(folder, **{**changes, "optimizer__load_balancing": None}), tmp_path)
    samples = {sample.sid: sample for sample in alone.train_dataset}
    batch = alone.train_loader.collate_fn([samples[sid] for sid in (*rows, *other_rows)])
    losses = alone.objective(alone._forward(batch), batch, alone.normalize_label)
    alone.compute_gradients(losses.total)
    alone.close()
    for name, parameter in alone.model.named_parameters():
        expected = parameter.grad.cpu()
        error = (torch.tensor(first[name]) - expected).abs().max() / expected.square().mean().sqrt().clamp_min(1e-12)
        assert error < 1e-5, name


_VALIDATION = """
metrics = trainer.validate(disable_tqdm=True)
result = {name: [entry["metric"], entry["numel"]] for name, entry in metrics.items()}
"""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("val", ["val", "single", "mixed"])
def test_validation_metrics_are_those_of_one_process(data: Path, tmp_path: Path, val: str, device: str):
    """Of 7 structures, of one, which leaves a process with nothing, and with single atoms among them."""
    changed = settings(data, val=val, cpu=device == "cpu")
    one = build(changed, tmp_path / "one")
    expected = {name: [entry["metric"], entry["numel"]] for name, entry in one.validate(disable_tqdm=True).items()}
    one.close()
    first, second = on_two(changed, _VALIDATION, tmp_path)
    assert first == second
    assert first.keys() == expected.keys()
    for name, (value, count) in expected.items():
        assert first[name][0] == pytest.approx(value, rel=1e-6, abs=1e-7), name  # a cosine is a sum of ± 1
        assert first[name][1] == count, name


_PREDICTION = """
trainer.predict(trainer.val_loader, results_file="predictions", disable_tqdm=True)
result = trainer.config["cmd"]["results_dir"]
"""


@pytest.mark.parametrize(("val", "count"), [("val", 7), ("single", 1)])
def test_predictions_are_one_per_structure(data: Path, tmp_path: Path, val: str, count: int):
    folder, _ = on_two(settings(data, val=val), _PREDICTION, tmp_path)
    with np.load(Path(folder) / "ocp_predictions.npz") as found:
        assert found["ids"].tolist() == [f"cu{row}_{row % 3}" for row in range(count)]
        assert len(found["energy"]) == count


_EPOCHS = """
result = []
for epoch in (0, 1):
    trainer.train_sampler.set_epoch_and_start_iteration(epoch, 0)
    result.append([sid for batch in trainer.train_loader for sid in batch.sid])
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_has_every_sample_once(data: Path, tmp_path: Path, workers: int):
    both = on_two(settings(data, optimizer__batch_size=3, optimizer__num_workers=workers), _EPOCHS, tmp_path)
    for epoch in (0, 1):
        assert Counter(both[0][epoch] + both[1][epoch]) == Counter(f"cu{row}" for row in range(16))
    assert both[0][0] != both[0][1]


def test_samples_that_do_not_divide_are_repeated_and_that_is_said(data: Path, tmp_path: Path):
    code = "import logging, io; stream = io.StringIO(); logging.getLogger().setLevel(20)\n"
    code += "logging.getLogger().addHandler(logging.StreamHandler(stream))\n"
    code += "trainer.close(); trainer = trainer_cases.build(settings, Path(sys.argv[2]) / 'again')\n" + _EPOCHS
    code += "result = [result[0], stream.getvalue()]"
    (first, said), (second, silent) = on_two(settings(data, train="val", optimizer__batch_size=2), code, tmp_path)
    counts = Counter(first + second)
    assert set(counts) == {f"cu{row}" for row in range(7)}
    assert sorted(counts.values()) == [1] * 6 + [2]
    assert "7 structures do not divide by 2 processes; 1 of them" in said
    assert "do not divide" not in silent


_TRAINING = """
trainer.train(disable_eval_tqdm=True)
result = [trainer.step, sum(parameter.double().sum().item() for parameter in trainer.model.parameters())]
"""


def test_single_atoms_and_energies_alone_hang_nothing(data: Path, tmp_path: Path):
    """Batches of one structure, which is one atom for one process and a slab for the other."""
    lonely = settings(data, train="mixed", val="single", optimizer__batch_size=1)
    (steps, weights), (other_steps, other_weights) = on_two(lonely, _TRAINING, tmp_path)
    assert steps == other_steps == 8
    assert weights == other_weights
    energies = {**lonely, "loss_functions": lonely["loss_functions"][:1], "outputs": {"energy": {"level": "system"}}}
    energies["model"] = {"name": "trainer_cases.EnergyModel"}
    del energies["dataset"]["train"]["transforms"]["normalizer"]["forces"]
    (steps, weights), (_, other_weights) = on_two(energies, _TRAINING, tmp_path / "energies")
    assert (steps, weights) == (8, other_weights)


_STOPPED_AND_CONTINUED = """
import signal
from escaip_fairchem.plugin.trainer.stops import StoppedFromOutsideError
torch.manual_seed(rank)
update = trainer.update_weights
def update_and_ask():
    update()
    if trainer.step + 1 == STOP:
        trainer.stops.ask(signal.SIGUSR2)
trainer.update_weights = update_and_ask
latest = Path(sys.argv[2]) / "checkpoints" / "run" / "checkpoint.pt"
if latest.is_file():
    trainer.load_checkpoint(str(latest))
try:
    trainer.train(disable_eval_tqdm=True)
except StoppedFromOutsideError:
    pass
result = [trainer.step, [parameter.tolist() for parameter in trainer.model.parameters()]]
"""


def test_three_processes_continue_bit_for_bit(data: Path, tmp_path: Path):
    """Sums of three numbers depend on their order, which torch chooses anew after the first step of a process."""
    changes = {"optimizer__batch_size": 2, "optimizer__max_epochs": 3, "optimizer__checkpoint_every": 100}
    three = settings(data, **changes, model__dropout=0.2)
    undisturbed = _STOPPED_AND_CONTINUED.replace("STOP", "0")
    whole = on_several(3, three, undisturbed, tmp_path / "whole")
    stopped = on_several(3, three, _STOPPED_AND_CONTINUED.replace("STOP", "4"), tmp_path / "parts")
    assert {step for step, _ in stopped} == {5}
    assert on_several(3, three, undisturbed, tmp_path / "parts") == whole
    assert whole[0][0] == 9
    assert whole[0] == whole[1] == whole[2]


_SETTLED = """
from escaip_fairchem.plugin.trainer.summation_order import settle_summation_order
def state():
    buffers = [buffer.tolist() for buffer in trainer.model.buffers()]
    gradients = [parameter.grad is not None for parameter in trainer.model.parameters()]
    return [torch.rand(1).item(), torch.get_rng_state().tolist(), buffers, gradients]
trainer.train_sampler.set_epoch_and_start_iteration(0, 0)
batch = next(iter(trainer.train_loader))
trainer.model.train()
positions = batch.pos.clone()
start = torch.get_rng_state()
before = state()
torch.set_rng_state(start)
settle_summation_order(trainer, batch)
result = [before, state(), bool((positions == batch.pos).all()), batch.pos.requires_grad,
          bool(trainer.model.reducer._rebuild_buckets()), sum(buffer.item() for buffer in trainer.model.buffers())]
"""


def test_settling_the_order_leaves_everything_as_it_was(data: Path, tmp_path: Path):
    """Random numbers that dropout draws, buffers that count passes, and a batch that the model moves."""
    three = settings(data, model__dropout=0.2, optimizer__batch_size=2)
    three["model"]["name"] = "trainer_cases.CountingModel"
    for before, after, is_unmoved, needs_gradient, is_laid_out_next, count in on_several(3, three, _SETTLED, tmp_path):
        assert after == before
        assert is_unmoved
        assert not needs_gradient
        assert is_laid_out_next  # as the first pass that counts begins
        assert count == 0


@pytest.mark.parametrize(("rows", "batch", "processes"), [(7, 2, 2), (1, 4, 3), (0, 4, 2), (9, 3, 3), (10, 1, 4)])
def test_rows_are_divided_once(rows: int, batch: int, processes: int):
    parts = [
        DividedBatchSampler(range(rows), batch_size=batch, processes=processes, rank=rank) for rank in range(processes)
    ]
    assert sorted(row for part in parts for one in part for row in one) == list(range(rows))
    for part in parts:
        assert len(list(part)) == len(part)
        assert all(1 <= len(one) <= batch for one in part)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_open_files_of_their_own(data: Path, tmp_path: Path, method: str):
    """Whichever way processes are started; spawned ones import nothing of what this one has imported."""
    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method(method, force=True)
    try:
        trainer = build(settings(data, optimizer__num_workers=2, optimizer__batch_size=2), tmp_path)
        rows = [sid for batch in trainer.train_loader for sid in batch.sid]
        again = [sid for batch in trainer.train_loader for sid in batch.sid]
        trainer.close()
    finally:
        torch.multiprocessing.set_start_method(before, force=True)
    assert rows == again
    assert sorted(rows) == sorted(f"cu{row}" for row in range(16))
