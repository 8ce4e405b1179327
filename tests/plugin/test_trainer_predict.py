"""Predictions, the calculator, and several processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch
from trainer_cases import build, config, finish, rattled_slabs, run_python, write_lmdb

from escaip_fairchem.plugin.trainer.predict import PredictionSettings, as_arrays, merge_processes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "train": write_lmdb(folder / "train.lmdb", rattled_slabs(8, 0)),
        "val": write_lmdb(folder / "val.lmdb", rattled_slabs(5, 1)),
        "test": write_lmdb(folder / "test.lmdb", rattled_slabs(11, 2)),
    }


@pytest.fixture(scope="module")
def trained(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("trained")
    trainer = build(config(**data, optimizer__max_epochs=2), folder, timestamp_id="run")
    trainer.train(disable_eval_tqdm=True)
    trainer.close()
    return trainer


def results(trainer: Any) -> dict[str, np.ndarray]:
    with np.load(Path(trainer.config["cmd"]["results_dir"]) / "ocp_predictions.npz") as file:
        return dict(file)


def test_predictions_are_float32_complete_and_in_the_order_of_the_file(trained: Any) -> None:
    trained.predict(trained.test_loader, results_file="predictions", disable_tqdm=True)
    found = results(trained)
    assert {key: value.dtype for key, value in found.items() if key in ("energy", "forces")} == {
        "energy": np.float32,
        "forces": np.float32,
    }
    assert found["ids"].tolist() == [f"cu{row}_{row % 3}" for row in range(11)]
    pieces = np.split(found["forces"], found["chunk_idx"])
    slabs = rattled_slabs(11, 2)
    assert [len(piece) for piece in pieces] == [len(slab) for slab in slabs]
    assert found["energy"].shape == (11, 1)
    # structure by structure: every result belongs to its id
    with trained.swap.averaged(trained.ema):
        trained.model.eval()
        for row in (0, 2, 10):
            one = Batch.from_data_list([next(s for s in trained.test_dataset if s.sid == f"cu{row}")])
            out = trained.predict(one, per_image=False, disable_tqdm=True)
            np.testing.assert_allclose(out["forces"].numpy(), pieces[row], atol=1e-6)
            assert out["energy"].item() == pytest.approx(found["energy"][row, 0], abs=1e-5)


def test_free_atoms_and_types_as_asked_for(trained: Any) -> None:
    task, outputs = dict(trained.config["task"]), dict(trained.config["outputs"]["energy"])
    trained.config["task"].update(predict_free_atoms_only=True, prediction_dtype="float16")
    trained.config["outputs"]["energy"]["prediction_dtype"] = "float64"
    try:
        trained.predict(trained.test_loader, results_file="predictions", disable_tqdm=True)
    finally:
        trained.config["task"], trained.config["outputs"]["energy"] = task, outputs
    found = results(trained)
    assert (found["forces"].dtype, found["energy"].dtype) == (np.float16, np.float64)
    free = [
        len(slab) - (0 if not slab.constraints else len(slab.constraints[0].index)) for slab in rattled_slabs(11, 2)
    ]
    assert [len(piece) for piece in np.split(found["forces"], found["chunk_idx"])] == free
    assert free != [len(slab) for slab in rattled_slabs(11, 2)]


def test_predicting_leaves_the_training_weights(trained: Any) -> None:
    before = [parameter.clone() for parameter in trained.model.parameters()]
    trained.predict(next(iter(trained.test_loader)), per_image=False, disable_tqdm=True)
    assert all(torch.equal(a, b) for a, b in zip(before, trained.model.parameters(), strict=True))
    rows = trained.predict(trained.test_loader, disable_tqdm=True)
    assert len(rows["ids"]) == len(rows["forces"]) == 11
    trained.save_results(rows, "copied")
    assert (Path(trained.config["cmd"]["results_dir"]) / "ocp_copied.npz").is_file()


def test_only_the_samplers_repetitions_are_dropped() -> None:
    parts = [
        {"ids": ["b_0", "same_0", "b_0"], "energy": [[1.0], [0.5], [1.0]]},
        {"ids": ["same_0", "a_0", "a_0"], "energy": [[0.0], [2.0], [3.0]]},
    ]
    merged = as_arrays(merge_processes(parts, [[1, 3, 1], [0, 2, 4]], ["ids", "energy"]))
    assert merged["ids"].tolist() == ["same_0", "b_0", "a_0", "same_0", "a_0"]
    assert merged["energy"].ravel().tolist() == [0.0, 1.0, 2.0, 0.5, 3.0]
    assert merge_processes(parts, [None, None], ["ids"])["ids"] == parts[0]["ids"] + parts[1]["ids"]


def test_a_prediction_of_many_numbers_per_structure_is_kept_whole() -> None:
    settings = PredictionSettings({}, {"stress": {"level": "system"}})
    batch = Batch(natoms=torch.tensor([2, 1]), fixed=torch.zeros(3))
    rows = settings.split({"stress": torch.arange(18.0).reshape(2, 9)}, batch)
    assert as_arrays(rows)["stress"].shape == (2, 9)


_CALCULATE = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import escaip_fairchem
from fairchem.core.common.relaxation.ase_utils import OCPCalculator
from trainer_cases import rattled_slabs
results = {}
for name in ("checkpoint", "best_checkpoint"):
    calculator = OCPCalculator(checkpoint_path=f"{sys.argv[2]}/{name}.pt", cpu=True)
    slab = rattled_slabs(11, 2)[int(sys.argv[3])]
    slab.calc = calculator
    results[name] = [slab.get_potential_energy(), slab.get_forces(apply_constraint=False).tolist()]
    assert type(calculator.trainer) is escaip_fairchem.EScAIPForcesTrainer
print("RESULT" + json.dumps([results, os.listdir(".")]))
"""


