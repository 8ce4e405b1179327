"""Messages with everything per atom done per atom: products of concatenations, taken apart.

Legend: C atoms at hand, all or some of the N of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from escaip_fairchem.nn.fast.distances import DistanceTerms
from escaip_fairchem.nn.fast.mixing import Mixing
from escaip_fairchem.nn.fast.products import accumulate, gather_pairs
from escaip_fairchem.nn.precision import full_precision

if TYPE_CHECKING:
    from escaip_fairchem.nn.blocks import GraphAttention, InputBlock
    from escaip_fairchem.nn.graph import Graph


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the layers read besides states.

    Attributes:
        graph: The neighbourhoods.
        order_NL: Bond-orientational order, shape (N, lmax + 1).
        mixing: How the edges of an atom attend to each other.
        distances: The distance terms of all layers.
    """

    graph: Graph
    order_NL: Tensor
    mixing: Mixing
    distances: DistanceTerms


class MessageTerms:
    """``act(W_m concat[act(W_e attributes_ik), act(W_n concat[h_j, h_i])])`` with all per-atom products done first.

    Args:
        layer: The layer whose parameters are read.
        node_NH: Normed node states, shape (N, H).
        inputs: What else it reads.
    """

    def __init__(self, layer: GraphAttention, node_NH: Tensor, inputs: Inputs) -> None:
        self.layer = layer
        self.inputs = inputs
        self.attribute_terms = attribute_terms(layer, inputs)
        linear = layer.node_linear.affine
        from_sender, from_receiver = linear.weight.split(linear.out_features, dim=1)
        self.sender_NH = functional.linear(node_NH, from_sender)
        self.receiver_NH = functional.linear(node_NH, from_receiver, linear.bias)

    def messages(self, depth: int, atoms: slice) -> Tensor:
        """Messages along the edges of some atoms, shape (C, K, H)."""
        layer, inputs = self.layer, self.inputs
        edge_CKH = embedded_edges(layer, inputs, self.attribute_terms, depth, atoms)
        pair_CKH = gather_pairs(self.sender_NH, self.receiver_NH[atoms], inputs.graph.sender_NK[atoms])
        pair_CKH = layer.node_linear.activate(pair_CKH)
        linear = layer.message_linear.affine
        from_edge, from_pair = linear.weight.split(linear.out_features, dim=1)
        total_CKH = functional.linear(edge_CKH, from_edge, linear.bias)
        total_CKH = accumulate(total_CKH, pair_CKH, from_pair)
        return layer.message_linear.activate(total_CKH)


def attribute_terms(layer: InputBlock | GraphAttention, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Products of the edge attributes' per-atom parts, of atoms as senders and as receivers; (N, H) each.

    The layer's bias is in the receivers' term.
    """
    # A thousandth of the work: what is known of the atoms is not rounded before it is summed.
    with full_precision(inputs.order_NL.device):
        return _attribute_terms(layer, inputs)


def _attribute_terms(layer: InputBlock | GraphAttention, inputs: Inputs) -> tuple[Tensor, Tensor]:
    attributes, linear = layer.edge_attributes, layer.edge_linear.affine
    order_NL, numbers_N = inputs.order_NL, inputs.graph.numbers_N
    sender_ND = torch.cat(
        (attributes.sender_orientation_embedding(order_NL), attributes.sender_element_embedding(numbers_N)), dim=-1
    )
    receiver_ND = torch.cat(
        (attributes.receiver_orientation_embedding(order_NL), attributes.receiver_element_embedding(numbers_N)), dim=-1
    )
    width = sender_ND.shape[-1]
    _, from_sender, from_receiver = linear.weight.split([linear.in_features - 2 * width, width, width], dim=1)
    return functional.linear(sender_ND, from_sender), functional.linear(receiver_ND, from_receiver, linear.bias)


def embedded_edges(
    layer: InputBlock | GraphAttention,
    inputs: Inputs,
    terms: tuple[Tensor, Tensor],
    depth: int,
    atoms: slice,
) -> Tensor:
    """``act(W_e attributes)`` of the edges of some atoms, from :func:`attribute_terms`; shape (C, K, H)."""
    sender_NH, receiver_NH = terms
    total_CKH = gather_pairs(sender_NH, receiver_NH[atoms], inputs.graph.sender_NK[atoms])
    total_CKH = inputs.distances.add_to(total_CKH, layer, depth, atoms)
    edge_CKH: Tensor = layer.edge_linear.activate(total_CKH)
    return edge_CKH


def slot_weights(mask_NK: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights of a mean over the used slots as the left factor of a matrix product, shape (N, 1, K)."""
    used_NK = mask_NK.to(dtype)
    return (used_NK / used_NK.sum(dim=1, keepdim=True)).unsqueeze(1)


def mean_over_slots(values_CKH: Tensor, weights_C1K: Tensor) -> Tensor:
    """Mean over the used slots, shape (C, H), in the precision of the weights; values of empty slots are finite.

    Args:
        values_CKH: Shape (C, K, H).
        weights_C1K: From :func:`slot_weights`, in at least float32.
    """
    if values_CKH.dtype != weights_C1K.dtype:
        # Neither weights nor sums are rounded to what the values have.
        used_CK1 = (weights_C1K > 0).transpose(1, 2)
        total_CH = values_CKH.masked_fill(~used_CK1, 0.0).sum(dim=1, dtype=weights_C1K.dtype)
        return total_CH * weights_C1K.amax(dim=2)
    with full_precision(values_CKH.device):
        return torch.bmm(weights_C1K, values_CKH).squeeze(1)
