"""The forward pass where no gradients are recorded: a few atoms at a time, and in place.

Within a block, the edges of an atom see nothing of other atoms but the node states at its beginning. So all work on
edges, from messages to readouts and their projection, is done for a chunk of atoms at a time: its intermediate results
stay in the cache, and all that lasts are the edge states and the projections' sums. Residual branches are summed
inside the matrix products, and the weight of a norm is multiplied into the layer that follows it.

Legend: C atoms of a chunk, E = C · K their slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from escaip_fairchem.nn.fast.mixing import Mixing
from escaip_fairchem.nn.fast.products import accumulate
from escaip_fairchem.nn.fast.projection import DepthwiseProjection, ProjectionSum
from escaip_fairchem.nn.fast.terms import (
    Inputs,
    MessageTerms,
    attribute_terms,
    embedded_edges,
    mean_over_slots,
    slot_weights,
)
from escaip_fairchem.nn.normalization import RMSNorm
from escaip_fairchem.nn.precision import at_least_float32

if TYPE_CHECKING:
    from escaip_fairchem.nn.attention import NeighborhoodAttention
    from escaip_fairchem.nn.blocks import AttentionBlock, InputBlock
    from escaip_fairchem.nn.layers import FeedForward
    from escaip_fairchem.nn.model import Backbone
    from escaip_fairchem.nn.readout import Projection

CHUNK_VALUES = {"cpu": 2**20}
"""Values of one edge state worked on together, by device type: enough for efficient products, 4 MB in float32."""

CHUNK_VALUES_ELSEWHERE = 2**26


@dataclass(frozen=True)
class Chunk:
    """Some consecutive atoms.

    Attributes:
        index: Which chunk it is.
        atoms: Their rows.
        weights_C1K: Weights of the slots in a mean, shape (C, 1, K).
    """

    index: int
    atoms: slice
    weights_C1K: Tensor

    def mean(self, values_EH: Tensor) -> Tensor:
        """Mean over the used slots, shape (C, H); values of empty slots are finite."""
        values_CKH = values_EH.view(self.weights_C1K.shape[0], -1, values_EH.shape[-1])
        return mean_over_slots(values_CKH, self.weights_C1K)


def split(inputs: Inputs, width: int, *, unrolled: bool) -> list[Chunk]:
    """Split a batch into chunks whose edge states, of a width H, have a size that fits the device.

    Where the chunks are unrolled into a list of operations, they are as large as on a GPU: each adds to the list.
    """
    mask_NK = inputs.graph.mask_NK
    values = CHUNK_VALUES_ELSEWHERE if unrolled else CHUNK_VALUES.get(mask_NK.device.type, CHUNK_VALUES_ELSEWHERE)
    size = max(values // (width * mask_NK.shape[1]), 1)
    parts = slot_weights(mask_NK, inputs.order_NL.dtype).split(size)
    return [Chunk(i, slice(i * size, i * size + len(part)), part) for i, part in enumerate(parts)]


class EdgeStream:
    """The edge states of all chunks, and what has been collected for their projection.

    Each is one tensor for all chunks. Many small ones would leave holes in the process's memory that nothing else fits.

    Args:
        backbone: Whose readouts are used.
        projection: The projection of the edges.
        chunks: The chunks.
        slots: Number of slots K of an atom.
    """

    def __init__(self, backbone: Backbone, projection: Projection, chunks: list[Chunk], slots: int) -> None:
        self.readouts = [readout.edge for readout in backbone.readouts]
        self.projection = DepthwiseProjection(projection)
        self.slots = slots
        self._rows = [slice(chunk.atoms.start * slots, chunk.atoms.stop * slots) for chunk in chunks]
        self._size = (self._rows[-1].stop if chunks else 0, backbone.config.hidden_size)
        self._states_EH: Tensor | None = None
        self._totals_EH: Tensor | None = None
        self._collected: list[ProjectionSum] = []

    def begin(self, chunk: Chunk, state_EH: Tensor) -> None:
        """Take the first state of a chunk, the chunks in their order."""
        if self._states_EH is None:
            self._states_EH = state_EH.new_empty(self._size)
            self._totals_EH = at_least_float32(state_EH.new_empty(0)).new_zeros(self._size)
        self.state(chunk).copy_(state_EH)
        assert self._totals_EH is not None
        self._collected.append(self.projection.start(self._totals_EH[self._rows[chunk.index]]))

    def state(self, chunk: Chunk) -> Tensor:
        """The present state of a chunk, to be changed in place."""
        assert self._states_EH is not None
        return self._states_EH[self._rows[chunk.index]]

    def collect(self, chunk: Chunk, depth: int, branch: Branch) -> None:
        """Collect the readout of a chunk's state."""
        readout_EH = branch.added_to(self.state(chunk), in_place=False)
        self.projection.add(self._collected[chunk.index], depth, readout_EH)

    def finish(self) -> Tensor:
        """Project; shape (N, K, H)."""
        self._states_EH = None
        assert self._totals_EH is not None
        for rows, collected in zip(self._rows, self._collected, strict=True):
            self._totals_EH[rows] = self.projection.finish(collected)
        features_NKH: Tensor = self._totals_EH.unflatten(0, (-1, self.slots))
        return features_NKH


