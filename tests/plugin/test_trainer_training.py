"""Training steps: losses, precision, stops, waiting for the device."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
import trainer_cases
from fairchem.core.common.registry import registry
from fairchem.core.trainers import OCPTrainer
from torch.utils._python_dispatch import TorchDispatchMode
from trainer_cases import RecordingLogger, TinyModel, build, config, rattled_slabs, write_lmdb

import escaip_fairchem
from escaip_fairchem.errors import ConfigError, DataError, NonFiniteError

SCHNET = {
    "name": "fairchem.core.models.schnet.SchNetWrap",
    "hidden_channels": 16,
    "num_filters": 16,
    "num_interactions": 1,
    "num_gaussians": 8,
    "cutoff": 4.0,
    "otf_graph": True,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return write_lmdb(folder / "train.lmdb", rattled_slabs(18, 0)), write_lmdb(folder / "val.lmdb", rattled_slabs(6, 1))


ESCAIP = {
    "name": "escaip_fairchem.EScAIP",
    "hidden_size": 16,
    "num_layers": 1,
    "atten_num_heads": 2,
    "max_radius": 4.0,
    "max_neighbors": 6,
    "edge_distance_expansion_size": 12,
    "edge_distance_embedding_size": 8,
    "node_direction_expansion_size": 4,
    "node_direction_embedding_size": 4,
    "atom_embedding_size": 4,
    "otf_graph": True,
}
DIRECT = {"heads": {"energy": None, "forces": None}, "regress_forces": True, "direct_force": True}
CONSERVATIVE = {"heads": {"energy_forces": {}}, "regress_forces": True, "direct_force": False}


@pytest.mark.parametrize("heads", [DIRECT, CONSERVATIVE], ids=["direct", "conservative"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_escaip_trains_validates_and_resumes(
    data: tuple[Path, Path], tmp_path: Path, heads: dict[str, Any], precision: str
) -> None:
    settings = config(*data, data[1], model={**ESCAIP, **heads}, optimizer__amp_dtype=precision)
    settings["optimizer"].update(max_epochs=2, checkpoint_every=7)
    settings["dataset"]["train"]["transforms"]["normalizer"] = {
        "energy": {"mean": 3.0, "stdev": 0.5},
        "forces": {"mean": 0, "stdev": 0.5},
    }
    whole = build(settings, tmp_path, timestamp_id="whole")
    whole.train(disable_eval_tqdm=True)
    losses = whole.logger.losses()
    groups = whole.optimizer.param_groups
    assert all(parameter.ndim > 1 for parameter in groups[1]["params"])
    assert len(groups[0]["params"]) + len(groups[1]["params"]) == len(list(whole.model.parameters()))
    trainer = build(settings, tmp_path, timestamp_id="part")
    RecordingLogger.stop_at = 8
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.train(disable_eval_tqdm=True)
    finally:
        RecordingLogger.stop_at = None
    trainer.close()
    resumed = build(settings, tmp_path)
    resumed.load_checkpoint(str(tmp_path / "checkpoints/part/checkpoint.pt"))
    resumed.train(disable_eval_tqdm=True)
    assert resumed.logger.losses() == {step: losses[step] for step in (8, 9, 10)}
    assert sorted(resumed.logger.losses("val")) == [10]


def test_the_trainer_is_registered_and_found_by_its_path() -> None:
    assert registry.get_trainer_class("escaip_forces") is escaip_fairchem.EScAIPForcesTrainer
    assert registry.get_trainer_class("escaip_fairchem.EScAIPForcesTrainer") is escaip_fairchem.EScAIPForcesTrainer


@pytest.mark.parametrize("free_only", [True, False])
def test_losses_and_metrics_are_fairchems(data: tuple[Path, Path], tmp_path: Path, free_only: bool) -> None:
    settings = config(*data, model__dropout=0.0)
    settings["outputs"]["forces"] = {"level": "atom", "train_on_free_atoms": free_only, "eval_on_free_atoms": free_only}
    settings["loss_functions"] = [
        {"energy": {"fn": "mae", "coefficient": 2}},
        {"forces": {"fn": "l2mae", "coefficient": 100}},
        {"forces": {"fn": "mse", "coefficient": 3, "reduction": "sum"}},
        {"energy": {"fn": "per_atom_mae", "coefficient": 5}},
    ]
    metrics = {"energy": ["mae", "mse"]}
    if free_only:  # fairchem's fails an assertion otherwise
        metrics["misc"] = ["energy_forces_within_threshold"]
    metrics["forces"] = ["mae", "forcesx_mae", "cosine_similarity", "magnitude_error"]
    settings["evaluation_metrics"] = {"metrics": metrics, "primary_metric": "forces_mae"}
    ours = build(settings, tmp_path)
    settings["optimizer"]["scheduler"] = "Null"
    settings["optimizer"]["num_workers"] = 0
    theirs = build(settings, tmp_path, OCPTrainer)
    theirs.model.load_state_dict(ours.model.state_dict())
    batch = next(iter(ours.train_loader))
    out = ours._forward(batch)
    assert ours._compute_loss(out, batch).item() == pytest.approx(
        theirs._compute_loss(theirs._forward(batch), batch).item()
    )
    expected = theirs._compute_metrics(out, batch, theirs.evaluator, {})
    found = ours._compute_metrics(out, batch, ours.evaluator, {})
    assert {name: value["metric"] for name, value in found.items()} == pytest.approx(
        {name: value["metric"] for name, value in expected.items()}, rel=1e-5
    )


def test_training_lowers_the_loss_of_a_stock_model_in_every_precision(data: tuple[Path, Path], tmp_path: Path) -> None:
    """And half precision begins close to single precision, while losses and metrics are float32.

    Later steps differ: fp16's loss scaling skips a few until the scale fits.
    """
    curves = {}
    for precision in ("fp32", "bf16", "fp16"):
        settings = config(
            *data,
            model=SCHNET,
            optimizer__amp_dtype=precision,
            optimizer__max_epochs=4,
        )
        trainer = build(settings, tmp_path)
        batch = next(iter(trainer.train_loader))
        assert {value.dtype for value in trainer._forward(batch).values()} == {torch.float32}
        trainer.train(disable_eval_tqdm=True)
        losses = trainer.logger.losses()
        curves[precision] = [losses[step] for step in sorted(losses)]
        assert (trainer.scaler is not None) == (precision == "fp16")
    print(curves)
    for precision, curve in curves.items():
        assert sum(curve[-5:]) < 0.8 * sum(curve[:5])
        assert curve[0] == pytest.approx(curves["fp32"][0], rel=0.01)
        assert (curve == curves["fp32"]) == (precision == "fp32")


class Dtypes(TinyModel):
    """Remembers in what type it computed."""

    seen: list[tuple[bool, torch.dtype]] = []

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        result = super().forward(data)
        Dtypes.seen.append((self.training, result["forces"].dtype))
        return result


def test_precision_applies_to_training_validation_and_prediction(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_cases, "Dtypes", Dtypes, raising=False)
    settings = config(
        *data, data[1], model__name="trainer_cases.Dtypes", optimizer__amp_dtype="bf16", optimizer__max_epochs=1
    )
    trainer = build(settings, tmp_path)
    Dtypes.seen.clear()
    trainer.train(disable_eval_tqdm=True)
    trainer.predict(trainer.test_loader, disable_tqdm=True)
    assert {(True, torch.bfloat16), (False, torch.bfloat16)} == set(Dtypes.seen)
    trainer.scaler = None  # what OCPCalculator does with disable_amp
    Dtypes.seen.clear()
    trainer.predict(trainer.test_loader, disable_tqdm=True)
    assert set(Dtypes.seen) == {(False, torch.float32)}


class _Waits(TorchDispatchMode):
    """Counts what makes the host wait for a GPU: reading numbers, and shapes that depend on numbers."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = function.name().startswith("aten::index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        self.count += by_mask or any(name in function.name() for name in self.names)
        return function(*args, **(kwargs or {}))


