"""Conservative models and models with stress, trained by the real command on converted structures."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from fairchem_runs import OURS, run

from escaip_fairchem.data.convert import convert
from escaip_fairchem.data.options import ConvertOptions
from escaip_fairchem.data.splits import SplitOptions
from escaip_fairchem.evaluate.curves import read_curves

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]

BACKBONE = {
    "model": "escaip_fairchem.EScAIPBackbone",
    "hidden_size": 16,
    "num_layers": 1,
    "atten_num_heads": 2,
    "max_radius": 5.0,
    "max_neighbors": 12,
    "edge_distance_expansion_size": 16,
    "edge_distance_embedding_size": 16,
    "node_direction_expansion_size": 4,
    "node_direction_embedding_size": 8,
    "atom_embedding_size": 8,
    "energy_reduce": "sum",
}


def strained_crystals(count: int) -> list[Atoms]:
    """Rattled and strained crystals of copper and silver, labelled with energy, forces and stress."""
    random = np.random.default_rng(0)
    found = []
    for index in range(count):
        atoms = bulk(["Cu", "Ag"][index % 2], cubic=index % 3 > 0)
        strain = random.normal(scale=0.02, size=(3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
        atoms.positions += random.normal(scale=0.05, size=atoms.positions.shape)
        atoms.calc = EMT()
        results = {
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces(),
            "stress": atoms.get_stress(),
        }
        atoms.calc = SinglePointCalculator(atoms, **results)
        found.append(atoms)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a converted data set in ``data``."""
    folder = tmp_path_factory.mktemp("crystals")
    ase.io.write(folder / "crystals.extxyz", strained_crystals(24))
    options = ConvertOptions(split=SplitOptions(parts=(16.0, 4.0, 4.0), seed=0, shuffle=True))
    summary = convert([str(folder / "crystals.extxyz")], folder / "data", options)
    assert sum(split["structures"] for split in summary["splits"].values()) == 24
    return folder


def config(folder: Path, section: str, **changes: Any) -> dict[str, Any]:
    """A small configuration on the data set that ``escaip data convert`` describes in a file of that name."""
    settings: dict[str, Any] = {
        "trainer": "escaip_fairchem.EScAIPForcesTrainer",
        "logger": "tensorboard",
        "task": {"prediction_dtype": "float64"},
        "outputs": {"energy": {"level": "system"}, "forces": {"level": "atom"}},
        "evaluation_metrics": {"metrics": {"energy": ["mae"], "forces": ["mae"]}, "primary_metric": "forces_mae"},
        **yaml.safe_load((folder / "data" / section).read_text()),
        "model": {"name": "escaip_fairchem.EScAIP", "backbone": dict(BACKBONE), "heads": {}},
        "loss_functions": [
            {"energy": {"fn": "mae", "coefficient": 1}},
            {"forces": {"fn": "l2mae", "coefficient": 10}},
        ],
        "optim": {
            "batch_size": 4,
            "lr_initial": 0.002,
            "max_epochs": 3,
            "clip_grad_norm": 10,
            "ema_decay": 0.9,
            "eval_every": 12,
        },
    }
    return {**settings, **changes}


def train(folder: Path, name: str, settings: dict[str, Any]) -> tuple[Path, dict[str, dict[int, float]]]:
    """Train; returns the best checkpoint and the logged curves."""
    (folder / f"{name}.yml").write_text(yaml.safe_dump(settings, sort_keys=False))
    flags = ["main", "--config-yml", f"{name}.yml", "--cpu", "--print-every", "1", "--seed", "1"]
    process = run(OURS, *flags, "--run-dir", name, "--timestamp-id", "run", cwd=folder)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return folder / name / "checkpoints/run/best_checkpoint.pt", read_curves(folder / name / "logs/tensorboard/run")