@pytest.mark.end_to_end
def test_the_calculator_in_a_fresh_process_agrees_with_predict_and_writes_nothing(trained: Any, tmp_path: Path) -> None:
    """From checkpoint.pt too, which holds raw weights and their average: the average is used."""
    trained.predict(trained.test_loader, results_file="predictions", disable_tqdm=True)
    found = results(trained)
    output = finish(run_python(_CALCULATE, trained.config["cmd"]["checkpoint_dir"], 3, folder=tmp_path))
    calculated, files = json.loads(output.split("RESULT")[1])
    energy, forces = calculated["checkpoint"]
    assert energy == pytest.approx(float(found["energy"][3, 0]), abs=1e-6, rel=1e-6)
    np.testing.assert_allclose(forces, np.split(found["forces"], found["chunk_idx"])[3], atol=1e-6)
    assert files == []


_TWO_PROCESSES = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import escaip_fairchem
import torch.distributed as dist
from trainer_cases import build, config
from escaip_fairchem.errors import CheckpointError, NonFiniteError, RunFolderError
from pathlib import Path
rank = int(os.environ["RANK"])
folder = Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
paths = {name: Path(sys.argv[3]) / f"{name}.lmdb" for name in ("train", "val", "test")}
settings = config(**paths, optimizer__max_epochs=2, optimizer__batch_size=1)
trainer = build(settings, folder)
try:
    build(settings, folder, timestamp_id=trainer.timestamp_id)
    refused = ""
except RunFolderError as error:
    refused = str(error)
trainer.train(disable_eval_tqdm=True)
trainer.predict(trainer.test_loader, results_file="predictions", disable_tqdm=True)
metrics = trainer.validate(disable_tqdm=True)
resumed = build({**settings, "optimizer": {**settings["optimizer"], "max_epochs": 3}}, folder)
resumed.load_checkpoint(f"{trainer.config['cmd']['checkpoint_dir']}/checkpoint.pt")
own = resumed._loaded_generators is not None
settings["model"] = {"name": "trainer_cases.TinyModel"}
stopped = ""
bad = build(settings, folder)
if rank == 1:
    bad.model.module.push.register_forward_hook(lambda module, inputs, out: out * float("nan"))
try:
    bad.train(disable_eval_tqdm=True)
except NonFiniteError as error:
    stopped = str(error)
full = build({**settings, "print_every": 100}, folder)
full.config["cmd"]["checkpoint_dir"] = "/dev/null"
unwritten = ""
try:
    full.train(disable_eval_tqdm=True)
except CheckpointError as error:
    unwritten = str(error)
print("RESULT" + json.dumps({
    "unwritten": unwritten, "name": trainer.timestamp_id, "refused": refused, "stopped": stopped, "own": own,
    "loss": metrics["loss"]["metric"], "numel": metrics["energy_mae"]["numel"],
    "weights": sum(p.double().sum().item() for p in trainer.model.parameters()),
}), flush=True)
dist.barrier()
"""


@pytest.mark.end_to_end
def test_two_processes_train_predict_and_stop_together(data: dict[str, Path], tmp_path: Path) -> None:
    processes = [
        run_python(
            _TWO_PROCESSES, tmp_path, data["train"].parent, folder=tmp_path,
            environment={"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(2)
    ]  # fmt: skip
    first, second = (json.loads(finish(process).split("RESULT")[1]) for process in processes)
    for key in ("name", "loss", "weights", "refused", "stopped", "unwritten"):
        assert first[key] == second[key]
    assert "/dev/null/checkpoint.pt: cannot be written (Not a directory)" in first["unwritten"]
    assert "in use by process" in first["refused"]
    assert "rank 1: step 1" in first["stopped"]
    assert "the prediction 'forces' is not finite for sid 'cu" in first["stopped"]
    assert first["own"]
    assert second["own"]
    assert first["numel"] == 5  # as many as there are, though they do not divide by two
    with np.load(tmp_path / "results" / first["name"] / "ocp_predictions.npz") as found:
        assert found["ids"].tolist() == [f"cu{row}_{row % 3}" for row in range(11)]
        assert len(np.split(found["forces"], found["chunk_idx"])) == 11
