"""Attention within a neighbourhood as one kernel, and its gradients as another.

A program handles one head of one atom: its at most 64 slots fit into one tile, so that neither logits nor weights nor
the angle bias ever leave the chip. The backward pass computes the weights again from what the forward pass read, which
costs less than to write and read anything. Slots beyond an atom's count are neither read nor take part; what is
written for them is zero. Products of bf16 and fp16 numbers are accumulated, and softmax is taken, in float32. Dropout
needs no memory either: its random numbers follow from a seed and their place, so that the backward pass makes those of
the forward pass again.

Legend: J = 3 A D features of a slot, the queries of all heads before the keys before the values. Tiles are
(slots, slots) or (slots, D), both padded to powers of two.

Annotations must not be postponed here: the interpreter recognises ``tl.constexpr`` by its type.
"""

import triton
import triton.language as tl


@triton.jit
def _product(left: tl.tensor, right: tl.tensor, PRECISION: tl.constexpr, WIDEN: tl.constexpr) -> tl.tensor:
    """Matrix product, summed in float32. WIDEN: the interpreter would multiply the bits of bf16 numbers."""
    if WIDEN:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision=PRECISION)


@triton.jit
def _load(
    start: tl.tensor, rows: tl.tensor, stride: tl.tensor, used: tl.tensor, WIDTH: tl.constexpr, COLUMNS: tl.constexpr
) -> tl.tensor:
    """One head's part of the used slots, shape (slots, D); zero elsewhere."""
    columns = tl.arange(0, COLUMNS)
    inside = used[:, None] & (columns < WIDTH)[None, :]
    return tl.load(start + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _load_head(
    start: tl.tensor,
    rows: tl.tensor,
    stride: tl.tensor,
    used: tl.tensor,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> tl.tensor:
    """Queries, keys and values of one head."""
    query = _load(start, rows, stride, used, WIDTH, COLUMNS)
    key = _load(start + HEADS * WIDTH, rows, stride, used, WIDTH, COLUMNS)
    value = _load(start + 2 * HEADS * WIDTH, rows, stride, used, WIDTH, COLUMNS)
    return query, key, value


@triton.jit
def _store(
    start: tl.tensor,
    values: tl.tensor,
    rows: tl.tensor,
    stride: tl.tensor,
    slots: tl.tensor,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Write one head's part of all slots."""
    columns = tl.arange(0, COLUMNS)
    inside = (rows < slots)[:, None] & (columns < WIDTH)[None, :]
    tl.store(start + rows[:, None] * stride + columns[None, :], values.to(start.dtype.element_ty), mask=inside)


@triton.jit
def _component(directions: tl.tensor, rows: tl.tensor, used: tl.tensor) -> tl.tensor:
    """One component of the used slots' unit vectors, shape (slots,); zero elsewhere."""
    return tl.load(directions + 3 * rows, mask=used, other=0.0).to(tl.float32)


@triton.jit
def _cosines(directions: tl.tensor, rows: tl.tensor, used: tl.tensor) -> tl.tensor:
    """Cosines of the angles between used slots, shape (slots, slots)."""
    x = _component(directions, rows, used)
    y = _component(directions + 1, rows, used)
    z = _component(directions + 2, rows, used)
    return x[:, None] * x[None, :] + y[:, None] * y[None, :] + z[:, None] * z[None, :]


@triton.jit
def _store_direction_gradient(
    start: tl.tensor,
    cosine_gradient: tl.tensor,
    directions: tl.tensor,
    rows: tl.tensor,
    used: tl.tensor,
    slots: tl.tensor,
) -> None:
    """Write the gradient of all slots' unit vectors; every cosine depends on two of them."""
    for axis in tl.static_range(3):
        component = _component(directions + axis, rows, used)
        as_query = tl.sum(cosine_gradient * component[None, :], 1)
        as_key = tl.sum(cosine_gradient * component[:, None], 0)
        tl.store(start + axis + 3 * rows, as_query + as_key, mask=rows < slots)


@triton.jit
def _softmax(logits: tl.tensor, used: tl.tensor) -> tl.tensor:
    """Weights of the used slots in each used slot, zero elsewhere."""
    logits = tl.where(used[None, :], logits, float("-inf"))
    powers = tl.exp(logits - tl.max(logits, 1)[:, None])
    weights = powers / tl.sum(powers, 1)[:, None]
    return tl.where(used[:, None] & used[None, :], weights, 0.0)


@triton.jit
def _dropout(seed: tl.tensor, rows: tl.tensor, ROWS: tl.constexpr, DROPPED: tl.constexpr) -> tl.tensor:
    """What dropout multiplies this program's weights by: 0 for DROPPED of 2³² random numbers, else what keeps the mean.

    Shape (slots, slots). Philox makes four numbers of 32 bits at a time, for one query and four keys; what it is given
    beside the seed, these and the program, belongs to no other weight of the call.
    """
    # Not ROWS // 4 per query: numbers are not to depend on how many empty slots follow. There are 64 slots at most.
    place = 16 * rows[:, None] + tl.arange(0, ROWS // 4)[None, :]
    first, second, third, fourth = tl.philox(tl.load(seed), place, tl.program_id(0), 0, 0)
    numbers = tl.interleave(tl.interleave(first, third), tl.interleave(second, fourth))
    return tl.where(numbers >= DROPPED, 4294967296.0 / (4294967296.0 - DROPPED), 0.0)


@triton.jit
def attend(
    projected: tl.tensor,
    directions: tl.tensor,
    counts: tl.tensor,
    scale: tl.tensor,
    seed: tl.tensor,
    mixed: tl.tensor,
    atom_stride: tl.tensor,
    slot_stride: tl.tensor,
    slots: tl.tensor,
    inverse_root: tl.tensor,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_ANGLES: tl.constexpr,
    DROPPED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """``dropout(softmax(q kᵀ/√D + s cos)) v``."""
    # All features of a large batch are more than an int32 can count.
    atom = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS
    rows = tl.arange(0, ROWS)
    used = rows < tl.load(counts + atom)
    start = projected + atom * atom_stride + head * WIDTH
    query, key, value = _load_head(start, rows, slot_stride, used, HEADS, WIDTH, COLUMNS)
    logits = _product(query, tl.trans(key), PRECISION, WIDEN) * inverse_root
    if HAS_ANGLES:
        logits += tl.load(scale).to(tl.float32) * _cosines(directions + atom * slots * 3, rows, used)
    weights = _softmax(logits, used)
    if DROPPED:
        weights *= _dropout(seed, rows, ROWS, DROPPED)
    result = _product(weights.to(value.dtype), value, PRECISION, WIDEN)
    start_mixed = mixed + atom * slots * (HEADS * WIDTH) + head * WIDTH
    _store(start_mixed, result, rows, HEADS * WIDTH, slots, WIDTH, COLUMNS)


@triton.jit
def attend_backward(
    gradient: tl.tensor,
    projected: tl.tensor,
    directions: tl.tensor,
    counts: tl.tensor,
    scale: tl.tensor,
    seed: tl.tensor,
    projected_gradient: tl.tensor,
    direction_gradients: tl.tensor,
    scale_gradients: tl.tensor,
    gradient_atom_stride: tl.tensor,
    gradient_slot_stride: tl.tensor,
    atom_stride: tl.tensor,
    slot_stride: tl.tensor,
    slots: tl.tensor,
    inverse_root: tl.tensor,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_ANGLES: tl.constexpr,
    DROPPED: tl.constexpr,
    MOVES: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """With weights P, logits S and g the gradient of the output: ``∂v = Pᵀ g``, ``∂S = P ∘ (g vᵀ − rows' Σ P ∘ g vᵀ)``.

    Where dropout multiplies P by Z, ``P ∘ Z`` stands for P in ∂v, and ``Z ∘ g vᵀ`` for ``g vᵀ`` in ∂S. From ∂S follow
    those of queries, keys, the scale and (MOVES) the unit vectors; the latter two are this head's share.
    """
    program = tl.program_id(0).to(tl.int64)
    atom, head = program // HEADS, tl.program_id(0) % HEADS
    rows = tl.arange(0, ROWS)
    used = rows < tl.load(counts + atom)
    start = projected + atom * atom_stride + head * WIDTH
    query, key, value = _load_head(start, rows, slot_stride, used, HEADS, WIDTH, COLUMNS)
    start_gradient = gradient + atom * gradient_atom_stride + head * WIDTH
    upstream = _load(start_gradient, rows, gradient_slot_stride, used, WIDTH, COLUMNS)

    logits = _product(query, tl.trans(key), PRECISION, WIDEN) * inverse_root
    start_directions = directions + atom * slots * 3
    if HAS_ANGLES:
        cosines = _cosines(start_directions, rows, used)
        logits += tl.load(scale).to(tl.float32) * cosines
    weights = _softmax(logits, used)
    weight_gradient = _product(upstream, tl.trans(value), PRECISION, WIDEN)
    kept_weights = weights
    if DROPPED:
        factors = _dropout(seed, rows, ROWS, DROPPED)
        weight_gradient *= factors
        kept_weights *= factors
    along = tl.sum(weights * weight_gradient, 1)
    logit_gradient = weights * (weight_gradient - along[:, None])
    if HAS_ANGLES:
        tl.store(scale_gradients + program, tl.sum(tl.sum(logit_gradient * cosines, 1), 0))
        if MOVES:
            cosine_gradient = tl.load(scale).to(tl.float32) * logit_gradient
            start_moved = direction_gradients + program * slots * 3
            _store_direction_gradient(start_moved, cosine_gradient, start_directions, rows, used, slots)

    stride = 3 * HEADS * WIDTH
    start_out = projected_gradient + atom * slots * stride + head * WIDTH
    scaled = (logit_gradient * inverse_root).to(query.dtype)
    result = _product(scaled, key, PRECISION, WIDEN)
    _store(start_out, result, rows, stride, slots, WIDTH, COLUMNS)
    result = _product(tl.trans(scaled), query, PRECISION, WIDEN)
    _store(start_out + HEADS * WIDTH, result, rows, stride, slots, WIDTH, COLUMNS)
    result = _product(tl.trans(kept_weights.to(value.dtype)), upstream, PRECISION, WIDEN)
    _store(start_out + 2 * HEADS * WIDTH, result, rows, stride, slots, WIDTH, COLUMNS)
