"""From who-is-near-whom to the tensors that the network reads.

Shape legend, used throughout ``nn``: N atoms in the batch, K neighbour slots of an atom, B structures,
E stored edges, A attention heads, D, H, G feature widths. Slot (i, k) holds the edge from sender j to receiver i.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from escaip_fairchem.nn.neighbors import Neighborhoods
from escaip_fairchem.nn.systems import Systems


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Neighbourhoods with their geometry.

    An atom without neighbours gets one slot that holds itself, with direction (1, 0, 0), so that its
    element still reaches the network; ``mask_NK`` counts that slot, ``edge_mask_NK`` does not.

    Attributes:
        numbers_N: Atomic numbers, shape (N,).
        structure_N: Row of the structure of each atom, shape (N,).
        num_structures: Number of structures B.
        sender_NK: Row of the sender atom, shape (N, K). Empty slots hold the receiver.
        mask_NK: True for slots that take part, shape (N, K), at least one per atom.
        edge_mask_NK: True for slots that hold a real neighbour, shape (N, K).
        distance_NK: Distance to the sender in Å, shape (N, K). 0 in slots without a neighbour.
        direction_NK3: Unit vector from sender to receiver, shape (N, K, 3).
    """

    numbers_N: Tensor
    structure_N: Tensor
    num_structures: int
    sender_NK: Tensor
    mask_NK: Tensor
    edge_mask_NK: Tensor
    distance_NK: Tensor
    direction_NK3: Tensor


def build_graph(systems: Systems, neighborhoods: Neighborhoods) -> Graph:
    """Compute distances and directions, differentiable in positions and cells.

    Args:
        systems: The structures.
        neighborhoods: Which atoms are near which, from :mod:`escaip_fairchem.nn.neighbors`.
    """
    sender_NK, edge_mask_NK = neighborhoods.sender_NK, neighborhoods.mask_NK
    vector_NK3 = edge_vectors(systems, neighborhoods)
    placeholder_3 = vector_NK3.new_tensor([1.0, 0.0, 0.0])
    # Slots without a neighbour take no part in the geometry: a zero vector would have a NaN gradient.
    vector_NK3 = torch.where(edge_mask_NK.unsqueeze(-1), vector_NK3, placeholder_3)
    length_NK = vector_NK3.norm(dim=-1)
    is_isolated_N1 = ~edge_mask_NK.any(dim=1, keepdim=True)
    is_first_slot_K = torch.arange(sender_NK.shape[1], device=sender_NK.device) == 0
    return Graph(
        numbers_N=systems.numbers_N,
        structure_N=systems.structure_N,
        num_structures=systems.num_structures,
        sender_NK=sender_NK,
        mask_NK=edge_mask_NK | (is_isolated_N1 & is_first_slot_K),
        edge_mask_NK=edge_mask_NK,
        distance_NK=torch.where(edge_mask_NK, length_NK, torch.zeros_like(length_NK)),
        direction_NK3=vector_NK3 / length_NK.unsqueeze(-1),
    )


def edge_vectors(systems: Systems, neighborhoods: Neighborhoods) -> Tensor:
    """Vectors from sender to receiver, ``r_i − (r_j + shift · cell)``, in Å, shape (N, K, 3)."""
    positions_N3 = systems.positions_N3
    shift_NK3 = neighborhoods.shift_NK3.to(positions_N3.dtype)
    # No matrix products, whose backward pass would be rounded where TF32 is allowed.
    offset_NK3 = (shift_NK3.unsqueeze(-1) * systems.cell_B33[systems.structure_N].unsqueeze(1)).sum(dim=-2)
    return positions_N3.unsqueeze(1) - positions_N3[neighborhoods.sender_NK] - offset_NK3