WAITING_MODELS = {
    "model without neighbours": ({}, 0),
    # On the CPU, where that costs nothing, natoms is compared with the positions once more.
    "direct forces": ({"model": {**ESCAIP, **DIRECT}}, 1),
    "conservative forces": ({"model": {**ESCAIP, **CONSERVATIVE}}, 1),
    "plain execution": ({"model": {**ESCAIP, **DIRECT, "execution": "plain"}}, 1),
}


@pytest.mark.parametrize("case", WAITING_MODELS)
@pytest.mark.parametrize("workers", [0, 1])
def test_steps_between_reports_do_not_wait_for_the_device(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, workers: int
) -> None:
    """On the CPU the guard reads its flags at every step; here it behaves as on CUDA. The loaders search neighbours."""
    from escaip_fairchem.plugin.trainer.training import TrainingLoop

    changes, of_the_cpu = WAITING_MODELS[case]
    settings = config(
        *data,
        print_every=4,
        optimizer__optimizer="SGD",
        optimizer__max_epochs=2,
        optimizer__eval_every=100,
        optimizer__num_workers=workers,
        optimizer__lr_initial=1e-4,
        **changes,
    )
    settings["dataset"]["train"]["transforms"]["normalizer"] = {
        "energy": {"mean": 3.0, "stdev": 0.5},
        "forces": {"mean": 0, "stdev": 0.5},
    }
    trainer = build(settings, tmp_path)
    cuda_like = TrainingLoop._waits_anyway
    monkeypatch.setattr(
        TrainingLoop,
        "_waits_anyway",
        lambda loop, step: step % loop.print_every == 0 if step else cuda_like(loop, step),
    )
    waits: dict[int, int] = {}
    step = TrainingLoop._step

    def counted(loop: Any, batch: Any, epoch: float) -> None:
        with _Waits() as mode:
            step(loop, batch, epoch)
        waits[loop.trainer.step] = mode.count

    monkeypatch.setattr(TrainingLoop, "_step", counted)
    trainer.train(disable_eval_tqdm=True)
    print(waits)
    assert [waits[number] for number in (1, 2, 3, 5, 6, 7, 9, 10)] == [of_the_cpu] * 8
    assert of_the_cpu < waits[4] <= 40
    assert waits[8] == waits[4]


