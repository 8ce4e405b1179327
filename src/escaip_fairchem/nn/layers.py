"""Layers that every block is made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from escaip_fairchem.nn.activations import build_activation


class Dense(nn.Sequential):
    """``dropout(act(W x + b))``: a linear layer with its activation."""

    def __init__(self, in_size: int, out_size: int, *, activation: str, dropout: float = 0.0) -> None:
        super().__init__(nn.Linear(in_size, out_size), build_activation(activation), nn.Dropout(dropout))

    @property
    def affine(self) -> nn.Linear:
        """The linear layer alone."""
        linear: nn.Linear = self[0]
        return linear

    def activate(self, preactivation: Tensor) -> Tensor:
        """What follows the linear layer: ``dropout(act(x))``."""
        activated: Tensor = self[2](self[1](preactivation))
        return activated


class FeedForward(nn.Sequential):
    """Two linear layers with an activation between them: ``W₂ dropout(act(W₁ x))``."""

    def __init__(self, size: int, *, multiplier: int, activation: str, dropout: float = 0.0) -> None:
        super().__init__(
            Dense(size, multiplier * size, activation=activation, dropout=dropout),
            nn.Linear(multiplier * size, size),
            nn.Dropout(dropout),
        )

    @property
    def dense(self) -> Dense:
        """The first layer with its activation."""
        dense: Dense = self[0]
        return dense

    @property
    def last(self) -> nn.Linear:
        """The second layer."""
        linear: nn.Linear = self[1]
        return linear


class StochasticDepth(nn.Module):
    """Skip a residual branch for whole structures at random while training (Huang et al. 2016).

    The branches that stay are scaled up by 1/(1 − p), so that the expectation is unchanged.

    Args:
        probability: Chance p that a structure's branch is skipped.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor, structure_N: Tensor, num_structures: int) -> Tensor:
        """Drop or scale a branch of shape (N, ...), all atoms of a structure alike."""
        if not self.training or self.probability == 0.0:
            return branch
        keep = 1.0 - self.probability
        kept_B = torch.empty(num_structures, dtype=branch.dtype, device=branch.device).bernoulli_(keep) / keep
        return branch * kept_B[structure_N].reshape(-1, *[1] * (branch.dim() - 1))
