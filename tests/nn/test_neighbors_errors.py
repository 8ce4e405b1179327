"""Structures without well-defined neighbourhoods are refused by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from neighbor_cases import batch_of

from escaip_fairchem.errors import DataError
from escaip_fairchem.nn.neighbors import StructureError, find_neighbors

FINE = bulk("Cu", cubic=True)


def refuse(atoms: Atoms, *parts: str, before: int = 2) -> None:
    """Check that a batch with a bad structure is refused, with its row and the given words in the message."""
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(StructureError) as caught:
            find_neighbors(*batch_of([FINE] * before + [atoms, FINE], dtype), cutoff=5.0, max_neighbors=20)
        assert isinstance(caught.value, DataError)
        assert caught.value.structure == before
        for part in (f"structure {before} of the batch", *parts):
            assert part in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_positions_that_are_not_finite(value: float) -> None:
    atoms = FINE.copy()
    atoms.positions[3, 1] = value
    refuse(atoms, "atom 3", str(value), "finite")


@pytest.mark.parametrize("pbc", [True, False])
def test_cells_that_are_not_finite(pbc: bool) -> None:
    atoms = Atoms("H", positions=[[0, 0, 0]], cell=[[5, 0, 0], [0, math.nan, 0], [0, 0, 5]], pbc=pbc)
    refuse(atoms, "lattice vector 1", "nan")


@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        (np.zeros((3, 3)), (True, True, True)),
        ([[5, 0, 0], [0, 5, 0], [0, 0, 0]], (True, True, True)),
        ([[5, 0, 0], [0, 0, 0], [0, 0, 5]], (False, True, False)),
        ([[5, 1, 0], [10, 2, 0], [0, 0, 5]], (True, True, False)),
        ([[31, 12, 23], [14, 35, 16], [45, 47, 39]], (True, True, True)),  # coplanar
        ([[1e-4, 0, 0], [0, 5, 0], [0, 0, 5]], (True, True, True)),
    ],
)
def test_periodic_axes_without_volume(cell: list, pbc: tuple[bool, ...]) -> None:
    refuse(Atoms("H", positions=[[0, 0, 0]], cell=cell, pbc=pbc), "linearly dependent", "set pbc to False")


def test_atoms_at_the_same_place() -> None:
    atoms = Atoms("H3", positions=[[0, 0, 0], [2, 0, 0], [2, 0, 5e-4]])
    refuse(atoms, "atoms 1 and 2", "Å apart")
    refuse(Atoms("H2", positions=[[1, 1, 1], [1, 1, 1]]), "atoms 0 and 1")


def test_atoms_at_the_same_place_through_a_periodic_image() -> None:
    atoms = Atoms("H3", positions=[[0, 0, 0], [2, 2, 2], [0, -5, 10]], cell=[5, 5, 5], pbc=True)
    refuse(atoms, "atoms 0 and 2", before=1)


def test_atoms_just_far_enough_apart_are_fine() -> None:
    atoms = Atoms("H2", positions=[[0, 0, 0], [0, 0, 1.1e-3]])
    assert find_neighbors(*batch_of([atoms]), cutoff=5.0, max_neighbors=20).mask_NK.all()
