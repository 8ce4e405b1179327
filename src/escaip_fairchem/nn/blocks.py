"""Input block and graph attention blocks.

The node state is (N, H), the edge state (N, K, H). Messages are built from node states and edge attributes
alone, so the edge state never reaches the nodes: a model whose heads read no edges does without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from escaip_fairchem.nn.attention import NeighborhoodAttention
from escaip_fairchem.nn.basis import masked_mean
from escaip_fairchem.nn.edge_attributes import EdgeAttributes, EdgeAttributeSizes, EdgeFeatures
from escaip_fairchem.nn.graph import Graph
from escaip_fairchem.nn.layers import Dense, FeedForward, StochasticDepth
from escaip_fairchem.nn.normalization import build_norm


@dataclass(frozen=True, kw_only=True)
class State:
    """What passes from block to block.

    Attributes:
        node_NH: Node state, shape (N, H).
        edge_NKH: Edge state, shape (N, K, H), or None in models without edge stream.
    """

    node_NH: Tensor
    edge_NKH: Tensor | None


@dataclass(frozen=True, kw_only=True)
class BlockSettings:
    """Numbers shared by the blocks of a model.

    Attributes:
        hidden_size: Width H of node and edge states.
        sizes: Widths of the edge attributes.
        activation: Name of the activation.
        normalization: Name of the normalisation.
        dropout: Dropout probability in dense layers.
        has_edge_stream: Whether the edge state is kept, because a head reads it.
    """

    hidden_size: int
    sizes: EdgeAttributeSizes
    activation: str
    normalization: str
    dropout: float
    has_edge_stream: bool


class InputBlock(nn.Module):
    """``e = act(W attributes); e ← e + FFN(norm e); h_i = mean_k e_ik``; then both are normed."""

    def __init__(self, settings: BlockSettings) -> None:
        super().__init__()
        width, act = settings.hidden_size, settings.activation
        self.edge_attributes = EdgeAttributes(settings.sizes, activation=act)
        self.edge_linear = Dense(settings.sizes.total, width, activation=act, dropout=settings.dropout)
        self.ffn_norm = build_norm(settings.normalization, width)
        self.ffn = FeedForward(width, multiplier=1, activation=act, dropout=settings.dropout)
        self.node_norm = build_norm(settings.normalization, width)
        self.edge_norm = build_norm(settings.normalization, width) if settings.has_edge_stream else None

    def forward(self, graph: Graph, features: EdgeFeatures) -> State:
        """Make the first node and edge states."""
        edge_NKH = self.edge_linear(self.edge_attributes(graph, features))
        edge_NKH = edge_NKH + self.ffn(self.ffn_norm(edge_NKH))
        node_NH = masked_mean(edge_NKH, graph.mask_NK)
        return State(
            node_NH=self.node_norm(node_NH),
            edge_NKH=None if self.edge_norm is None else self.edge_norm(edge_NKH),
        )


class GraphAttention(nn.Module):
    """Messages along the edges of each atom, mixed by attention among them.

    ``message_ik = act(W_m concat[act(W_e attributes_ik), act(W_n concat[h_j, h_i])])``
    """

    def __init__(self, settings: BlockSettings, attention: NeighborhoodAttention) -> None:
        super().__init__()
        width, act, dropout = settings.hidden_size, settings.activation, settings.dropout
        self.edge_attributes = EdgeAttributes(settings.sizes, activation=act)
        self.edge_linear = Dense(settings.sizes.total, width, activation=act, dropout=dropout)
        self.node_linear = Dense(2 * width, width, activation=act, dropout=dropout)
        self.message_linear = Dense(2 * width, width, activation=act, dropout=dropout)
        self.attention = attention

    def forward(self, node_NH: Tensor, graph: Graph, features: EdgeFeatures) -> Tensor:
        """Attend; node states (N, H) to updates of the edges (N, K, H)."""
        receiver_NKH = node_NH.unsqueeze(1).expand(-1, graph.sender_NK.shape[1], -1)
        pair_NKH = self.node_linear(torch.cat((node_NH[graph.sender_NK], receiver_NKH), dim=-1))
        edge_NKH = self.edge_linear(self.edge_attributes(graph, features))
        message_NKH = self.message_linear(torch.cat((edge_NKH, pair_NKH), dim=-1))
        update_NKH: Tensor = self.attention(message_NKH, features.cosines_NKK, graph.mask_NK)
        return update_NKH


class AttentionBlock(nn.Module):
    """Pre-norm graph attention, then pre-norm feed-forward layers for nodes and edges, each with a residual."""

    def __init__(
        self,
        settings: BlockSettings,
        attention: NeighborhoodAttention,
        *,
        ffn_multiplier: int,
        stochastic_depth: float,
    ) -> None:
        super().__init__()
        width, norm = settings.hidden_size, settings.normalization
        self.attention_norm = build_norm(norm, width)
        self.graph_attention = GraphAttention(settings, attention)
        self.node_norm = build_norm(norm, width)
        self.node_ffn = FeedForward(
            width, multiplier=ffn_multiplier, activation=settings.activation, dropout=settings.dropout
        )
        self.edge_norm = build_norm(norm, width) if settings.has_edge_stream else None
        self.edge_ffn = (
            FeedForward(width, multiplier=ffn_multiplier, activation=settings.activation, dropout=settings.dropout)
            if settings.has_edge_stream
            else None
        )
        self.stochastic_depth = StochasticDepth(stochastic_depth)

    def forward(self, state: State, graph: Graph, features: EdgeFeatures) -> State:
        """Update node and edge states."""
        update_NKH = self.graph_attention(self.attention_norm(state.node_NH), graph, features)
        node_NH = state.node_NH + self.drop(masked_mean(update_NKH, graph.mask_NK), graph)
        node_NH = node_NH + self.drop(self.node_ffn(self.node_norm(node_NH)), graph)
        if state.edge_NKH is None or self.edge_ffn is None or self.edge_norm is None:
            return State(node_NH=node_NH, edge_NKH=None)
        edge_NKH = state.edge_NKH + self.drop(update_NKH, graph)
        edge_NKH = edge_NKH + self.drop(self.edge_ffn(self.edge_norm(edge_NKH)), graph)
        return State(node_NH=node_NH, edge_NKH=edge_NKH)

    def drop(self, branch: Tensor, graph: Graph) -> Tensor:
        """Stochastic depth of a residual branch (N, ...)."""
        dropped: Tensor = self.stochastic_depth(branch, graph.structure_N, graph.num_structures)
        return dropped
