"""Batches of any size in few shapes: what a compiler or a CUDA graph needs, made by dummy atoms and empty slots.

Legend: N atoms of the batch, P ≥ N rows after padding, M ≥ K slots after padding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from escaip_fairchem.nn.graph import Graph

SMALLEST_STEP = 8
"""Numbers of rows are multiples of this, as matrix units like them."""

STEPS_PER_DOUBLING = 8
"""Sizes between a power of two and the next: padding adds less than an eighth, apart from the smallest step."""


def bucket(size: int) -> int:
    """The smallest allowed number of rows that is not below a size."""
    step = max(SMALLEST_STEP, (1 << max(size, 1).bit_length() - 1) // STEPS_PER_DOUBLING)
    rows: int = -(-max(size, 1) // step) * step
    return rows


def pad_graph(graph: Graph, max_neighbors: int) -> Graph:
    """Pad a batch to the shapes that all batches of nearly its size have.

    Real atoms see nothing of it: no dummy atom is anybody's neighbour, and empty slots take no part. Only what is drawn
    at random in training (dropout, stochastic depth) is drawn for the padding, too, so that other numbers reach the
    real atoms than without it.

    Args:
        graph: The batch.
        max_neighbors: Number of slots M that every batch gets; those that have more keep theirs.

    Returns:
        Shape (P, M) in the place of (N, K). Dummy atoms are isolated, of element 0, and in a structure of their own,
        the last of a number that depends on P alone as long as structures are not fewer than their atoms.
    """
    atoms, slots = graph.sender_NK.shape
    more_atoms, more_slots = bucket(atoms) - atoms, max(max_neighbors - slots, 0)
    num_structures = max(bucket(atoms), bucket(graph.num_structures + 1))
    edge_mask_PM = _pad(graph.edge_mask_NK, more_atoms, more_slots)
    row_P1 = torch.arange(atoms + more_atoms, device=edge_mask_PM.device).unsqueeze(1)
    slot_M = torch.arange(slots + more_slots, device=edge_mask_PM.device)
    is_padding_PM = (row_P1 >= atoms) | (slot_M >= slots)
    placeholder_3 = torch.eye(3, dtype=graph.direction_NK3.dtype, device=edge_mask_PM.device)[0]
    direction_PM3 = functional.pad(graph.direction_NK3, (0, 0, 0, more_slots, 0, more_atoms))
    return Graph(
        numbers_N=functional.pad(graph.numbers_N, (0, more_atoms)),
        structure_N=functional.pad(graph.structure_N, (0, more_atoms), value=num_structures - 1),
        num_structures=num_structures,
        sender_NK=torch.where(edge_mask_PM, _pad(graph.sender_NK, more_atoms, more_slots), row_P1),
        mask_NK=_pad(graph.mask_NK, more_atoms, more_slots) | ((row_P1 >= atoms) & (slot_M == 0)),
        edge_mask_NK=edge_mask_PM,
        distance_NK=_pad(graph.distance_NK, more_atoms, more_slots),
        direction_NK3=torch.where(is_padding_PM.unsqueeze(-1), placeholder_3, direction_PM3),
    )


def _pad(values_NK: Tensor, more_atoms: int, more_slots: int) -> Tensor:
    """Append zeros (False)."""
    return functional.pad(values_NK, (0, more_slots, 0, more_atoms))