CALCULATE = """
import sys
import ase.db
import numpy as np
from escaip_fairchem import OCPCalculator

source, checkpoint, out = sys.argv[1:]
calculator = OCPCalculator(checkpoint_path=checkpoint, cpu=True)
calculator.trainer.model.double()
results = {"energy": [], "forces": [], "stress": [], "strained": []}
for row in ase.db.connect(source, type="aselmdb", readonly=True).select():
    atoms = row.toatoms()
    atoms.calc = calculator
    for name in ("energy", "forces", "stress"):
        results[name].append(calculator.get_property(name, atoms))
    energies = []
    for sign in (1, -1):
        strained = atoms.copy()
        strain = np.eye(3)
        strain[0, 0] += sign * 1e-3
        strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        strained.calc = calculator
        energies.append(strained.get_potential_energy())
    results["strained"].append((energies[0] - energies[1]) / 2e-3 / atoms.get_volume())
results["forces"] = np.concatenate(results["forces"])
np.savez(out, **results)
"""


def calculate(folder: Path, checkpoint: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Energy, forces, stress and a finite difference of the test set by ``OCPCalculator`` in a new process."""
    return run(["-c", CALCULATE], str(folder / "data/test/data.0000.aselmdb"), str(checkpoint), str(out), cwd=folder)


def test_a_conservative_model_trains_and_its_stress_is_the_derivative_of_its_energy(folder: Path):
    settings = config(folder, "dataset_conservative.yml")
    settings["outputs"]["stress"] = {"level": "system"}
    settings["evaluation_metrics"]["metrics"]["stress"] = ["mae"]
    settings["loss_functions"].append({"stress": {"fn": "mae", "coefficient": 10}})
    settings["model"]["backbone"].update(direct_force=False)
    settings["model"]["heads"] = {
        "energy_forces": {"module": "escaip_fairchem.EScAIPConservativeHead", "regress_stress": True}
    }
    checkpoint, curves = train(folder, "conservative", settings)
    losses = list(curves["train/loss"].values())
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    assert curves["val/stress_mae"][12] > 0

    process = calculate(folder, checkpoint, folder / "conservative.npz")
    assert process.returncode == 0, process.stderr
    with (
        np.load(folder / "conservative.npz") as ours,
        np.load(folder / "conservative/results/run/ocp_predictions.npz") as predicted,
    ):
        order = np.argsort([int(name.split("_")[0]) if name[0].isdigit() else 0 for name in predicted["ids"]])
        assert len(order) == len(ours["energy"]) == 4
        np.testing.assert_allclose(sorted(ours["energy"]), sorted(predicted["energy"].reshape(-1)), atol=1e-4)
        # σ_xx against the energy under strain, by the same weights
        np.testing.assert_allclose(ours["stress"][:, 0], ours["strained"], atol=2e-5, rtol=2e-2)
        assert np.abs(ours["stress"]).max() > 1e-4


def test_a_rank_2_head_trains_on_decomposed_stress(folder: Path):
    parts = {"stress_isotropic": {"irrep_dim": 0}, "stress_anisotropic": {"irrep_dim": 2}}
    settings = config(folder, "dataset.yml")
    transforms = settings["dataset"]["train"].setdefault("transforms", {})
    transforms["decompose_tensor"] = {"tensor": "stress", "rank": 2, "decomposition": parts}
    transforms.get("normalizer", {}).pop("stress", None)
    settings["outputs"]["stress"] = {"level": "system", "irrep_dim": 2, "decomposition": parts}
    settings["evaluation_metrics"]["metrics"]["stress"] = ["mae"]
    settings["loss_functions"] += [{name: {"fn": "mae", "coefficient": 5}} for name in parts]
    settings["model"]["heads"] = {
        "energy": {"module": "escaip_fairchem.EScAIPEnergyHead"},
        "forces": {"module": "escaip_fairchem.EScAIPDirectForceHead"},
        "stress": {"module": "escaip_fairchem.EScAIPRank2Head", "output_name": "stress"},
    }
    _, curves = train(folder, "rank2", settings)
    losses = list(curves["train/loss"].values())
    assert np.isfinite(losses).all()
    assert {"train/loss_stress_isotropic", "train/loss_stress_anisotropic", "val/stress_mae"} <= curves.keys()
    with np.load(folder / "rank2/results/run/ocp_predictions.npz") as predicted:
        stress = predicted["stress"].reshape(-1, 3, 3)
        assert len(stress) == 4
        np.testing.assert_allclose(stress, stress.transpose(0, 2, 1), atol=1e-6)
