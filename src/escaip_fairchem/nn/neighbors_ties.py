"""Which neighbours stay when an atom has more of them than slots: the nearest, with a rule for equal distances.

Legend: P receivers, E pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TIE_TOLERANCE = 1e-4
"""Neighbours whose distances differ by at most this (Å) count as equally far."""

TIE_DIRECTION = (0.5257311121, 0.6724985119, 0.5209444942)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Pairs in the order in which they fill the slots of their receivers.

    Attributes:
        order_E: Rows of the pairs, by receiver and then from the nearest to the farthest neighbour, int64.
        receiver_E: Receiver of each pair, in that order.
        slot_E: Slot of each pair, in that order: 0, 1, … within each receiver, int64.
        shell_end_E: Largest distance that is tied with each pair's own, in that order, Å.
    """

    order_E: Tensor
    receiver_E: Tensor
    slot_E: Tensor
    shell_end_E: Tensor

    def settled(self, max_neighbors: int, radius: float) -> Tensor:
        """Tell whether a receiver's nearest neighbours are certain although only those within a radius were ranked.

        Args:
            max_neighbors: How many neighbours are wanted.
            radius: Every pair up to this distance was ranked, Å.

        Returns:
            For each pair in the order of the ranking, whether its receiver has enough neighbours and nothing farther
            than the radius can be tied with the last of them. Bool.
        """
        rows_E = torch.arange(len(self.slot_E), device=self.slot_E.device)
        last_E = (rows_E - self.slot_E + max_neighbors - 1).clamp(max=len(rows_E) - 1)
        enough_E = self.receiver_E[last_E] == self.receiver_E
        return (
            enough_E & (self.slot_E[last_E] == max_neighbors - 1) & (self.shell_end_E[last_E] + TIE_TOLERANCE < radius)
        )


def rank_by_distance(receiver_E: Tensor, distance_E: Tensor, projection_E: Tensor) -> Ranking:
    """Rank the neighbours of every receiver by distance, and equally far ones by their projection.

    Args:
        receiver_E: Row of each pair's receiver, int64.
        distance_E: Å.
        projection_E: Component of the vector from receiver to sender along ``TIE_DIRECTION``, Å.

    Returns:
        The ranking.
    """
    order_E = lexicographic_order(distance_E, receiver_E)
    sorted_E = distance_E[order_E]
    new_shell_E = (sorted_E.diff() > TIE_TOLERANCE) | (receiver_E[order_E].diff() != 0)
    shell_E = torch.cat([new_shell_E.new_zeros(len(order_E[:1])), new_shell_E]).cumsum(0)
    shell_end_S = sorted_E.new_zeros(len(order_E)).scatter_reduce(0, shell_E, sorted_E, "amax")
    # Pairs move within their shells only: receivers and shells stay where they are.
    order_E = order_E[lexicographic_order(projection_E[order_E], shell_E)]
    receiver_E = receiver_E[order_E]
    return Ranking(
        order_E=order_E,
        receiver_E=receiver_E,
        slot_E=slot_numbers(receiver_E),
        shell_end_E=shell_end_S[shell_E],
    )


def slot_numbers(receiver_E: Tensor) -> Tensor:
    """Count 0, 1, … within each receiver. ``receiver_E`` must be sorted."""
    return torch.arange(len(receiver_E), device=receiver_E.device) - torch.searchsorted(receiver_E, receiver_E)


def lexicographic_order(minor_E: Tensor, major_E: Tensor) -> Tensor:
    """Return the stable order that sorts by the major key and, where it is equal, by the minor one."""
    order_E = torch.argsort(minor_E, stable=True)
    return order_E[torch.argsort(major_E[order_E], stable=True)]