def with_label(path: Path, source: Path, row: int, key: str, value: float) -> Path:
    """A copy of a data set with one label spoiled."""
    with lmdb.open(str(source), subdir=False, readonly=True, lock=False) as old:
        items = {bytes(name): bytes(value) for name, value in old.begin().cursor()}
    sample = pickle.loads(items[f"{row}".encode()])
    sample[key] = torch.full_like(torch.as_tensor(sample[key]), value) if key == "forces" else value
    items[f"{row}".encode()] = pickle.dumps(sample)
    with lmdb.open(str(path), map_size=2**26, subdir=False) as new, new.begin(write=True) as transaction:
        for name, item in items.items():
            transaction.put(name, item)
    return path


@pytest.mark.parametrize("key", ["energy", "forces"])
def test_a_label_that_is_not_finite_stops_with_its_sample(data: tuple[Path, Path], tmp_path: Path, key: str) -> None:
    spoiled = with_label(tmp_path / "bad.lmdb", data[0], 7, key, math.nan)
    trainer = build(config(spoiled, data[1], optimizer__checkpoint_every=1), tmp_path, timestamp_id="run")
    with pytest.raises(
        NonFiniteError, match=rf"step \d+ \(epoch .*the label '{key}' is not finite for sid 'cu7', fid 1"
    ):
        trainer.train(disable_eval_tqdm=True)
    for path in (tmp_path / "checkpoints/run").glob("checkpoint.pt"):
        assert all(value.isfinite().all() for value in torch.load(path, weights_only=True)["state_dict"].values())
    trainer = build(config(data[0], spoiled), tmp_path)
    with pytest.raises(NonFiniteError, match=f"the label '{key}' is not finite for sid 'cu7', fid 1"):
        trainer.validate(disable_tqdm=True)


class Poisoned(TinyModel):
    """Fails for one sample, in the way that is asked for."""

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        result = super().forward(data)
        rows = [row for row, sid in enumerate(data.sid) if sid == "cu5"]
        for row in rows:
            atoms = data.batch == row
            if self.poison == "forces":
                result["forces"] = result["forces"].masked_fill(atoms.unsqueeze(1), math.nan)
            if self.poison == "gradient":
                # sqrt has an infinite slope at 0, and 0 · ∞ is NaN: the value is fine, the gradient is not.
                result["energy"] = result["energy"] + (result["energy"] * 0).abs().sqrt()
        return result


@pytest.fixture
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_cases, "Poisoned", Poisoned, raising=False)


