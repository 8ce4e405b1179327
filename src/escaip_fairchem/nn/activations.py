"""Element-wise non-linearities, by the names used in the YAML files."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from escaip_fairchem.errors import ConfigError, nearest


class SquaredReLU(nn.Module):
    """``relu(x)²`` (So et al. 2021, Primer)."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the activation; any shape, same dtype."""
        return functional.relu(inputs).square()


class StarReLU(nn.Module):
    """``0.8944 relu(x)² − 0.4472``: zero mean and unit variance for a standard normal input.

    The two constants are those of Yu et al. 2022 (MetaFormer baselines), not learned.
    """

    SCALE = 0.8944
    BIAS = -0.4472

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the activation; any shape, same dtype."""
        return self.SCALE * functional.relu(inputs).square() + self.BIAS


class SmeLU(nn.Module):
    """Smooth ReLU (Shamir et al. 2022): a parabola on [−β, β], 0 below and x above, with β = 2."""

    BETA = 2.0

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the activation; any shape, same dtype."""
        parabola = (inputs + self.BETA).square() / (4.0 * self.BETA)
        line = torch.where(inputs > self.BETA, inputs, torch.zeros_like(inputs))
        return torch.where(inputs.abs() <= self.BETA, parabola, line)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "smelu": SmeLU,
    "squared_relu": SquaredReLU,
    "star_relu": StarReLU,
}


def build_activation(name: str) -> nn.Module:
    """Make the activation of that name.

    Args:
        name: One of :data:`ACTIVATIONS`.

    Returns:
        A module without parameters.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"activation: {name!r} is unknown{nearest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]()
