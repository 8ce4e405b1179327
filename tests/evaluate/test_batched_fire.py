"""Batched FIRE takes ASE's steps, whatever else is in the batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from simulation_cases import STEPS, ase_path, crystals, emt, pool_paths, slab

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.evaluate.deformation import Coordinates
from escaip_fairchem.evaluate.fire import BatchedFire, FireSettings
from escaip_fairchem.evaluate.relaxation_pool import RelaxationOptions, RelaxationPool


@pytest.mark.parametrize("cell", [True, False])
def test_every_step_is_ases(cell: bool) -> None:
    structures = crystals(5) if cell else [*crystals(3), slab()]
    paths, ended = pool_paths(structures, emt(), cell=cell, fmax=0.02)
    lengths = set()
    for atoms, path, relaxed in zip(structures, paths, ended, strict=True):
        expected = ase_path(atoms, cell=cell, fmax=0.02)
        assert len(path) == len(expected)
        lengths.add(len(path))
        for ours, theirs in zip(path, expected, strict=True):
            np.testing.assert_allclose(ours.positions, theirs.positions, rtol=0, atol=1e-6)
            np.testing.assert_allclose(ours.cell.array, theirs.cell.array, rtol=0, atol=1e-6)
        assert relaxed.steps == len(expected) - 1
        assert relaxed.status == ("converged" if relaxed.steps < STEPS else "not converged")
        assert np.abs(path[0].cell.array - path[-1].cell.array).max() > 0.05 or not cell, "it did move"
    assert len(lengths) > 1, "they ended at different steps"


def test_a_structure_moves_the_same_alone_and_in_any_company() -> None:
    structures = crystals(5)
    together, _ = pool_paths(structures, emt(), cell=True, fmax=0.02)
    for atoms, expected in zip(structures, together, strict=True):
        (alone,), _ = pool_paths([atoms], emt(), cell=True, fmax=0.02)
        assert len(alone) == len(expected)
        for ours, theirs in zip(alone, expected, strict=True):
            np.testing.assert_array_equal(ours.positions, theirs.positions)
            np.testing.assert_array_equal(ours.cell.array, theirs.cell.array)


def test_forces_on_the_cell_are_derivatives() -> None:
    atoms = crystals(1)[0]
    coordinates = Coordinates(relax_cell=True)
    coordinates.add([atoms], [np.ones(len(atoms), dtype=bool)])
    random = np.random.default_rng(0)
    rows = len(atoms) + 3
    coordinates.move(random.normal(scale=0.05, size=(rows, 3)))  # the deformation is neither small nor symmetric

    def at(moves: np.ndarray) -> tuple[float, np.ndarray]:
        moved = Coordinates(relax_cell=True)
        moved.restore(coordinates.state())
        moved.move(moves)
        here = Atoms(atoms.numbers, positions=moved.positions(), cell=moved.cells()[0], pbc=True)
        (found,) = emt().evaluate([here])
        assert found.stress is not None
        return found.energy, moved.row_forces(found.forces, found.stress[None])

    direction = random.normal(size=(rows, 3))
    step = 1e-4
    slope = (at(step * direction)[0] - at(-step * direction)[0]) / (2 * step)
    assert -(at(np.zeros((rows, 3)))[1] * direction).sum() == pytest.approx(slope, rel=1e-5)


def test_two_steps_by_hand() -> None:
    fire = BatchedFire(FireSettings(longest_move=10.0))
    fire.add([1])
    # From rest: v = 0.1 · F, move = 0.1 · v.
    np.testing.assert_allclose(fire.step(np.array([[2.0, 0.0, 0.0]])), [[0.02, 0.0, 0.0]])
    # Downhill: v = 0.9 v + 0.1 |v| F/|F| + 0.1 F = 0.9 · 0.2 x + 0.1 · 0.2 (3 x + 4 y)/5 + 0.3 x + 0.4 y.
    np.testing.assert_allclose(fire.step(np.array([[3.0, 4.0, 0.0]])), [[0.0492, 0.0416, 0.0]])
    # Uphill: the velocity is forgotten and the time step halved.
    np.testing.assert_allclose(fire.step(np.array([[-1.0, 0.0, 0.0]])), [[-0.0025, 0.0, 0.0]])


def test_no_step_is_longer_than_the_limit_and_zero_forces_do_not_divide() -> None:
    fire = BatchedFire()
    fire.add([2, 1])
    moves = fire.step(np.array([[3e3, 0, 0], [4e3, 0, 0], [0.0, 0, 0]]))
    np.testing.assert_allclose(moves, [[0.12, 0, 0], [0.16, 0, 0], [0, 0, 0]])
    assert np.isfinite(fire.step(np.zeros((3, 3)))).all()


def test_a_restored_pool_goes_on_the_same() -> None:
    options = RelaxationOptions(fmax=0.02, max_steps=30)
    first = RelaxationPool(emt(), options)
    for number, atoms in enumerate(crystals(3)):
        first.add(number, str(number), atoms)
    for _ in range(7):
        first.step()
    second = RelaxationPool(emt(), options)
    second.restore(*first.state())
    for _ in range(10):
        first.step()
        second.step()
        for ours, theirs in zip(first.structures(), second.structures(), strict=True):
            np.testing.assert_array_equal(ours.positions, theirs.positions)


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="fmax: -1"):
        RelaxationOptions(fmax=-1.0)
    with pytest.raises(ConfigError, match="max_volume_change: 1"):
        replace(RelaxationOptions(), max_volume_change=1.0)
    with pytest.raises(ConfigError, match=r"no stress.*--no-cell"):
        RelaxationPool(emt(has_stress=False), RelaxationOptions())
