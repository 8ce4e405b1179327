"""Predictions of rotated structures: equivariant models turn along, others do not."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from evaluation_cases import known_checkpoint
from model_cases import model_of

from escaip_fairchem.cli.main import main
from escaip_fairchem.evaluate.rotation import RotationErrors, rotation_errors, rotations_about
from escaip_fairchem.plugin.backbone import EScAIPBackbone
from escaip_fairchem.plugin.checkpoints import save_atomically
from escaip_fairchem.plugin.inference import open_checkpoint
from escaip_fairchem.plugin.rotations import predict_rotated


def structures() -> dict[str, Atoms]:
    """A molecule, and a distorted crystal in a skew cell, in which no two neighbours are equally far."""
    crystal = bulk("Cu", "fcc", a=3.7)
    crystal = crystal.repeat((2, 1, 1))
    crystal.set_cell(crystal.cell.array + np.random.default_rng(1).normal(scale=0.2, size=(3, 3)), scale_atoms=True)
    crystal.positions += np.random.default_rng(2).normal(scale=0.15, size=crystal.positions.shape)
    ethanol = molecule("CH3CH2OH")
    ethanol.positions += np.random.default_rng(3).normal(scale=0.05, size=ethanol.positions.shape)
    return {"crystal": crystal, "ethanol": ethanol}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of random models, one with forces as derivatives and one with direct forces."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for kind in ("conservative", "direct"):
        model = model_of(kind)
        backbone = next(part for part in model.modules() if isinstance(part, EScAIPBackbone))
        heads = {"energy_forces": {}} if kind == "conservative" else {"energy": {}, "forces": {}}
        config = {
            "model": {"name": "escaip_fairchem.EScAIP", "backbone": asdict(backbone.config), "heads": heads},
            "outputs": {"energy": {"level": "system"}, "forces": {"level": "atom"}},
            "dataset": {"format": "lmdb"},
            "loss_functions": [{"energy": {"fn": "mae", "coefficient": 1}}],
        }
        content = {
            "state_dict": model.state_dict(),
            "config": config,
            "normalizers": {},
            "elementrefs": {},
            "amp": None,
        }
        save_atomically(content, folder / f"{kind}.pt")
        found[kind] = folder / f"{kind}.pt"
    return found


def errors_of(checkpoint: Path, **options: Any) -> list[RotationErrors]:
    inference = open_checkpoint(checkpoint, cpu=True)
    return rotation_errors(inference, structures(), **{"seed": 0, "batch_size": 33, **options})


def test_an_equivariant_model_turns_along(checkpoints):
    found = errors_of(checkpoints["conservative"])
    assert {(error.structure, error.axis) for error in found} == {
        (name, axis) for name in ("crystal", "ethanol") for axis in ("x", "y", "z", "random")
    }
    for error in found:
        assert error.rotations == 32
        assert error.forces_cosine == pytest.approx(1.0, abs=1e-5)
        assert error.forces_mae < 0.05  # meV/Å: float32
        assert error.energy_range < 0.01  # meV/atom


def test_direct_forces_do_not_but_the_energy_does(checkpoints):
    for error in errors_of(checkpoints["direct"]):
        assert error.forces_cosine is not None
        assert error.forces_cosine < (0.95 if error.axis == "random" else 0.99)
        assert error.forces_mae > 1.0
        assert error.energy_range < 0.01


def test_batches_do_not_matter_and_the_seed_does(checkpoints):
    whole, parts = (errors_of(checkpoints["direct"], batch_size=size) for size in (129, 10))
    for one, other in zip(whole, parts, strict=True):
        assert other.forces_cosine == pytest.approx(one.forces_cosine, abs=1e-5)
        assert other.forces_mae == pytest.approx(one.forces_mae, rel=1e-4)
    reseeded = errors_of(checkpoints["direct"], seed=1)
    same = [
        one.forces_mae == pytest.approx(other.forces_mae, rel=1e-4) for one, other in zip(whole, reseeded, strict=True)
    ]
    assert same == [error.axis != "random" for error in whole]


def test_orientations_are_those_of_the_structure_turned_in_ase(checkpoints):
    """Rotation about z of a molecule, by ASE's own rotation."""
    inference = open_checkpoint(checkpoints["direct"], cpu=True)
    ethanol = structures()["ethanol"]
    turns = rotations_about("z", seed=0)
    energies, forces = predict_rotated(inference, ethanol, turns, batch_size=7)
    by_hand = ethanol.copy()
    by_hand.rotate(np.rad2deg(2 * np.pi * 3.5 / 32), "z")
    energy, force = predict_rotated(inference, by_hand, torch.eye(3, dtype=torch.float64)[None], batch_size=1)
    assert energies[3] == pytest.approx(energy[0], abs=1e-5)
    np.testing.assert_allclose(forces[3], force[0], atol=1e-4 * np.abs(force).max())
    assert np.abs(forces[3] - forces[4]).max() > 1e-2 * np.abs(force).max()


def test_constant_forces_have_the_errors_of_arithmetic(tmp_path, capsys):
    """Every force is (0.1, 0, 0): about x nothing changes, about z the mean cosine is that of the angles, 0."""
    ase.io.write(tmp_path / "ethanol.extxyz", structures()["ethanol"])
    words = ["evaluate", "rotation", str(known_checkpoint(tmp_path / "known.pt")), str(tmp_path / "ethanol.extxyz")]
    assert main([*words, "--cpu", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "force cosine" in printed
    with (tmp_path / "out/rotation.csv").open() as file:
        rows = {row["axis"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["x", "y", "z", "random", "all"]
    assert float(rows["x"]["forces_cosine"]) == pytest.approx(1.0)
    assert float(rows["x"]["forces_mae_meV_per_A"]) == pytest.approx(0.0, abs=1e-6)
    angles = 2 * np.pi * (np.arange(32) + 0.5) / 32
    for axis in "yz":
        assert float(rows[axis]["forces_cosine"]) == pytest.approx(0.0, abs=1e-6)
        expected = 100 * (np.abs(np.cos(angles) - 1) + np.abs(np.sin(angles))).mean() / 3
        assert float(rows[axis]["forces_mae_meV_per_A"]) == pytest.approx(expected, rel=1e-5)
    assert float(rows["random"]["energy_range_meV_per_atom"]) == 0.0
    assert len((tmp_path / "out/rotation_structures.csv").read_text().splitlines()) == 5


def test_faults_name_what_is_wrong(tmp_path, capsys):
    known = str(known_checkpoint(tmp_path / "known.pt"))
    energies = str(known_checkpoint(tmp_path / "energies.pt", outputs={"energy": {"level": "system"}}))
    ase.io.write(tmp_path / "s.extxyz", structures()["ethanol"])
    for words, message in (
        ([known, f"{tmp_path}/none.xyz"], "none.xyz: no such file"),
        ([energies, f"{tmp_path}/s.extxyz"], "energies.pt: outputs: the model does not predict forces"),
        ([known, f"{tmp_path}/s.extxyz", "--batch-size", "0"], "--batch-size 0"),
    ):
        assert main(["evaluate", "rotation", *words, "--cpu"]) == 2
        assert message in capsys.readouterr().err
