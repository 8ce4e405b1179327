"""Arithmetic precision of forward passes: float32, or autocast to bfloat16 or float16."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from escaip_fairchem.errors import ConfigError, nearest

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ALIASES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What the model computes in; losses and metrics are float32 always.

    Attributes:
        name: ``fp32``, ``bf16`` or ``fp16``.
    """

    name: str = "fp32"

    @classmethod
    def from_settings(cls, optim: Mapping[str, Any], *, amp: bool) -> Precision:
        """Read ``optim.amp_dtype``, and fairchem's ``--amp``, which alone means fp16.

        Raises:
            ConfigError: An unknown name.
        """
        wanted = optim.get("amp_dtype")
        if wanted is None:
            return cls(name="fp16" if amp else "fp32")
        name = _ALIASES.get(str(wanted), str(wanted))
        if name not in DTYPES:
            raise ConfigError(f"optim.amp_dtype: unknown value {wanted!r}{nearest(name, DTYPES)}")
        return cls(name=name)

    def autocast(self, device: torch.device) -> torch.autocast:
        """Context of a forward pass on a device."""
        enabled = self.name != "fp32"
        return torch.autocast(device.type, dtype=DTYPES[self.name] if enabled else None, enabled=enabled)

    def grad_scaler(self, device: torch.device) -> GradScaler | None:
        """The loss scaling that float16's narrow range needs; None for the other types."""
        return GradScaler(device.type) if self.name == "fp16" else None


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Widen half-precision results for losses and metrics; float32 and float64 pass through."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
