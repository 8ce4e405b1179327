"""Attention within each neighbourhood as one operator, run by the kernels in :mod:`.attention_triton`.

The operator is opaque to ``torch.compile`` and can be differentiated once; a second derivative is refused. It draws no
random numbers: dropout follows from a seed among its arguments.

Legend: N atoms, K neighbour slots, A heads of width D, H = A D.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from escaip_fairchem.errors import EScAIPError
from escaip_fairchem.nn.precision import tf32_is_allowed

MAX_SLOTS = 64
"""Most slots of a neighbourhood: its logits have to fit into one program."""

MAX_WIDTH = 128
"""Largest width of a head."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of queries, keys and values."""

_SEEDS = 2**63 - 1

_SCHEMA = (
    "Tensor projected_NKJ, Tensor direction_NK3, Tensor count_N, Tensor? scale, Tensor? seed, int heads, "
    "float dropout, bool allow_tf32"
)


def fused_attention(
    projected_NKJ: Tensor, direction_NK3: Tensor, count_N: Tensor, scale: Tensor | None, heads: int, dropout: float
) -> Tensor:
    """``dropout(softmax(q kᵀ/√D + scale · cos)) v`` over the used slots of every atom.

    Used slots come before empty ones. Nothing of shape (N, K, K) is made. Products of float32 numbers are exact to
    rounding unless TF32 is allowed for matrix products (:func:`escaip_fairchem.nn.precision.tf32_is_allowed`).

    Args:
        projected_NKJ: Queries, keys and values of all heads side by side, shape (N, K, 3 H); K ≤ :data:`MAX_SLOTS`,
            D ≤ :data:`MAX_WIDTH`, one of :data:`DTYPES`. Any strides of atoms and slots.
        direction_NK3: Unit vectors of the edges, shape (N, K, 3), float32.
        count_N: Number of used slots, shape (N,), int32.
        scale: Factor of the cosines between edges in the logits, a scalar; None if angles play no part.
        heads: Number of heads A.
        dropout: Probability p to drop a weight, in [0, 1); weights that stay are multiplied by 1/(1 − p). Which are
            dropped follows from one number of PyTorch's generator for the device; with 0, none is drawn.

    Returns:
        Shape (N, K, H), dtype of ``projected_NKJ``; 0 in empty slots. Differentiable once, in the first two
        arguments and the scale.
    """
    # Drawn on the device, where it stays: nothing waits for it.
    seed = torch.randint(_SEEDS, (1,), device=projected_NKJ.device) if dropout > 0.0 else None
    mixed_NKH: Tensor = _attend(projected_NKJ, direction_NK3, count_N, scale, seed, heads, dropout, tf32_is_allowed())
    return mixed_NKH


@torch.library.custom_op("escaip::attend", mutates_args=(), schema=f"({_SCHEMA}) -> Tensor")
def _attend(
    projected_NKJ: Tensor,
    direction_NK3: Tensor,
    count_N: Tensor,
    scale: Tensor | None,
    seed: Tensor | None,
    heads: int,
    dropout: float,
    allow_tf32: bool,
) -> Tensor:
    """The operator behind :func:`fused_attention`."""
    from escaip_fairchem.nn.kernels.attention_triton import attend

    projected_NKJ, direction_NK3 = _with_adjacent_features(projected_NKJ), direction_NK3.contiguous()
    mixed_NKH: Tensor = _new_mixed(projected_NKJ, direction_NK3, count_N, scale, seed, heads, dropout, allow_tf32)
    if mixed_NKH.numel():
        options = _options(projected_NKJ, scale, heads, dropout, allow_tf32)
        with torch.cuda.device_of(projected_NKJ):
            attend[(len(projected_NKJ) * heads,)](
                projected_NKJ,
                direction_NK3,
                count_N,
                direction_NK3 if scale is None else scale,
                count_N if seed is None else seed,
                mixed_NKH,
                *projected_NKJ.stride()[:2],
                projected_NKJ.shape[1],
                **options,
            )
    return mixed_NKH


