"""The forward pass where gradients are recorded: everything per atom is done per atom.

The backward pass needs all intermediate results, so nothing is done in place, and all atoms are worked on together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from escaip_fairchem.nn.blocks import State
from escaip_fairchem.nn.fast.projection import DepthwiseProjection
from escaip_fairchem.nn.fast.rmsnorm import rms_norm
from escaip_fairchem.nn.fast.terms import (
    Inputs,
    MessageTerms,
    attribute_terms,
    embedded_edges,
    mean_over_slots,
    slot_weights,
)
from escaip_fairchem.nn.normalization import RMSNorm

if TYPE_CHECKING:
    from escaip_fairchem.nn.blocks import AttentionBlock, InputBlock
    from escaip_fairchem.nn.layers import FeedForward
    from escaip_fairchem.nn.model import Backbone

ALL = slice(None)


def record(backbone: Backbone, inputs: Inputs, *, traced: bool = False) -> tuple[Tensor, Tensor | None]:
    """Compute node features (N, H) and edge features (N, K, H), the latter None in models without edge stream.

    Args:
        backbone: Whose parameters are used.
        inputs: What it reads.
        traced: Whether a compiler writes down what is done here, and makes backward passes of its own.
    """
    node_projection = DepthwiseProjection(backbone.node_projection)
    node_sum = node_projection.start()
    edge_projection = None if backbone.edge_projection is None else DepthwiseProjection(backbone.edge_projection)
    edge_sum = None if edge_projection is None else edge_projection.start()
    # Training on forces that are derivatives differentiates twice.
    residual = Residual(once=not (backbone.config.is_conservative or traced))
    state = input_state(backbone.input_block, inputs, residual)
    for depth, readout in enumerate(backbone.readouts):
        if depth > 0:
            state = block_state(backbone.blocks[depth - 1], state, inputs, depth, residual)
        node_projection.add(node_sum, depth, residual(state.node_NH, readout.node.norm, readout.node.ffn))
        if edge_projection is not None and edge_sum is not None:
            assert state.edge_NKH is not None
            edge_projection.add(edge_sum, depth, residual(state.edge_NKH, readout.edge.norm, readout.edge.ffn))
    if edge_projection is None or edge_sum is None:
        return node_projection.finish(node_sum), None
    return node_projection.finish(node_sum), edge_projection.finish(edge_sum)


@dataclass(frozen=True, kw_only=True)
class Residual:
    """Residual branches of feed-forward layers.

    Attributes:
        once: Whether the result will be differentiated once at most.
    """

    once: bool

    def normed(self, norm: nn.Module, inputs: Tensor) -> Tensor:
        """``norm x``, by the cheaper way where it can be differentiated often enough."""
        normed: Tensor = rms_norm(norm, inputs) if self.once and isinstance(norm, RMSNorm) else norm(inputs)
        return normed

    def branch(self, inputs: Tensor, norm: nn.Module, ffn: FeedForward) -> Tensor:
        """``FFN(norm x)``."""
        branch: Tensor = ffn(self.normed(norm, inputs))
        return branch

    def __call__(self, inputs: Tensor, norm: nn.Module, ffn: FeedForward) -> Tensor:
        """``x + FFN(norm x)``."""
        return inputs + self.branch(inputs, norm, ffn)


def input_state(block: InputBlock, inputs: Inputs, residual: Residual) -> State:
    """Make the first state."""
    edge_NKH = embedded_edges(block, inputs, attribute_terms(block, inputs), 0, ALL)
    edge_NKH = residual(edge_NKH, block.ffn_norm, block.ffn)
    weights_N1K = slot_weights(inputs.graph.mask_NK, inputs.order_NL.dtype)
    return State(
        node_NH=residual.normed(block.node_norm, mean_over_slots(edge_NKH, weights_N1K)),
        edge_NKH=None if block.edge_norm is None else residual.normed(block.edge_norm, edge_NKH),
    )


def block_state(block: AttentionBlock, state: State, inputs: Inputs, depth: int, residual: Residual) -> State:
    """Update node and edge states."""
    graph, attention = inputs.graph, block.graph_attention.attention
    terms = MessageTerms(block.graph_attention, residual.normed(block.attention_norm, state.node_NH), inputs)
    mixed_NKH = inputs.mixing.mix(attention, attention.in_projection(terms.messages(depth, ALL)), ALL)
    # The mean of the updates is the update of the mean, for the weights of a mean add up to 1.
    mean_NH = mean_over_slots(mixed_NKH, slot_weights(graph.mask_NK, inputs.order_NL.dtype))
    update_NH = attention.out_projection(mean_NH)
    node_NH = state.node_NH + block.drop(update_NH, graph)
    node_NH = node_NH + block.drop(residual.branch(node_NH, block.node_norm, block.node_ffn), graph)
    if state.edge_NKH is None or block.edge_ffn is None or block.edge_norm is None:
        return State(node_NH=node_NH, edge_NKH=None)
    edge_NKH = state.edge_NKH + block.drop(attention.out_projection(mixed_NKH), graph)
    edge_NKH = edge_NKH + block.drop(residual.branch(edge_NKH, block.edge_norm, block.edge_ffn), graph)
    return State(node_NH=node_NH, edge_NKH=edge_NKH)