class Branch:
    """``FFN(norm x)`` with the norm's weight multiplied into the first layer.

    Args:
        norm: The norm.
        ffn: The feed-forward layer.
    """

    def __init__(self, norm: nn.Module, ffn: FeedForward) -> None:
        self.norm = norm
        self.dense = ffn.dense
        self.last = ffn.last
        first = self.dense.affine
        is_weighted = isinstance(norm, (RMSNorm, nn.LayerNorm))
        self.weight: Tensor = first.weight * norm.weight if is_weighted else first.weight
        is_shifted = isinstance(norm, nn.LayerNorm)
        self.bias: Tensor = functional.linear(norm.bias, first.weight, first.bias) if is_shifted else first.bias

    def added_to(self, inputs_EH: Tensor, *, in_place: bool) -> Tensor:
        """``x + FFN(norm x)``."""
        hidden_EF = self.dense.activate(functional.linear(self._normed(inputs_EH), self.weight, self.bias))
        outputs_EH = inputs_EH.add_(self.last.bias) if in_place else inputs_EH + self.last.bias
        return accumulate(outputs_EH, hidden_EF, self.last.weight)

    def _normed(self, inputs_EH: Tensor) -> Tensor:
        if isinstance(self.norm, RMSNorm):
            norm_E1 = torch.linalg.vector_norm(at_least_float32(inputs_EH), dim=-1, keepdim=True)
            mean_square_E1 = norm_E1.square_() / inputs_EH.shape[-1]
            scale_E1: Tensor = torch.rsqrt(mean_square_E1 + self.norm.EPSILON)
            return (inputs_EH * scale_E1).to(inputs_EH.dtype)
        if isinstance(self.norm, nn.LayerNorm):
            return functional.layer_norm(inputs_EH, self.norm.normalized_shape, eps=self.norm.eps)
        return inputs_EH


class Attention:
    """Attention with fewer biases to add.

    That of the keys adds the same to all logits of a query, which softmax ignores. That of the values passes through,
    as the weights of a query add up to 1, and becomes part of the bias of the output.

    Args:
        attention: The layer whose parameters are read.
    """

    def __init__(self, attention: NeighborhoodAttention) -> None:
        self.attention = attention
        out = attention.out_projection
        self.query_bias, _, value_bias = attention.in_projection.bias.chunk(3)
        self.out_weight, self.out_bias = out.weight, functional.linear(value_bias, out.weight, out.bias)

    def mix(self, messages_CKH: Tensor, mixing: Mixing, atoms: slice) -> Tensor:
        """Attend; shape (E, H), before the output's projection and without the values' bias."""
        projected_CKJ = functional.linear(messages_CKH, self.attention.in_projection.weight)
        projected_CKJ[..., : len(self.query_bias)] += self.query_bias
        return mixing.mix(self.attention, projected_CKJ, atoms).flatten(0, 1)

    def add_to(self, total: Tensor, mixed: Tensor) -> Tensor:
        """Project what :meth:`mix` gave, or its mean, and add it, in place."""
        return accumulate(total.add_(self.out_bias), mixed, self.out_weight)


