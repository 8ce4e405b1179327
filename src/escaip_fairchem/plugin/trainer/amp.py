"""Arithmetic precision of a trainer's passes: float32 with or without TF32, or autocast to bfloat16 or float16."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from escaip_fairchem.errors import ConfigError, nearest
from escaip_fairchem.nn.precision import tf32

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ALIASES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What the model computes in; losses and metrics are float32 always.

    Attributes:
        name: ``fp32``, ``bf16`` or ``fp16``.
        tf32: Whether matrix products of float32 tensors may run in TF32, on GPUs that have it. If not they never do,
            whatever the process allows elsewhere.
    """

    name: str = "fp32"
    tf32: bool = False

    @classmethod
    def from_settings(cls, optim: Mapping[str, Any], *, amp: bool) -> Precision:
        """Read ``optim.amp_dtype``, ``optim.tf32``, and fairchem's ``--amp``, which alone means fp16.

        Raises:
            ConfigError: An unknown name, or a switch that is neither true nor false.
        """
        wanted, allowed = optim.get("amp_dtype"), optim.get("tf32", False)
        if not isinstance(allowed, bool):
            raise ConfigError(f"optim.tf32: {allowed!r} is neither true nor false")
        if wanted is None:
            return cls(name="fp16" if amp else "fp32", tf32=allowed)
        name = _ALIASES.get(str(wanted), str(wanted))
        if name not in DTYPES:
            raise ConfigError(f"optim.amp_dtype: unknown value {wanted!r}{nearest(name, DTYPES)}")
        return cls(name=name, tf32=allowed)

    @contextmanager
    def forward(self, device: torch.device) -> Iterator[None]:
        """Context of a forward pass on a device."""
        enabled = self.name != "fp32"
        with self.backward(), torch.autocast(device.type, DTYPES[self.name] if enabled else None, enabled):
            yield

    def backward(self) -> AbstractContextManager[None]:
        """Context of the backward pass: autocast's types follow from the forward pass, TF32 does not."""
        return tf32(self.tf32)

    def grad_scaler(self, device: torch.device) -> GradScaler | None:
        """The loss scaling that float16's narrow range needs; None for the other types."""
        return GradScaler(device.type) if self.name == "fp16" else None


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Widen half-precision results for losses and metrics; float32 and float64 pass through."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
