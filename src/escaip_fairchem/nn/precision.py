"""The arithmetic of matrix products, for a block of code at a time: never a switch that stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch autocast and TF32 off for a block: positions, distances and angles in bf16 would be off by tenths of an Å.

    Args:
        device: Where the block's tensors are. Devices without autocast (``meta``) need nothing.
    """
    if device.type == "meta":
        yield
        return
    with torch.autocast(device.type, enabled=False), tf32(False):
        yield


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Say whether matrix products of float32 tensors may run in TF32 within a block, on hardware that has it.

    What counts is where a product runs: a backward pass has the setting of the block that it is started in.

    Args:
        allowed: 10 bits of mantissa for the factors and several times the speed, or float32.
    """
    if not _has_old_switch():
        before = torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = "tf32" if allowed else "ieee"
        try:
            yield
        finally:
            torch.backends.cuda.matmul.fp32_precision = before
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def tf32_is_allowed() -> bool:
    """Whether matrix products of float32 tensors may run in TF32 here."""
    if not _has_old_switch():
        return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")
    return torch.get_float32_matmul_precision() != "highest"


def _has_old_switch() -> bool:
    """Whether the process-wide switch works; it raises once somebody has used the finer ones of torch ≥ 2.9."""
    try:
        torch.get_float32_matmul_precision()
    except RuntimeError:
        return False
    return True


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The type that matrix products are cast to on a device, None without autocast."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float32 if they were in less."""
    return values if values.dtype == torch.float64 else values.float()
