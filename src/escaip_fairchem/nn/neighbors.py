"""The nearest neighbours of every atom over periodic images.

Legend: N atoms in the batch, B structures, K neighbour slots, E pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from escaip_fairchem.nn.neighbors_checks import StructureError, check_apart, check_edges, check_finite
from escaip_fairchem.nn.neighbors_images import Lattice, per_site, rows, triangular_lattice, wrap
from escaip_fairchem.nn.neighbors_pairs import Pairs, pairs_within
from escaip_fairchem.nn.neighbors_ties import TIE_DIRECTION, count_within, nearest

__all__ = ["Neighborhoods", "StructureError", "find_neighbors", "neighborhoods_from_edges"]

USUAL_COORDINATE = 10.0
"""Å. What a coordinate of this size loses to rounding decides what counts as exactly at the cutoff."""

TYPICAL_DENSITY = 0.035
"""Atoms per Å³ of ordinary matter, from which the first search radius is guessed. It decides the speed alone."""

RADIUS_GROWTH = 1.6
"""Factor between the radii of one search and the next."""


@dataclass(frozen=True, kw_only=True)
class Neighborhoods:
    """The neighbours of every atom, nearest first.

    The vector from a sender to its receiver is ``positions[i] - positions[sender] - shift @ cell``, for positions as
    they were given, inside the cell or not.

    Attributes:
        sender_NK: Row of the sender in the batch, int64. Empty slots hold the receiver's own row.
        shift_NK3: Periodic image of the sender in units of the lattice vectors, int64. Zero in empty slots.
        mask_NK: True where the slot is used, bool. Used slots come first.
    """

    sender_NK: Tensor
    shift_NK3: Tensor
    mask_NK: Tensor


@torch.no_grad()
def find_neighbors(
    positions_N3: Tensor,
    cell_B33: Tensor,
    pbc_B3: Tensor,
    structure_N: Tensor,
    *,
    cutoff: float,
    max_neighbors: int,
) -> Neighborhoods:
    """Find the nearest neighbours of every atom: exactly ``max_neighbors``, or all within the cutoff if fewer.

    Periodic images count, an atom's own images too. Which of several equally far neighbours stay is decided by the
    rule in ``neighbors_ties``. The search runs in float64 whatever the input, within a small radius first and again
    within larger ones for the atoms that have not found enough.

    Args:
        positions_N3: Positions, inside the cell or not, shape (N, 3), Å.
        cell_B33: Lattice vectors as rows, shape (B, 3, 3), Å. Any finite value on axes that are not periodic.
        pbc_B3: True on the periodic axes of each structure, shape (B, 3), bool.
        structure_N: Structure of every atom, shape (N,), int64, non-decreasing.
        cutoff: Largest distance of a neighbour, Å. Distances that exceed it by rounding alone count as within.
        max_neighbors: Most neighbours of an atom.

    Returns:
        The neighbourhoods, on the device of the positions. K is the largest number of neighbours in the batch,
        at least 1.

    Raises:
        StructureError: If a position or cell is not finite, periodic lattice vectors are linearly dependent, or two
            atoms coincide.
    """
    check_finite(positions_N3, cell_B33, structure_N)
    limit = rounded_up(cutoff, positions_N3.dtype)
    lattice = triangular_lattice(cell_B33.double(), pbc_B3)
    direction_B3 = tie_directions(lattice)
    wrapped = wrap(positions_N3.double(), structure_N, lattice)

    found: list[Pairs] = []
    receivers = senders = wrapped
    pending_N = torch.ones_like(structure_N, dtype=torch.bool)
    for radius in search_radii(limit, max_neighbors):
        for pairs in pairs_within(receivers, senders, structure_N, lattice, radius, at_least=max_neighbors):
            complete = radius if radius < limit else torch.inf
            found.append(keep_nearest(pairs, direction_B3, structure_N, max_neighbors, complete))
            pending_N[found[-1].receiver_E] = False
        pending_P = rows(pending_N)
        if not len(pending_P):
            break
        searched_B = torch.zeros_like(pbc_B3[:, 0]).index_fill(0, structure_N[pending_P], True)
        receivers, senders = wrapped.select(pending_P), wrapped.select(rows(searched_B[structure_N]))
    return fill_slots(found, len(structure_N))


@torch.no_grad()
def neighborhoods_from_edges(
    edge_index_2E: Tensor,
    cell_offsets_E3: Tensor,
    positions_N3: Tensor,
    cell_B33: Tensor,
    structure_N: Tensor,
    *,
    cutoff: float,
    max_neighbors: int,
) -> Neighborhoods:
    """Take the nearest neighbours of every atom from edges that were stored with the structures.

    Args:
        edge_index_2E: Rows in the batch of the senders (first) and receivers (second), shape (2, E), int64.
        cell_offsets_E3: Periodic image of each edge's sender, shape (E, 3), whole numbers of any dtype: the vector
            from receiver to sender is ``positions[sender] - positions[receiver] + offset @ cell``.
        positions_N3: The positions that the edges were made for, shape (N, 3), Å.
        cell_B33: Lattice vectors as rows, shape (B, 3, 3), Å.
        structure_N: Structure of every atom, shape (N,), int64, non-decreasing.
        cutoff: Largest distance of a neighbour, Å.
        max_neighbors: Most neighbours of an atom.

    Returns:
        The neighbourhoods, by the same rules as from ``find_neighbors``. Edges beyond the cutoff, and edges of an atom
        to itself in the same image, are left out.

    Raises:
        StructureError: If a position or cell is not finite, an edge does not fit the structures, or two atoms coincide.
    """
    check_finite(positions_N3, cell_B33, structure_N)
    check_edges(edge_index_2E, cell_offsets_E3, structure_N)
    sender_E, receiver_E = edge_index_2E
    dtype = positions_N3.dtype
    positions_N3, cell_E33 = positions_N3.double(), cell_B33.double()[structure_N[receiver_E]]
    offset_E3 = (cell_offsets_E3.unsqueeze(-1) * cell_E33).sum(1)
    vector_E3 = positions_N3[sender_E] - positions_N3[receiver_E] + offset_E3
    pairs = Pairs(
        receiver_E=receiver_E,
        sender_E=sender_E,
        distance_E=vector_E3.norm(dim=1),
        difference_E6=torch.cat([vector_E3, cell_offsets_E3.double()], dim=1),
    )
    is_self_E = (sender_E == receiver_E) & ~cell_offsets_E3.any(1)
    order_E = receiver_E.argsort(stable=True)
    is_near_E = (pairs.distance_E <= rounded_up(cutoff, dtype)) & ~is_self_E
    pairs = pairs.select(order_E[is_near_E[order_E]])
    direction_B3 = cell_B33.new_tensor(TIE_DIRECTION, dtype=torch.float64).expand(len(cell_B33), 3)
    return fill_slots([keep_nearest(pairs, direction_B3, structure_N, max_neighbors, torch.inf)], len(structure_N))


def tie_directions(lattice: Lattice) -> Tensor:
    """Return ``TIE_DIRECTION`` in the triangular frame of each structure, shape (B, 3)."""
    direction_31 = lattice.rotation_B33.new_tensor(TIE_DIRECTION).unsqueeze(-1)
    return (lattice.rotation_B33 * direction_31).sum(1)


def rounded_up(cutoff: float, dtype: torch.dtype) -> float:
    """Widen the cutoff by the rounding of the input, so that a crystal's shell exactly at the cutoff counts as a whole.

    Wider margins would protect such shells in larger float32 structures too, but include what is truly farther.

    Args:
        cutoff: Å.
        dtype: Type in which the positions were given.

    Returns:
        Å. Wider by 1e-6 Å for float32, and by 1e-9 Å, which covers the search's own rounding, for float64.
    """
    return cutoff + max(1e-9, USUAL_COORDINATE * torch.finfo(dtype).eps)


def search_radii(limit: float, max_neighbors: int) -> list[float]:
    """Return growing search radii (Å), the first of which usually holds enough neighbours. The last is the limit."""
    radius = (3 * max_neighbors / (4 * math.pi * TYPICAL_DENSITY)) ** (1 / 3)
    radii = []
    while radius < 0.8 * limit:
        radii.append(radius)
        radius *= RADIUS_GROWTH
    return [*radii, limit]


def keep_nearest(pairs: Pairs, direction_B3: Tensor, structure_N: Tensor, max_neighbors: int, complete: float) -> Pairs:
    """Keep the nearest neighbours of each receiver for whom they are certain.

    Args:
        pairs: All neighbours of some receivers up to a distance, by receiver.
        direction_B3: ``TIE_DIRECTION`` in the frame of each structure's vectors.
        structure_N: Structure of every atom, int64.
        max_neighbors: Most neighbours of an atom.
        complete: The distance up to which the pairs are complete, Å; infinite if there are no others.

    Returns:
        The pairs kept, by receiver and from slot 0 on.

    Raises:
        StructureError: If two atoms coincide.
    """
    check_apart(pairs.receiver_E, pairs.sender_E, pairs.distance_E, structure_N)
    direction_E3 = per_site(direction_B3, structure_N.index_select(0, pairs.receiver_E))
    projection_E = (pairs.difference_E6[:, :3] * direction_E3).sum(1)
    rows_E = nearest(pairs.receiver_E, pairs.distance_E, projection_E, max_neighbors=max_neighbors, complete=complete)
    return pairs.select(rows_E)


def fill_slots(found: list[Pairs], atoms: int) -> Neighborhoods:
    """Lay out pairs, which are in slot order within each receiver, as one row of slots per atom."""
    receiver_E = torch.cat([pairs.receiver_E for pairs in found])
    slot_E = torch.cat([count_within(pairs.receiver_E) for pairs in found])
    width = int(slot_E.max()) + 1 if len(slot_E) else 1
    own_N1 = torch.arange(atoms, device=receiver_E.device).unsqueeze(1)
    sender_NK = own_N1.repeat(1, width)
    place_E = receiver_E * width + slot_E
    sender_NK.view(-1).index_copy_(0, place_E, torch.cat([pairs.sender_E for pairs in found]))
    shift_NK3 = torch.zeros(atoms, width, 3, dtype=torch.int64, device=receiver_E.device)
    shift_NK3.view(-1, 3).index_copy_(0, place_E, torch.cat([pairs.difference_E6[:, 3:] for pairs in found]).long())
    used_N1 = torch.bincount(receiver_E, minlength=atoms).unsqueeze(1)
    return Neighborhoods(
        sender_NK=sender_NK, shift_NK3=shift_NK3, mask_NK=torch.arange(width, device=receiver_E.device) < used_N1
    )
