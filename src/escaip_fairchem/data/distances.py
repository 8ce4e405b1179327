"""The closest pair of atoms, periodic images included, when it is closer than a small distance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ase.neighborlist import primitive_neighbor_list

from .schema import FloatArray, Structure, spanning_cell

# Beyond this many atoms, all pairs at once take more memory than a neighbour search.
LARGEST_DENSE = 500


class Pair(NamedTuple):
    """Two atoms, or an atom and its own image, and their distance (Å)."""

    first: int
    second: int
    distance: float


def closest_pair(structure: Structure, below: float) -> Pair | None:
    """Find the closest two atoms of a structure.

    Args:
        structure: With linearly independent periodic vectors.
        below: Distance (Å) from which pairs do not matter.

    Returns:
        The pair, or None where no distance is smaller than ``below``.
    """
    cell = spanning_cell(structure.cell, structure.pbc)
    spacing = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    # With lattice planes this far apart no atom meets its own image, and the image that is nearest in fractional
    # coordinates is the only one that can be nearer than `below`.
    roomy = bool((spacing[structure.pbc] > 2 * below).all())
    if roomy and len(structure) <= LARGEST_DENSE:
        return _closest_of_all(structure, cell, below)
    first, second, distance = primitive_neighbor_list(
        "ijd", structure.pbc, cell, structure.positions, below, max_nbins=max(len(structure), 100)
    )
    if len(distance) == 0:
        return None
    row = int(np.argmin(distance))
    return Pair(int(first[row]), int(second[row]), float(distance[row]))


def _closest_of_all(structure: Structure, cell: FloatArray, below: float) -> Pair | None:
    first, second = np.triu_indices(len(structure), k=1)
    if len(first) == 0:
        return None
    difference = structure.positions[second] - structure.positions[first]
    fractional = difference @ np.linalg.inv(cell)
    shift = np.where(structure.pbc, np.round(fractional), 0.0)
    distance = np.linalg.norm(difference - shift @ cell, axis=1)
    row = int(np.argmin(distance))
    return Pair(int(first[row]), int(second[row]), float(distance[row])) if distance[row] < below else None
