"""Which neighbours stay when an atom has more of them than slots: the nearest, with a rule for equal distances.

The atoms of a crystal have shells of equally far neighbours. Where the last slot falls into a shell, only some of its
members can stay, and rounding must not choose them: the same structure has to get the same neighbours alone and in a
batch, shifted, wrapped into its cell in another way, with its atoms in another order, in float32 and in float64.

The rule: with d the distance of the neighbour that fills the last slot, all nearer than d − ``TIE_TOLERANCE`` stay.
Those within ``TIE_TOLERANCE`` of d are tied and fill the remaining slots in the order of their position along
``TIE_DIRECTION``. So nobody is left out in favour of one who is more than twice the tolerance farther.

No rule that keeps some members of a symmetric shell can be invariant under rotation: a rotation that maps the shell
onto itself would have to map the chosen ones onto themselves. Rotated crystals can therefore keep other members. Nor
can a tolerance make the choice continuous: it moves the jump from equal distances, which symmetry makes common, to
distances that differ by just the tolerance, which are as rare as any other.

Legend: E pairs, T tied pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

TIE_TOLERANCE = 5e-5
"""Å. Above the rounding of float32 coordinates (about 1e-5 Å), below the differences that structures really have."""

MOST_EMPTY_ROOM = 8
"""Pairs are sorted in a table with a row for each receiver, unless it would be as many times larger than the pairs."""

TIE_DIRECTION = (0.5583, 0.1145, 0.8217)
"""The direction that orders tied neighbours, a unit vector.

It was searched for among random ones, such that the members of a shell differ by at least 0.02 Å along it, a thousand
times the rounding. That holds for every shell up to 8 Å of simple, body- and face-centred cubic, hexagonal
close-packed, diamond, rock salt, caesium chloride, zinc blende and fluorite crystals in ASE's primitive, cubic and
surface orientations, with the axes exchanged cyclically too. A simple direction such as (1, 1, 1) leaves ties there.
"""


def nearest(
    receiver_E: Tensor, distance_E: Tensor, projection_E: Tensor, *, max_neighbors: int, complete: float
) -> Tensor:
    """Choose the nearest neighbours of each receiver by the rule of this module.

    Args:
        receiver_E: Row of each pair's receiver, ascending, int64.
        distance_E: Å.
        projection_E: Component of the vector from receiver to sender along ``TIE_DIRECTION``, Å.
        max_neighbors: Most neighbours of a receiver.
        complete: The distance up to which the pairs are complete, Å; infinite if there are no others. Receivers
            whose choice could change with farther pairs get no neighbours.

    Returns:
        Rows of the chosen pairs, by receiver, then by distance, then (where distances are equal to the last bit) by
        projection, int64. So the order depends on the pairs alone and not on the order in which they were found.
    """
    slot_E = count_within(receiver_E)
    order_E = distance_order(receiver_E, distance_E, projection_E, slot_E)
    distance_E = distance_E.index_select(0, order_E)
    last_slot_E = torch.arange(len(slot_E), device=slot_E.device) - slot_E + max_neighbors - 1
    clamped_E = last_slot_E.clamp(max=len(slot_E) - 1)
    full_E = (clamped_E == last_slot_E) & (receiver_E[clamped_E] == receiver_E)
    limit_E = torch.where(full_E, distance_E[clamped_E], torch.inf)

    chosen_E = distance_E < limit_E - TIE_TOLERANCE
    tied_T = ((distance_E - limit_E).abs() <= TIE_TOLERANCE).nonzero().squeeze(1)
    first_slot_T = slot_E[tied_T] - count_within(receiver_E[tied_T])
    preference_T = lexicographic_order(projection_E[order_E[tied_T]], receiver_E[tied_T])
    # The preference permutes each receiver's ties among themselves, so that receivers and first slots stay in place.
    chosen_E[tied_T[preference_T]] = first_slot_T + count_within(receiver_E[tied_T]) < max_neighbors
    if complete < torch.inf:
        chosen_E &= limit_E + TIE_TOLERANCE < complete
    return order_E[chosen_E]


def distance_order(receiver_E: Tensor, distance_E: Tensor, projection_E: Tensor, slot_E: Tensor) -> Tensor:
    """Return the order by receiver, then distance, then (for distances equal to the last bit) projection.

    Args:
        receiver_E: Ascending.
        distance_E: Å.
        projection_E: Å.
        slot_E: Number of each pair within its receiver's.
    """
    if not len(slot_E):
        return slot_E
    row_E = (slot_E == 0).cumsum(0) - 1
    rows, width = (torch.stack([row_E[-1], slot_E.max()]) + 1).tolist()
    if rows * width <= MOST_EMPTY_ROOM * len(slot_E):
        # Many short rows are sorted several times faster than one long list.
        table_RW = distance_E.new_full((rows, width), torch.inf)
        table_RW.view(-1).index_copy_(0, row_E * width + slot_E, distance_E)
        table_RW, column_RW = table_RW.sort(dim=1, stable=True)
        first_R1 = (slot_E == 0).nonzero()
        is_pair_RW = table_RW < torch.inf
        if not bool(((table_RW[:, 1:] == table_RW[:, :-1]) & is_pair_RW[:, 1:]).any()):
            return (column_RW + first_R1)[is_pair_RW]
    order_E = torch.argsort(projection_E, stable=True)
    return order_E[lexicographic_order(distance_E[order_E], receiver_E[order_E])]


def lexicographic_order(minor_E: Tensor, major_E: Tensor) -> Tensor:
    """Return the stable order that sorts by the major key and, where it is equal, by the minor one."""
    order_E = torch.argsort(minor_E, stable=True)
    return order_E[torch.argsort(major_E[order_E], stable=True)]


def count_within(receiver_E: Tensor) -> Tensor:
    """Count 0, 1, … within each run of equal values. ``receiver_E`` must be sorted."""
    return torch.arange(len(receiver_E), device=receiver_E.device) - torch.searchsorted(receiver_E, receiver_E)
