"""Stand-in for ``torch_scatter`` in plain PyTorch: the functions that fairchem-core 1.10 calls.

Used only where the real package is not installed. Everything here can be compiled by ``torch.jit.script``, and every
result has first and second derivatives.
"""

from __future__ import annotations

import torch

from escaip_fairchem._imports import missing_attribute
from escaip_fairchem.errors import MissingDependencyError

from .utils import broadcast

__version__ = "0.0.0+escaip.standin"
__all__ = ["scatter", "segment_coo", "segment_csr"]


def scatter(
    src: torch.Tensor,
    index: torch.Tensor,
    dim: int = -1,
    out: torch.Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> torch.Tensor:
    """Reduce all entries of ``src`` that share an index along one axis.

    Args:
        src: Values, any shape.
        index: Group of every entry, int64: the shape of ``src``, its leading axes, or one axis that lies along ``dim``.
        dim: The axis that is reduced.
        out: Tensor to reduce into, in place. Its content takes part; groups without entries keep it (a mean adds the
            entries to it and divides by their number).
        dim_size: Number of groups. By default the largest index plus one. Ignored if ``out`` is given.
        reduce: ``sum`` or ``add``, ``mean``, ``min``, ``max``. The gradient of ``min`` and ``max`` goes to the first
            entry that attains the value; NaN is passed on.

    Returns:
        ``src`` with axis ``dim`` replaced by the groups. Groups without entries are 0 unless ``out`` is given.

    Raises:
        MissingDependencyError: ``reduce`` is none of the above.
    """
    axis = dim + src.dim() if dim < 0 else dim
    index = broadcast(index, src, axis)
    if reduce == "sum" or reduce == "add":
        return _accumulator(src, index, axis, out, dim_size).scatter_add_(axis, index, src)
    if reduce == "mean":
        return _mean(src, index, axis, _accumulator(src, index, axis, out, dim_size))
    if reduce == "max" or reduce == "min":
        return _extremum(src, index, axis, out, _group_count(index, dim_size), reduce == "max")
    raise MissingDependencyError(
        f"reduce='{reduce}' is not covered by escaip_fairchem's pure-PyTorch stand-in for torch_scatter "
        "(sum, add, mean, min, max are); install the real one with `pip install torch-scatter` (it compiles C++)"
    )


def segment_coo(
    src: torch.Tensor,
    index: torch.Tensor,
    out: torch.Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> torch.Tensor:
    """Reduce runs of equal index along the last axis of ``index``.

    Args:
        src: Values. Its leading axes are those of ``index``.
        index: Group of every entry along its last axis, int64, sorted. (The order is not relied upon.)
        out: Not covered; has to be None.
        dim_size: Number of groups. By default the largest index plus one.
        reduce: As in `scatter`.

    Returns:
        ``src`` with the last axis of ``index`` replaced by the groups. Groups without entries are 0.

    Raises:
        MissingDependencyError: ``out`` is given, or ``reduce`` is not covered.
    """
    if out is not None:
        raise MissingDependencyError(
            "segment_coo(out=…) is not covered by escaip_fairchem's pure-PyTorch stand-in for torch_scatter; "
            "install the real one with `pip install torch-scatter` (it compiles C++)"
        )
    return scatter(src, index, index.dim() - 1, None, dim_size, reduce)


def segment_csr(
    src: torch.Tensor, indptr: torch.Tensor, out: torch.Tensor | None = None, reduce: str = "sum"
) -> torch.Tensor:
    """Reduce consecutive stretches of the first axis.

    Args:
        src: Values, shape (E, …).
        indptr: Where the stretches begin and the last one ends, int64, shape (S + 1,), not decreasing.
        out: Not covered; has to be None.
        reduce: As in `scatter`.

    Returns:
        Shape (S, …). Empty stretches are 0.

    Raises:
        MissingDependencyError: ``out`` is given, ``indptr`` has several axes, or ``reduce`` is not covered.
    """
    if out is not None or indptr.dim() != 1:
        raise MissingDependencyError(
            "segment_csr with out=… or an indptr of several axes is not covered by escaip_fairchem's pure-PyTorch "
            "stand-in for torch_scatter; install the real one with `pip install torch-scatter` (it compiles C++)"
        )
    length = indptr[1:] - indptr[:-1]
    segment = torch.repeat_interleave(torch.arange(length.size(0), device=src.device), length)
    return scatter(src[int(indptr[0]) : int(indptr[-1])], segment, 0, None, length.size(0), reduce)


def _group_count(index: torch.Tensor, dim_size: int | None) -> int:
    if dim_size is not None:
        return dim_size
    if index.numel() == 0:
        return 0
    return int(index.max()) + 1


def _accumulator(
    src: torch.Tensor, index: torch.Tensor, axis: int, out: torch.Tensor | None, dim_size: int | None
) -> torch.Tensor:
    if out is not None:
        return out
    shape = list(src.shape)
    shape[axis] = _group_count(index, dim_size)
    return torch.zeros(shape, dtype=src.dtype, device=src.device)


def _mean(src: torch.Tensor, index: torch.Tensor, axis: int, total: torch.Tensor) -> torch.Tensor:
    # The count is exact in int64, whatever the precision of src.
    ones = torch.ones(index.shape, dtype=torch.int64, device=src.device)
    count = torch.zeros(total.shape, dtype=torch.int64, device=src.device).scatter_add_(axis, index, ones).clamp_(min=1)
    total = total.scatter_add_(axis, index, src)
    if total.is_floating_point() or total.is_complex():
        return total.div_(count)
    return total.div_(count, rounding_mode="floor")


def _extremum(
    src: torch.Tensor, index: torch.Tensor, axis: int, out: torch.Tensor | None, groups: int, largest: bool
) -> torch.Tensor:
    """Gather, for every group, the first entry that attains its largest (or smallest) value."""
    if out is not None:
        groups = out.size(axis)
    shape = list(src.shape)
    shape[axis] = groups
    length = src.size(axis)
    if length == 0:
        return torch.zeros(shape, dtype=src.dtype, device=src.device) if out is None else out
    values = src.detach()
    best = torch.zeros(shape, dtype=src.dtype, device=src.device)
    best = best.scatter_reduce(axis, index, values, "amax" if largest else "amin", include_self=False)
    attained = (values == best.gather(axis, index)) | values.isnan()
    along = [1] * src.dim()
    along[axis] = length
    position = torch.arange(length, device=src.device).reshape(along).expand_as(src)
    first = torch.full(shape, length, dtype=torch.int64, device=src.device)
    first = first.scatter_reduce(axis, index, position.masked_fill(~attained, length), "amin")
    empty = first == length
    result = src.gather(axis, first.clamp(max=length - 1))
    if out is None:
        return result.masked_fill(empty, 0)
    better = (result > out) if largest else (result < out)
    return out.copy_(torch.where(better & ~empty, result, out))


def __getattr__(name: str) -> object:
    """Name the package to install for whatever is not defined here."""
    raise missing_attribute("torch_scatter", f"torch_scatter.{name}")
