"""The invariant description of an edge that the input block and every attention block embed anew."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from escaip_fairchem.nn.graph import Graph
from escaip_fairchem.nn.layers import Dense


@dataclass(frozen=True, kw_only=True)
class EdgeFeatures:
    """Raw numbers of the edges and atoms, computed once per forward pass.

    Attributes:
        radial_NKG: Radial basis of the distance, shape (N, K, G). 0 in slots without a neighbour.
        order_NL: Bond-orientational order of each atom, shape (N, lmax + 1).
        cosines_NKK: Cosines between the edges of an atom, shape (N, K, K).
    """

    radial_NKG: Tensor
    order_NL: Tensor
    cosines_NKK: Tensor


@dataclass(frozen=True, kw_only=True)
class EdgeAttributeSizes:
    """Widths of the parts of an edge attribute.

    Attributes:
        radial: Number of radial basis functions G.
        distance: Width of the embedded distance.
        orders: Number of bond-orientational orders, lmax + 1.
        orientation: Width of an embedded bond-orientational order.
        elements: Number of elements that can be embedded.
        element: Width of an element embedding.
    """

    radial: int
    distance: int
    orders: int
    orientation: int
    elements: int
    element: int

    @property
    def total(self) -> int:
        """Width of an edge attribute."""
        return self.distance + 2 * self.orientation + 2 * self.element


class EdgeAttributes(nn.Module):
    """``concat[act(W_d rbf(d_ik)), act(W_s BOO(j)), E_s[Z_j], act(W_t BOO(i)), E_t[Z_i]]``."""

    def __init__(self, sizes: EdgeAttributeSizes, *, activation: str) -> None:
        super().__init__()
        self.distance_embedding = Dense(sizes.radial, sizes.distance, activation=activation)
        self.sender_orientation_embedding = Dense(sizes.orders, sizes.orientation, activation=activation)
        self.receiver_orientation_embedding = Dense(sizes.orders, sizes.orientation, activation=activation)
        self.sender_element_embedding = nn.Embedding(sizes.elements, sizes.element)
        self.receiver_element_embedding = nn.Embedding(sizes.elements, sizes.element)

    def forward(self, graph: Graph, features: EdgeFeatures) -> Tensor:
        """Embed all edges; shape (N, K, sizes.total)."""
        sender_NKD = torch.cat(
            (
                self.sender_orientation_embedding(features.order_NL),
                self.sender_element_embedding(graph.numbers_N),
            ),
            dim=-1,
        )[graph.sender_NK]
        receiver_ND = torch.cat(
            (
                self.receiver_orientation_embedding(features.order_NL),
                self.receiver_element_embedding(graph.numbers_N),
            ),
            dim=-1,
        )
        receiver_NKD = receiver_ND.unsqueeze(1).expand(-1, graph.sender_NK.shape[1], -1)
        return torch.cat((self.distance_embedding(features.radial_NKG), sender_NKD, receiver_NKD), dim=-1)
