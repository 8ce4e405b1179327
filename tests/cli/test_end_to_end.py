"""The real command on a small OC20-like set: train, stop, continue, validate, predict, and open the result in ASE."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fairchem_runs import OURS, run

from escaip_fairchem.data.demo_set import DemoOptions, write_demo
from escaip_fairchem.evaluate.curves import Curve, read_curves
from escaip_fairchem.evaluate.labels import read_labels
from escaip_fairchem.evaluate.parity import join, read_predictions

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
DEMO_CONFIG = ROOT / "configs/demo/escaip_demo.yml"
TINY = (
    "model.backbone.hidden_size=16",
    "model.backbone.num_layers=1",
    "model.backbone.atten_num_heads=2",
    "model.backbone.max_neighbors=6",
    "model.backbone.mlp_dropout=0.1",
    "optim.batch_size=4",
    "optim.eval_batch_size=3",
    "optim.eval_every=12",  # once, so that the best weights are the last ones
    "optim.checkpoint_every=4",
    # The schedule counts these epochs, also where a run ends before.
    "optim.scheduler_params.epochs=2",
    "optim.max_epochs=2",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a demonstration set in ``data``."""
    folder = tmp_path_factory.mktemp("project")
    write_demo(folder / "data", DemoOptions(train=24, val=6, test=7, formats=("lmdb", "aselmdb")))
    return folder


def fairchem(folder: Path, mode: Sequence[str], *overrides: str, name: str, prefix: str = "") -> str:
    """Run the command in a folder, with a run folder of that name, and return its output."""
    sources = [f"dataset.{split}.src=data/lmdb/{split}" for split in ("train", "val", "test")]
    flags = [
        "--config-yml",
        str(DEMO_CONFIG),
        "--cpu",
        "--print-every",
        "1",
        "--run-dir",
        name,
        "--timestamp-id",
        "run",
    ]
    settings = [f"{prefix}{setting}" for setting in (*sources, *TINY, *overrides)]
    process = run(OURS, *mode, *flags, *settings, cwd=folder)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process.stdout


def curve(folder: Path, name: str, scalar: str) -> Curve:
    return read_curves(folder / name / "logs/tensorboard/run").get(scalar, {})


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A training of two epochs of six steps; returns its checkpoint."""
    fairchem(folder, ["main"], name="whole")
    return folder / "whole/checkpoints/run/checkpoint.pt"


def test_training_logs_and_keeps_checkpoints(folder: Path, trained: Path):
    losses = curve(folder, "whole", "train/loss")
    assert list(losses) == list(range(1, 13))
    assert np.isfinite(list(losses.values())).all()
    assert list(curve(folder, "whole", "val/forces_mae")) == [12]
    assert trained.is_file()
    assert trained.with_name("best_checkpoint.pt").is_file()


def test_a_training_in_two_parts_is_the_same_training(folder: Path, trained: Path):
    fairchem(folder, ["main"], "optim.max_epochs=1", name="first")
    checkpoint = folder / "first/checkpoints/run/checkpoint.pt"
    fairchem(folder, ["main", "--checkpoint", str(checkpoint)], name="second")
    for scalar in ("train/loss", "train/lr", "train/grad_norm", "val/loss"):
        whole = curve(folder, "whole", scalar)
        first, second = curve(folder, "first", scalar), curve(folder, "second", scalar)
        assert whole
        assert not first.keys() & second.keys()
        if scalar == "val/loss":
            assert list(first) == [6]  # the last weights of a training are evaluated in any case
            first = {}
        assert {**first, **second} == whole, scalar


@pytest.fixture(scope="module")
def predictions(folder: Path, trained: Path) -> Path:
    """Predictions of the test set, one by one, by fairchem's own form of the command; returns the file.

    From the other format, whose reader wraps positions into the cell as the calculators do.
    """
    mode = ["--mode", "predict", "--checkpoint", str(trained)]
    labels = "dataset.test.a2g_args={'r_energy': True, 'r_forces': True}"
    overrides = ["optim.eval_batch_size=1", "dataset.test.format=ase_db", "dataset.test.key_mapping={}", labels]
    fairchem(folder, mode, *overrides, "dataset.test.src=data/aselmdb/test", name="predicted", prefix="--")
    return folder / "predicted/results/run/ocp_predictions.npz"


def test_validation_repeats_the_last_one_of_the_training(folder: Path, trained: Path):
    fairchem(folder, ["--mode", "validate", "--checkpoint", str(trained)], name="validated", prefix="--")
    for scalar in ("val/loss", "val/forces_mae", "val/energy_mae"):
        (again,) = curve(folder, "validated", scalar).values()
        assert again == curve(folder, "whole", scalar)[12], scalar


def test_predictions_hold_every_atom_in_float32(folder: Path, predictions: Path):
    labels = read_labels(folder / "data/aselmdb/test")
    parity = join(labels, read_predictions(predictions))
    assert len(parity.energy_predicted) == 7
    assert len(set(parity.energy_predicted)) == 7
    with np.load(predictions) as arrays:
        assert arrays["forces"].dtype == arrays["energy"].dtype == np.float32
        assert len(arrays["forces"]) == sum(len(entry.forces) for entry in labels.values())


CALCULATE = """
import sys
from pathlib import Path
import ase.db
import numpy as np
from escaip_fairchem import OCPCalculator
from fairchem.core import OCPCalculator as Upstream

