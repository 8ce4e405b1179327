"""The forward pass where gradients are recorded: everything per atom is done per atom.

The backward pass needs all intermediate results, so nothing is done in place, and all atoms are worked on together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from escaip_fairchem.nn.basis import masked_mean
from escaip_fairchem.nn.blocks import State
from escaip_fairchem.nn.fast.projection import DepthwiseProjection
from escaip_fairchem.nn.fast.terms import Inputs, MessageTerms, attribute_terms, embedded_edges

if TYPE_CHECKING:
    from escaip_fairchem.nn.blocks import AttentionBlock, InputBlock
    from escaip_fairchem.nn.model import Backbone

ALL = slice(None)


def record(backbone: Backbone, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
    """Compute node features (N, H) and edge features (N, K, H), the latter None in models without edge stream."""
    node_projection = DepthwiseProjection(backbone.node_projection)
    node_sum = node_projection.start()
    edge_projection = None if backbone.edge_projection is None else DepthwiseProjection(backbone.edge_projection)
    edge_sum = None if edge_projection is None else edge_projection.start()
    state = input_state(backbone.input_block, inputs)
    for depth, readout in enumerate(backbone.readouts):
        if depth > 0:
            state = block_state(backbone.blocks[depth - 1], state, inputs, depth)
        read = readout(state)
        node_projection.add(node_sum, depth, read.node_NH)
        if edge_projection is not None and edge_sum is not None:
            edge_projection.add(edge_sum, depth, read.edge_NKH)
    if edge_projection is None or edge_sum is None:
        return node_projection.finish(node_sum), None
    return node_projection.finish(node_sum), edge_projection.finish(edge_sum)


def input_state(block: InputBlock, inputs: Inputs) -> State:
    """Make the first state."""
    edge_NKH = embedded_edges(block, inputs, attribute_terms(block, inputs), 0, ALL)
    edge_NKH = edge_NKH + block.ffn(block.ffn_norm(edge_NKH))
    return State(
        node_NH=block.node_norm(masked_mean(edge_NKH, inputs.graph.mask_NK)),
        edge_NKH=None if block.edge_norm is None else block.edge_norm(edge_NKH),
    )


def block_state(block: AttentionBlock, state: State, inputs: Inputs, depth: int) -> State:
    """Update node and edge states."""
    terms = MessageTerms(block.graph_attention, block.attention_norm(state.node_NH), inputs)
    update_NKH = block.graph_attention.attention(terms.messages(depth, ALL), inputs.cosines_NKK, inputs.graph.mask_NK)
    return block.with_update(state, update_NKH, inputs.graph)
