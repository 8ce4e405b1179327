"""Normalisation over the feature axis."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from escaip_fairchem.errors import ConfigError, nearest
from escaip_fairchem.nn.precision import at_least_float32


class RMSNorm(nn.Module):
    """``x / rms(x) · weight`` over the last axis (Zhang & Sennrich 2019).

    The mean square is taken in at least float32: squares of bf16 or fp16 features lose too much.
    """

    # The float32 machine epsilon whatever the dtype, so that float32 and float64 agree.
    EPSILON = torch.finfo(torch.float32).eps

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise features of shape (..., size); same shape and dtype."""
        wide = at_least_float32(inputs)
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.EPSILON)
        return (wide * scale * self.weight).to(inputs.dtype)


NORMALIZATIONS = ("layernorm", "none", "rmsnorm", "skip")


def build_norm(name: str, size: int) -> nn.Module:
    """Make the normalisation of that name.

    Args:
        name: ``rmsnorm``, ``layernorm``, or ``none`` (which the original calls ``skip``).
        size: Number of features.

    Raises:
        ConfigError: The name is unknown.
    """
    if name == "rmsnorm":
        return RMSNorm(size)
    if name == "layernorm":
        return nn.LayerNorm(size)
    if name in ("none", "skip"):
        return nn.Identity()
    raise ConfigError(f"normalization: {name!r} is unknown{nearest(name, NORMALIZATIONS)}")
