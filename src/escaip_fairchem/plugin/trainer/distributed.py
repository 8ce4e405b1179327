"""The few collective operations of training that fairchem's own helpers do not cover without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed
from fairchem.core.common import distutils
from torch import Tensor

from escaip_fairchem import errors

Result = TypeVar("Result")


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


def on_master(action: Callable[[], Result]) -> Result | None:
    """Do something on the first process; where it fails there, every process raises and none is left waiting.

    Collective.

    Args:
        action: What only the first process does.

    Returns:
        Its result on the first process, None on the others.

    Raises:
        EScAIPError: It failed on the first process; other errors than these are raised there as they are.
    """
    result, error = None, None
    if distutils.is_master():
        try:
            result = action()
        except Exception as caught:  # noqa: BLE001 -- raised again as soon as the others know
            error = caught
    problem = from_master(None if error is None else (type(error).__name__, str(error)))
    if error is not None:
        raise error
    if problem is not None:
        name, text = problem
        if hasattr(errors, name):
            raise getattr(errors, name)(text)
        raise errors.EScAIPError(f"the first process failed: {name}: {text}")
    return result