assert OCPCalculator is not Upstream
source, out, *checkpoints = sys.argv[1:]
results = {}
kinds = {"ours": OCPCalculator, "upstream": Upstream}
for name, checkpoint in ((name, checkpoint) for name in kinds for checkpoint in checkpoints):
    calculator = kinds[name](checkpoint_path=checkpoint, cpu=True)
    for row in ase.db.connect(source, type="aselmdb", readonly=True).select():
        atoms = row.toatoms()
        atoms.calc = calculator
        key = f"{name}/{Path(checkpoint).name}/{row.data['sid']}_{row.data['fid']}"
        results[f"{key}/energy"] = atoms.get_potential_energy()
        results[f"{key}/forces"] = atoms.get_forces(apply_constraint=False)
np.savez(out, **results)
"""


def test_both_calculators_agree_with_the_predictions(folder: Path, trained: Path, predictions: Path):
    """In a new process. Both files predict with the averaged weights."""
    best = trained.with_name("best_checkpoint.pt")
    arguments = [
        str(folder / "data/aselmdb/test/data.0000.aselmdb"),
        str(folder / "calculated.npz"),
        str(trained),
        str(best),
    ]
    process = run(["-c", CALCULATE], *arguments, cwd=folder)
    assert process.returncode == 0, process.stderr
    expected = read_predictions(predictions)
    assert len(expected) == 7
    with np.load(folder / "calculated.npz") as results:
        assert len(results) == 2 * 2 * 2 * 7
        for key in results:
            kind, file, name, label = key.split("/")
            np.testing.assert_allclose(
                results[key], expected[name][label == "forces"], atol=1e-6, rtol=1e-6, err_msg=f"{kind}, {file}"
            )


def test_predictions_hardly_depend_on_the_batch(folder: Path, predictions: Path):
    """Training's own, in batches of three and not wrapped, beside those of structures alone: float32 rounding."""
    alone, batched = (
        read_predictions(path)
        for path in (predictions, folder / "whole" / predictions.relative_to(folder / "predicted"))
    )
    assert alone.keys() == batched.keys()
    scale = np.sqrt(np.mean([np.mean(forces**2) for _, forces in alone.values()]))
    for name, (energy, forces) in alone.items():
        assert batched[name][0] == pytest.approx(energy, abs=1e-5)
        np.testing.assert_allclose(batched[name][1], forces, atol=2e-5 * scale)


def test_missing_data_of_the_shipped_configuration_is_one_message(tmp_path: Path):
    process = run(OURS, "main", "--config-yml", str(ROOT / "configs/oc20/escaip_2m.yml"), cwd=tmp_path)
    assert process.returncode == 2
    assert "data/oc20/s2ef" in process.stderr
    assert "does not exist" in process.stderr
    assert "Traceback" not in process.stdout + process.stderr
    assert not list(tmp_path.iterdir())


def test_the_shipped_configuration_trains_on_other_data_by_overrides(folder: Path):
    """``fairchem main --config-yml configs/oc20/escaip_2m.yml dataset.train.src=… model.backbone.hidden_size=…``."""
    process = run(
        OURS,
        *("main", "--config-yml", "configs/oc20/escaip_2m.yml", "--cpu", "--print-every", "1"),
        *("--run-dir", "big", "--timestamp-id", "run"),
        *("dataset.train.src=data/lmdb/train", "dataset.val.src=data/lmdb/val"),
        *("model.backbone.hidden_size=16", "model.backbone.num_layers=1", "model.backbone.atten_num_heads=2"),
        *("optim.num_workers=0", "optim.max_epochs=1", "optim.batch_size=12"),
        cwd=folder,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert list(curve(folder, "big", "train/loss")) == [1, 2]
    assert (folder / "big/checkpoints/run/checkpoint.pt").is_file()
    assert "using the shipped" in process.stdout


def test_the_demo_set_says_what_it_holds(folder: Path):
    summary = json.loads((folder / "data/summary.json").read_text())
    assert [summary["splits"][split]["structures"] for split in ("train", "val", "test")] == [24, 6, 7]
