"""The few collective operations of training that fairchem's own helpers do not cover without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch.distributed
from fairchem.core.common import distutils
from torch import Tensor


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all processes, left on the device; the tensor itself for a single process."""
    if distutils.get_world_size() > 1:
        tensor = tensor.clone()
        torch.distributed.all_reduce(tensor)
    return tensor


def gather_everywhere(value: Any) -> list[Any]:
    """What every process holds, in rank order, on every process. Collective."""
    world_size = distutils.get_world_size()
    if world_size == 1:
        return [value]
    gathered: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def from_master(value: Any) -> Any:
    """What the first process holds, on every process. Collective."""
    if distutils.get_world_size() == 1:
        return value
    holder = [value]
    torch.distributed.broadcast_object_list(holder, src=0)
    return holder[0]
