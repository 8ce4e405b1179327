"""Nested dataclasses as lists of their tensors, and back: what compilers and CUDA graphs take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in a tensor, dataclass or list, in a fixed order; other values hold none."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list):
        return [tensor for item in value for tensor in tensors_in(item)]
    if is_dataclass(value):
        return [tensor for field in fields(value) for tensor in tensors_in(getattr(value, field.name))]
    return []


def with_tensors(value: T, tensors: Iterator[Tensor]) -> T:
    """The same with other tensors, in the order of :func:`tensors_in`."""
    changed: Any = value
    if isinstance(value, Tensor):
        changed = next(tensors)
    elif isinstance(value, list):
        changed = [with_tensors(item, tensors) for item in value]
    elif is_dataclass(value) and not isinstance(value, type):
        changed = replace(value, **{f.name: with_tensors(getattr(value, f.name), tensors) for f in fields(value)})
    result: T = changed
    return result
