"""Structures and a reference implementation for the tests of the neighbour search."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from escaip_fairchem.nn.neighbors import Neighborhoods, find_neighbors
from escaip_fairchem.nn.neighbors_ties import TIE_TOLERANCE

Edge = tuple[int, int, int, int]  # sender, and the three shifts of its image


def batch_of(structures: list[Atoms], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return positions, cells, periodicities and structure indices as find_neighbors takes them."""
    counts = torch.tensor([len(atoms) for atoms in structures])
    return (
        torch.cat([torch.tensor(atoms.positions, dtype=dtype) for atoms in structures]),
        torch.stack([torch.tensor(atoms.cell.array, dtype=dtype) for atoms in structures]),
        torch.tensor(np.array([atoms.pbc for atoms in structures])),
        torch.arange(len(structures)).repeat_interleave(counts),
    )


def search(structures: list[Atoms], dtype: torch.dtype = torch.float64, **settings: Any) -> list[list[list[Edge]]]:
    """Search a batch; return the edges of every atom in every structure, senders numbered within the structure."""
    rows = edges_of(find_neighbors(*batch_of(structures, dtype), **settings))
    result, first = [], 0
    for atoms in structures:
        own = rows[first : first + len(atoms)]
        result.append([[(sender - first, *shift) for sender, *shift in row] for row in own])
        first += len(atoms)
    return result


def edges_of(neighborhoods: Neighborhoods) -> list[list[Edge]]:
    """Return every atom's edges in the order of their slots, after checking that empty slots are as promised."""
    sender, shift, mask = neighborhoods.sender_NK, neighborhoods.shift_NK3, neighborhoods.mask_NK
    assert sender.dtype == shift.dtype == torch.int64
    assert sender.shape == mask.shape == shift.shape[:2]
    assert mask.shape[1] == max(1, *mask.sum(1).tolist())
    assert not (mask.diff(dim=1) & mask[:, 1:]).any(), "used slots come first"
    assert (sender == torch.arange(len(sender)).unsqueeze(1))[~mask].all()
    assert not shift[~mask].any()
    rows = []
    for i in range(len(sender)):
        used = int(mask[i].sum())
        row = [(j, *s) for j, s in zip(sender[i, :used].tolist(), shift[i, :used].tolist(), strict=True)]
        assert len(set(row)) == len(row)
        rows.append(row)
    return rows


def reference(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> list[dict[Edge, float]]:
    """List every neighbour within the cutoff with its distance, by trying far more images than needed."""
    cutoff += 1e-9  # what is exactly at the cutoff counts, whatever the rounding
    positions, lattice = np.asarray(positions, float), np.asarray(cell, float) * np.asarray(pbc)[:, None]
    reach = cutoff + max(np.linalg.norm(a - b) for a in positions for b in positions)
    inverse = np.linalg.pinv(lattice)
    ranges = []
    for axis in range(3):
        most = int(np.ceil(reach * np.linalg.norm(inverse[:, axis]))) + 1 if pbc[axis] else 0
        ranges.append(range(-most, most + 1))
    shifts = np.array(list(itertools.product(*ranges)))
    offsets = sum(shifts[:, axis, None] * lattice[axis] for axis in range(3))
    result = []
    for i, receiver in enumerate(positions):
        neighbors: dict[Edge, float] = {}
        for j, sender in enumerate(positions):
            distances = np.sqrt(((sender + offsets - receiver) ** 2).sum(1))
            for row in np.flatnonzero(distances <= cutoff):
                if i != j or shifts[row].any():
                    neighbors[(j, *map(int, shifts[row]))] = float(distances[row])
        result.append(neighbors)
    return result


def assert_nearest(
    row: list[Edge], all_neighbors: dict[Edge, float], max_neighbors: int, tie: float = TIE_TOLERANCE
) -> None:
    """Check that an atom's edges are exactly its nearest neighbours, nearest first, equal distances aside."""
    assert len(row) == min(max_neighbors, len(all_neighbors))
    assert set(row) <= set(all_neighbors)
    distances = [all_neighbors[edge] for edge in row]
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(distances))
    if len(row) < len(all_neighbors):
        last = sorted(all_neighbors.values())[max_neighbors - 1]
        surely = {edge for edge, distance in all_neighbors.items() if distance < last - tie * (1 + 1e-6)}
        assert surely <= set(row)
        assert max(distances) <= last + tie * (1 + 1e-6)


def mapped(rows: list[list[Edge]], order: np.ndarray, steps: np.ndarray) -> list[set[Edge]]:
    """Translate edges of a permuted and re-wrapped structure back into those of the original.

    ``order[new]`` is the original row of an atom; ``steps`` holds the lattice vectors added to each original atom.
    """
    result: list[set[Edge]] = [set() for _ in rows]
    for new, row in enumerate(rows):
        receiver = int(order[new])
        for sender, *shift in row:
            original = int(order[sender])
            result[receiver].add((original, *map(int, np.array(shift) + steps[original] - steps[receiver])))
    return result
