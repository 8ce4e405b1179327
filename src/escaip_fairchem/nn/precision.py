"""Where full precision matters although the rest runs under autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off for a block: positions, distances and angles in bf16 would be off by tenths of an Å.

    Args:
        device: Where the block's tensors are. Devices without autocast (``meta``) need nothing.
    """
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
