"""The one helper of ``torch_scatter.utils`` that fairchem uses."""

from __future__ import annotations

import torch

from escaip_fairchem._imports import missing_attribute


def broadcast(src: torch.Tensor, other: torch.Tensor, dim: int) -> torch.Tensor:
    """View an index so that it has one entry for every entry of another tensor.

    Args:
        src: The index. One-dimensional: its axis becomes axis ``dim`` of ``other``. Otherwise its axes are the leading
            axes of ``other``.
        other: The tensor whose shape is wanted.
        dim: The axis of ``other`` that a one-dimensional index runs along; may be negative.

    Returns:
        An expanded view of ``src``, shape of ``other``.
    """
    if src.dim() == 1:
        axis = dim + other.dim() if dim < 0 else dim
        shape = [1] * other.dim()
        shape[axis] = src.size(0)
    else:
        shape = list(src.shape) + [1] * (other.dim() - src.dim())
    return src.reshape(shape).expand_as(other)


def __getattr__(name: str) -> object:
    """Name the package to install for whatever is not defined here."""
    raise missing_attribute("torch_scatter", f"torch_scatter.utils.{name}")