def infer(backbone: Backbone, inputs: Inputs, *, traced: bool = False) -> tuple[Tensor, Tensor | None]:
    """Compute node features (N, H) and edge features (N, K, H), the latter None in models without edge stream.

    Args:
        backbone: Whose parameters are used.
        inputs: What it reads.
        traced: Whether a compiler writes down what is done here.
    """
    chunks = split(inputs, backbone.config.hidden_size, unrolled=traced)
    stream = None
    if backbone.edge_projection is not None:
        stream = EdgeStream(backbone, backbone.edge_projection, chunks, inputs.graph.sender_NK.shape[1])
    node_projection = DepthwiseProjection(backbone.node_projection)
    node_sum = node_projection.start()

    node_NH = input_states(backbone.input_block, inputs, chunks, stream)
    node_projection.add(node_sum, 0, backbone.readouts[0].node(node_NH))
    for depth, (block, readout) in enumerate(zip(backbone.blocks, backbone.readouts[1:], strict=True), start=1):
        node_NH = block_states(block, node_NH, inputs, chunks, stream, depth)
        node_projection.add(node_sum, depth, readout.node(node_NH))
    return node_projection.finish(node_sum), None if stream is None else stream.finish()


def input_states(block: InputBlock, inputs: Inputs, chunks: list[Chunk], stream: EdgeStream | None) -> Tensor:
    """Make the first states; returns the nodes' (N, H)."""
    terms = attribute_terms(block, inputs)
    branch = Branch(block.ffn_norm, block.ffn)
    readout = None if stream is None else edge_readout(stream, 0)
    means = []
    for chunk in chunks:
        edge_EH = embedded_edges(block, inputs, terms, 0, chunk.atoms).flatten(0, 1)
        edge_EH = branch.added_to(edge_EH, in_place=True)
        means.append(chunk.mean(edge_EH))
        if stream is not None and block.edge_norm is not None and readout is not None:
            stream.begin(chunk, block.edge_norm(edge_EH))
            stream.collect(chunk, 0, readout)
    node_NH: Tensor = block.node_norm(torch.cat(means))
    return node_NH


def block_states(
    block: AttentionBlock, node_NH: Tensor, inputs: Inputs, chunks: list[Chunk], stream: EdgeStream | None, depth: int
) -> Tensor:
    """Update node and edge states; returns the nodes' (N, H)."""
    attention = Attention(block.graph_attention.attention)
    terms = MessageTerms(block.graph_attention, block.attention_norm(node_NH), inputs)
    branch = None if block.edge_ffn is None or block.edge_norm is None else Branch(block.edge_norm, block.edge_ffn)
    readout = None if stream is None else edge_readout(stream, depth)
    means = []
    for chunk in chunks:
        mixed_EH = attention.mix(terms.messages(depth, chunk.atoms), inputs.mixing, chunk.atoms)
        means.append(chunk.mean(mixed_EH))
        if stream is not None and branch is not None and readout is not None:
            attention.add_to(stream.state(chunk), mixed_EH)
            branch.added_to(stream.state(chunk), in_place=True)
            stream.collect(chunk, depth, readout)
    # The mean of the updates is the update of the mean, for the weights of a mean add up to 1.
    node_NH = attention.add_to(node_NH.clone(), torch.cat(means))
    return Branch(block.node_norm, block.node_ffn).added_to(node_NH, in_place=True)


def edge_readout(stream: EdgeStream, depth: int) -> Branch:
    """The residual branch of a depth's edge readout."""
    part = stream.readouts[depth]
    assert part is not None
    return Branch(part.norm, part.ffn)