@pytest.mark.usefixtures("_poisoned")
def test_predictions_and_gradients_that_are_not_finite_stop(data: tuple[Path, Path], tmp_path: Path) -> None:
    for poison, message in (
        ("forces", "the prediction 'forces' is not finite for sid 'cu5', fid 2"),
        ("gradient", r"the gradient is not finite \(of .*energy\.weight.*Batch: .*sid 'cu5'"),
    ):
        settings = config(*data, model={"name": "trainer_cases.Poisoned", "poison": poison})
        trainer = build(settings, tmp_path)
        with pytest.raises(NonFiniteError, match=message):
            trainer.train(disable_eval_tqdm=True)
        assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    settings = config(*data, data[1], model={"name": "trainer_cases.Poisoned", "poison": "forces"})
    trainer = build(settings, tmp_path)
    with pytest.raises(NonFiniteError, match="prediction 'forces' is not finite for sid 'cu5'"):
        trainer.predict(trainer.test_loader, disable_tqdm=True)


def test_missing_data_and_labels_are_named(data: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.train\.src: .*nowhere\.lmdb does not exist"):
        build(config(tmp_path / "nowhere.lmdb"), tmp_path)
    settings = config(*data)
    settings["outputs"]["stress"] = {}
    trainer = build(settings, tmp_path)
    with pytest.raises(ConfigError, match=r"outputs\.stress: the model returns no 'stress'"):
        trainer.train(disable_eval_tqdm=True)
    settings = config(*data, dataset__train__key_mapping={"energy": "total"})
    trainer = build(settings, tmp_path)
    with pytest.raises(DataError, match=r"the data has no 'energy'.*key_mapping"):
        trainer.train(disable_eval_tqdm=True)


def test_little_configuration_is_enough(data: tuple[Path, Path], tmp_path: Path) -> None:
    settings = config(*data)
    settings["outputs"] = {"energy": None, "forces": {}}
    settings["optimizer"] = {"lr_initial": 0.01, "max_epochs": 1, "batch_size": 6}
    settings["seed"] = None
    trainer = build(settings, tmp_path)
    trainer.train(disable_eval_tqdm=True)
    assert trainer.primary_metric == "energy_forces_within_threshold"
    assert sorted(trainer.logger.losses()) == [1, 2, 3]
    assert {"energy_mae", "forces_mae", "lr", "epoch", "loss_forces"} <= trainer.logger.values[("train", 3)].keys()
    assert RecordingLogger.stop_at is None


def test_normalizers_are_fitted_once_and_not_for_a_checkpoint(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[int] = []
    fit = OCPTrainer.load_references_and_normalizers

    def counted(trainer: Any) -> None:
        fits.append(1)
        fit(trainer)

    monkeypatch.setattr(OCPTrainer, "load_references_and_normalizers", counted)
    settings = config(*data, optimizer__max_epochs=1)
    settings["dataset"]["train"]["transforms"] = {
        "element_references": {"fit": {"targets": ["energy"], "batch_size": 4, "num_batches": 3, "driver": None}},
        "normalizer": {
            "fit": {"targets": {"energy": None, "forces": {"mean": 0.0}}, "batch_size": 4, "num_batches": 3}
        },
    }
    first = build(settings, tmp_path, timestamp_id="first")
    assert fits == []
    first.train(disable_eval_tqdm=True)
    assert fits == [1]
    assert set(first.normalizers) == {"energy", "forces"}
    assert first.normalizers["forces"].rmsd > 0
    again = build(settings, tmp_path)
    again.load_checkpoint(str(tmp_path / "checkpoints/first/checkpoint.pt"))
    metrics = again.validate(disable_tqdm=True)
    assert fits == [1]
    assert torch.equal(again.normalizers["forces"].rmsd, first.normalizers["forces"].rmsd)
    assert torch.equal(again.elementrefs["energy"].element_references, first.elementrefs["energy"].element_references)
    assert metrics["loss"]["metric"] == first.logger.values[("val", 5)]["loss"]


def test_validation_uses_the_average_and_exact_means(data: tuple[Path, Path], tmp_path: Path) -> None:
    settings = config(*data, optimizer__max_epochs=1, optimizer__eval_batch_size=4)
    trainer = build(settings, tmp_path, timestamp_id="run")
    trainer.train(disable_eval_tqdm=True)
    raw = [parameter.clone() for parameter in trainer.model.parameters()]
    found = trainer.validate(disable_tqdm=True)
    assert all(torch.equal(a, b) for a, b in zip(raw, trainer.model.parameters(), strict=True))
    trainer.ema.copy_to()
    trainer.model.eval()
    errors: list[torch.Tensor] = []
    for batch in trainer.val_loader:
        with torch.no_grad():
            forces = trainer._forward(batch)["forces"] * 0.5
        free = batch.fixed == 0
        errors.append((forces[free] - batch.forces[free]).abs().flatten())
    assert found["forces_mae"]["metric"] == pytest.approx(torch.cat(errors).mean().item(), rel=1e-6)
    # without ema_decay in the configuration the checkpoint's average is used all the same
    del settings["optimizer"]["ema_decay"]
    other = build(settings, tmp_path)
    other.load_checkpoint(str(tmp_path / "checkpoints/run/checkpoint.pt"))
    assert other.validate(disable_tqdm=True)["forces_mae"] == found["forces_mae"]


def test_validation_stops_soon_after_a_value_that_is_not_finite(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = next(iter(build(config(*data, optimizer__eval_batch_size=1), tmp_path).val_loader)).sid[0]
    spoiled = with_label(tmp_path / "bad.lmdb", data[1], int(first.removeprefix("cu")), "energy", math.nan)
    trainer = build(config(data[0], spoiled, optimizer__eval_batch_size=1), tmp_path)
    monkeypatch.setattr("escaip_fairchem.plugin.trainer.finite.WINDOW", 3)
    batches: list[int] = []
    evaluate = trainer._evaluate_batch
    trainer._evaluate_batch = lambda *args: batches.append(1) or evaluate(*args)
    with pytest.raises(NonFiniteError, match=f"'energy' is not finite for sid '{first}'"):
        trainer.validate(disable_tqdm=True)
    assert len(batches) == 3 < len(trainer.val_loader)


@pytest.mark.parametrize(("terminal", "rank", "shown"), [(True, 0, True), (False, 0, False), (True, 1, False)])
def test_bars_of_evaluations_are_shown_to_people_only(
    data: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
    rank: int,
    shown: bool,
) -> None:
    trainer = build(config(*data), tmp_path)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setattr("fairchem.core.common.distutils.is_master", lambda: rank == 0)
    trainer.validate()
    assert ("%|" in capsys.readouterr().err) == shown


def test_references_per_element_from_a_file_are_taken_off_labels_and_put_back(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    """Also from the files that ``lin_ref`` names."""
    np.savez(tmp_path / "refs.npz", coeff=np.arange(100.0))
    trainer = build(
        config(*data, dataset__train__transforms__element_references={"energy": {"file": str(tmp_path / "refs.npz")}}),
        tmp_path,
    )
    batch = next(iter(trainer.train_loader))
    expected = (batch.energy - 29 * batch.natoms - 3.0) / 2.0
    assert torch.allclose(trainer.normalize_label("energy", batch.energy, batch).float(), expected.float(), atol=1e-4)
    predicted = trainer._denorm_preds("energy", expected.reshape(-1, 1).float(), batch)
    assert torch.allclose(predicted.flatten().float(), batch.energy.float(), atol=1e-3)


def test_metrics_are_told_the_atoms_that_forces_have_rows_for(data: tuple[Path, Path], tmp_path: Path) -> None:
    trainer = build(config(*data), tmp_path)
    batch = next(iter(trainer.train_loader))
    batch.other = batch.forces.clone()
    out = trainer._forward(batch)
    told: list[torch.Tensor] = []

    class Evaluator:
        def eval(self, pred: Any, target: Any, prev_metrics: Any) -> dict[str, Any]:
            told.append(target["natoms"])
            return {}

    free_B = torch.stack([(batch.fixed[batch.batch == row] == 0).sum() for row in range(len(batch.natoms))])
    assert not torch.equal(free_B, batch.natoms)
    for free_forces, free_others in ((True, False), (False, True)):
        trainer.output_targets["forces"]["eval_on_free_atoms"] = free_forces
        trainer.output_targets["other"] = {"level": "atom", "eval_on_free_atoms": free_others}
        trainer._compute_metrics({**out, "other": out["forces"]}, batch, Evaluator())
    assert told[0].tolist() == free_B.tolist()
    assert told[1].tolist() == batch.natoms.tolist()


def test_a_sample_that_contradicts_itself_is_named_where_it_is_loaded(data: tuple[Path, Path], tmp_path: Path) -> None:
    spoiled = with_label(tmp_path / "bad.lmdb", data[0], 4, "natoms", 5)
    trainer = build(config(spoiled, data[1]), tmp_path)
    with pytest.raises(DataError, match="sid 'cu4': natoms is 5, but there are 4 positions"):
        list(trainer.train_loader)