@_attend.register_fake
def _new_mixed(
    projected_NKJ: Tensor,
    direction_NK3: Tensor,
    count_N: Tensor,
    scale: Tensor | None,
    seed: Tensor | None,
    heads: int,
    dropout: float,
    allow_tf32: bool,
) -> Tensor:
    """Room for the result."""
    atoms, slots, features = projected_NKJ.shape
    mixed_NKH: Tensor = projected_NKJ.new_empty(atoms, slots, features // 3)
    return mixed_NKH


@torch.library.custom_op(
    "escaip::attend_backward",
    mutates_args=(),
    schema=f"(Tensor gradient_NKH, {_SCHEMA}, bool moves) -> (Tensor, Tensor, Tensor)",
)
def _attend_backward(
    gradient_NKH: Tensor,
    projected_NKJ: Tensor,
    direction_NK3: Tensor,
    count_N: Tensor,
    scale: Tensor | None,
    seed: Tensor | None,
    heads: int,
    dropout: float,
    allow_tf32: bool,
    moves: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, of the unit vectors (where ``moves``) and of the scale.

    Heads leave their shares of the latter two, which are then summed in a fixed order.
    """
    from escaip_fairchem.nn.kernels.attention_triton import attend_backward

    projected_NKJ, direction_NK3 = _with_adjacent_features(projected_NKJ), direction_NK3.contiguous()
    gradient_NKH = _with_adjacent_features(gradient_NKH)
    atoms, slots, features = projected_NKJ.shape
    moves = moves and scale is not None
    projected_gradient_NKJ = projected_NKJ.new_empty(atoms, slots, features)
    direction_gradient_NAK3 = direction_NK3.new_empty((atoms, heads, slots, 3) if moves else (0,), dtype=torch.float32)
    scale_gradient_NA = direction_NK3.new_zeros(atoms, heads, dtype=torch.float32)
    if atoms:
        options = _options(projected_NKJ, scale, heads, dropout, allow_tf32)
        with torch.cuda.device_of(projected_NKJ):
            attend_backward[(atoms * heads,)](
                gradient_NKH,
                projected_NKJ,
                direction_NK3,
                count_N,
                direction_NK3 if scale is None else scale,
                count_N if seed is None else seed,
                projected_gradient_NKJ,
                direction_gradient_NAK3,
                scale_gradient_NA,
                *gradient_NKH.stride()[:2],
                *projected_NKJ.stride()[:2],
                slots,
                MOVES=moves,
                **options,
            )
    direction_gradient = direction_gradient_NAK3.sum(1) if moves else direction_gradient_NAK3
    return projected_gradient_NKJ, direction_gradient.to(direction_NK3.dtype), scale_gradient_NA.sum()


@_attend_backward.register_fake
def _new_gradients(
    gradient_NKH: Tensor,
    projected_NKJ: Tensor,
    direction_NK3: Tensor,
    count_N: Tensor,
    scale: Tensor | None,
    seed: Tensor | None,
    heads: int,
    dropout: float,
    allow_tf32: bool,
    moves: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients."""
    moved = direction_NK3.new_empty(direction_NK3.shape if moves and scale is not None else (0,))
    return projected_NKJ.new_empty(projected_NKJ.shape), moved, direction_NK3.new_empty((), dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep the inputs for the backward pass, which needs nothing else."""
    projected_NKJ, direction_NK3, count_N, scale, seed, ctx.heads, ctx.dropout, ctx.allow_tf32 = inputs
    ctx.save_for_backward(projected_NKJ, direction_NK3, count_N, scale, seed)


def _differentiate(ctx: Any, gradient_NKH: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the operator's arguments."""
    projected_NKJ, direction_NK3, count_N, scale, seed = ctx.saved_tensors
    moves = ctx.needs_input_grad[1] and scale is not None
    projected_gradient_NKJ, direction_gradient_NK3, scale_gradient = _attend_backward(
        gradient_NKH, projected_NKJ, direction_NK3, count_N, scale, seed, ctx.heads, ctx.dropout, ctx.allow_tf32, moves
    )
    return (
        projected_gradient_NKJ,
        direction_gradient_NK3 if moves else None,
        None,
        None if scale is None else scale_gradient.to(scale.dtype),
        None,
        None,
        None,
        None,
    )


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    """A second derivative of the operator is asked for.

    Raises:
        EScAIPError: Always.
    """
    raise EScAIPError(
        "the Triton kernel of attention has no second derivative; set model.backbone.attention_kernel: torch"
    )


_attend.register_autograd(_differentiate, setup_context=_keep)
_attend_backward.register_autograd(_refuse)


def _with_adjacent_features(features_NKF: Tensor) -> Tensor:
    """The same values with features next to each other, as kernels read them; a copy only where they are not."""
    return features_NKF if features_NKF.stride(-1) == 1 else features_NKF.contiguous()


def _options(
    projected_NKJ: Tensor, scale: Tensor | None, heads: int, dropout: float, allow_tf32: bool
) -> dict[str, Any]:
    """What both kernels are specialised for, and how many warps share a program.

    Tiles have at least 16 rows and columns, the least that matrix products take. Each warp gets 2 KiB of every tile of
    queries, keys and values: with more, the float32 kernels run out of registers.
    """
    slots, width = projected_NKJ.shape[1], projected_NKJ.shape[2] // (3 * heads)
    rows, columns = (max(16, 1 << (size - 1).bit_length()) for size in (slots, width))
    return {
        "inverse_root": width**-0.5,
        "HEADS": heads,
        "WIDTH": width,
        "ROWS": rows,
        "COLUMNS": columns,
        "HAS_ANGLES": scale is not None,
        "DROPPED": int(dropout * 2**32),
        "PRECISION": "tf32" if allow_tf32 else "ieee",
        "WIDEN": not projected_NKJ.is_cuda,
        "num_warps": max(1, rows * columns * projected_NKJ.element_size() // 2048),
        "num_stages": 1,
    }
