"""The term of an edge's attributes that depends on its distance alone.

``W concat[act(W_d rbf(d)), …]``: the product with the first part is a function of one number per layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from escaip_fairchem.nn.fast.products import accumulate

if TYPE_CHECKING:
    from escaip_fairchem.nn.blocks import GraphAttention, InputBlock


class DistanceTerms(Protocol):
    """The distance term of every layer that reads edge attributes."""

    def add_to(self, total_CKH: Tensor, reader: InputBlock | GraphAttention, layer: int, atoms: slice) -> Tensor:
        """Add the term of a layer for the slots of some atoms.

        Args:
            total_CKH: Shape (C, K, H); overwritten where no gradients are recorded.
            reader: The layer.
            layer: Its number: 0 is the input block, l the l-th attention block.
            atoms: The atoms.
        """
        ...

    def constants(self) -> list[Tensor]:
        """The tensors that belong to the parameters and not to the batch."""
        ...


@dataclass(frozen=True, kw_only=True)
class BasisTerms:
    """The distance terms by way of the radial basis.

    Attributes:
        radial_NKG: Radial basis, shape (N, K, G). 0 in slots without a neighbour.
    """

    radial_NKG: Tensor

    def add_to(self, total_CKH: Tensor, reader: InputBlock | GraphAttention, layer: int, atoms: slice) -> Tensor:
        """Add the term of a layer, see :class:`DistanceTerms`."""
        embedded_CKD = reader.edge_attributes.distance_embedding(self.radial_NKG[atoms])
        weight = reader.edge_linear.affine.weight[:, : embedded_CKD.shape[-1]]
        return accumulate(total_CKH, embedded_CKD, weight)

    def constants(self) -> list[Tensor]:
        """None, see :class:`DistanceTerms`."""
        return []


def without_underflow(radial_NKG: Tensor) -> Tensor:
    """Set values to zero that are far below any rounding, before products of them underflow.

    Most Gaussians are all but zero at most distances, and processors take a hundred times as long to multiply numbers
    below the normal range: the gradient of W_d took a fifth of a training step.
    """
    return radial_NKG.masked_fill(radial_NKG.detach().abs() < torch.finfo(radial_NKG.dtype).tiny ** 0.4, 0.0)
