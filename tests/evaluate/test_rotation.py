"""Rotations and how predictions in many orientations are compared."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from simulation_cases import converted, crystals

from escaip_fairchem.cli.main import main
from escaip_fairchem.errors import DataError
from escaip_fairchem.evaluate.rotation import (
    AXES,
    PER_AXIS,
    compare,
    read_structures,
    rotations_about,
    table_by_axis,
)
from escaip_fairchem.plugin.random_checkpoint import save_random_checkpoint
from escaip_fairchem.testing import TINY


@pytest.mark.parametrize("axis", AXES)
def test_rotations_are_rotations(axis):
    turns = rotations_about(axis, seed=3)
    assert turns.shape == (PER_AXIS, 3, 3)
    assert torch.allclose(turns @ turns.transpose(1, 2), torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(torch.linalg.det(turns), torch.ones(PER_AXIS, dtype=torch.float64))
    if axis != "random":
        place = AXES.index(axis)
        assert torch.equal(turns[:, :, place], torch.eye(3, dtype=torch.float64)[place].expand(PER_AXIS, 3))


def test_rotation_about_z_turns_x_towards_y_and_is_no_symmetry_of_crystals():
    turns = rotations_about("z", seed=0)
    first = turns[0] @ torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    angle = 2 * np.pi * 0.5 / PER_AXIS
    assert first.tolist() == pytest.approx([np.cos(angle), np.sin(angle), 0.0])
    degrees = torch.rad2deg(torch.atan2(turns[:, 1, 0], turns[:, 0, 0])) % 360
    assert len(set(degrees.round(decimals=6).tolist())) == PER_AXIS
    assert all(
        abs(degree - symmetry) > 1 for degree in degrees.tolist() for symmetry in (0, 60, 90, 120, 180, 240, 270)
    )


def test_random_rotations_follow_from_the_seed():
    assert torch.equal(rotations_about("random", seed=1), rotations_about("random", seed=1))
    assert not torch.equal(rotations_about("random", seed=1), rotations_about("random", seed=2))
    assert torch.equal(rotations_about("x", seed=1), rotations_about("x", seed=2))


def test_forces_that_turn_along_have_no_error_and_those_that_stay_do():
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # x to y
    turns = np.stack([np.eye(3), turn])
    forces = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    along = compare(np.zeros(2), np.stack([forces, forces @ turn.T]), turns, structure="s", axis="z")
    assert along.forces_cosine == pytest.approx(1.0)
    assert along.forces_mae == pytest.approx(0.0)
    stay = compare(np.array([0.003, 0.0]), np.stack([forces, forces]), turns, structure="s", axis="z")
    # The first atom's force (1, 0, 0) turned back is (0, -1, 0); the third atom has none.
    assert stay.forces_cosine == pytest.approx((0.0 + 1.0) / 2)
    assert stay.forces_mae == pytest.approx(1000 * 2 / 9)
    assert stay.energy_range == pytest.approx(1.0)  # 3 meV, three atoms
    assert stay.energy_std == pytest.approx(0.5)


def test_without_forces_there_is_no_cosine():
    turns = rotations_about("x", seed=0).numpy()
    none = compare(np.zeros(PER_AXIS), np.zeros((PER_AXIS, 2, 3)), turns, structure="s", axis="x")
    assert none.forces_cosine is None
    assert none.forces_mae == 0.0
    assert (
        "–" in table_by_axis([none] * 4 + [none.__class__(**{**none.__dict__, "axis": axis}) for axis in AXES]).text()
    )


def test_files_of_structures(tmp_path):
    ase.io.write(tmp_path / "two.extxyz", [Atoms("H2", [[0, 0, 0], [0, 0, 0.74]]), Atoms("O")])
    assert list(read_structures(tmp_path / "two.extxyz")) == ["0:H2", "1:O"]
    assert list(read_structures(tmp_path / "two.extxyz", 1)) == ["0:H2"]
    with pytest.raises(DataError, match="at least 1"):
        read_structures(tmp_path / "two.extxyz", 0)
    with pytest.raises(DataError, match=r"none\.extxyz: no such file"):
        read_structures(tmp_path / "none.extxyz")
    (tmp_path / "empty.extxyz").write_text("")
    with pytest.raises(DataError, match=r"empty\.extxyz: "):
        read_structures(tmp_path / "empty.extxyz")
    (tmp_path / "broken.cif").write_text("nonsense")
    with pytest.raises(DataError, match=r"broken\.cif: "):
        read_structures(tmp_path / "broken.cif")


def test_converted_data_are_rotated(tmp_path, capsys):
    """A folder that `escaip data` has written, with what else it writes there."""
    folder = converted(crystals(8), tmp_path / "data")
    assert {"data.0000.aselmdb", "metadata.npz"} <= {path.name for path in folder.iterdir()}
    every = read_structures(folder)
    assert len(every) > 3
    assert list(read_structures(folder, 2)) == list(every)[:2]
    assert {len(atoms) for atoms in every.values()} <= {len(atoms) for atoms in crystals(8)}
    model = save_random_checkpoint(TINY, tmp_path / "tiny.pt", seed=0)
    words = ["evaluate", "rotation", str(model), str(folder), "--limit", "2", "--cpu", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "force cosine" in capsys.readouterr().out
    assert len((tmp_path / "out/rotation_structures.csv").read_text().splitlines()) == 1 + 2 * len(AXES)
    (tmp_path / "empty").mkdir()
    assert main(["evaluate", "rotation", str(model), str(tmp_path / "empty"), "--cpu"]) == 2
    assert "no file matches" in capsys.readouterr().err


def test_a_structure_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "in").mkdir()
    ase.io.write(tmp_path / "in/a.extxyz", Atoms("O"))
    (tmp_path / "in/b.cif").write_text("not a crystal")
    with pytest.raises(DataError, match=r"in: structure 1 \(b\.cif:0\): unreadable: .*; remove it"):
        read_structures(tmp_path / "in")
