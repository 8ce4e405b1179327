"""Readouts of every depth, and their projection to the features that the heads read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from escaip_fairchem.nn.blocks import State
from escaip_fairchem.nn.layers import Dense, FeedForward
from escaip_fairchem.nn.normalization import build_norm


class ResidualFeedForward(nn.Module):
    """``x + FFN(norm x)``."""

    def __init__(self, size: int, *, multiplier: int, activation: str, normalization: str, dropout: float) -> None:
        super().__init__()
        self.norm = build_norm(normalization, size)
        self.ffn = FeedForward(size, multiplier=multiplier, activation=activation, dropout=dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        """Transform features of shape (..., size)."""
        transformed: Tensor = inputs + self.ffn(self.norm(inputs))
        return transformed


class Readout(nn.Module):
    """One depth's readout: of the nodes, and of the edges where a head reads them."""

    def __init__(
        self,
        size: int,
        *,
        multiplier: int,
        activation: str,
        normalization: str,
        dropout: float,
        has_edge_stream: bool,
    ) -> None:
        super().__init__()

        def part() -> ResidualFeedForward:
            return ResidualFeedForward(
                size, multiplier=multiplier, activation=activation, normalization=normalization, dropout=dropout
            )

        self.node = part()
        self.edge = part() if has_edge_stream else None

    def forward(self, state: State) -> State:
        """Read a state out; shapes stay."""
        if self.edge is None or state.edge_NKH is None:
            return State(node_NH=self.node(state.node_NH), edge_NKH=None)
        return State(node_NH=self.node(state.node_NH), edge_NKH=self.edge(state.edge_NKH))


class Projection(nn.Module):
    """``norm(act(W norm(concat of all depths)))``."""

    def __init__(self, size: int, depths: int, *, activation: str, normalization: str, dropout: float) -> None:
        super().__init__()
        self.in_norm = build_norm(normalization, depths * size)
        self.linear = Dense(depths * size, size, activation=activation, dropout=dropout)
        self.out_norm = build_norm(normalization, size)

    def forward(self, depths: Sequence[Tensor]) -> Tensor:
        """Join features (..., H) of all depths into (..., H)."""
        projected: Tensor = self.out_norm(self.linear(self.in_norm(torch.cat(tuple(depths), dim=-1))))
        return projected
