"""Matrix products of a layer whose input is a concatenation, part by part.

``W concat[a, b] = W_a a + W_b b``. A part that belongs to an atom is then multiplied once per atom and gathered,
instead of once for each of its edges.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from escaip_fairchem.nn.precision import at_least_float32, autocast_dtype


def accumulate(total: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
    """``total + inputs · weightᵀ`` with the sum taken inside the matrix product, in the precision of the total.

    Args:
        total: Shape (..., out); overwritten where no gradients are recorded.
        inputs: Shape (..., in), the leading axes as in ``total``.
        weight: Shape (out, in).
    """
    if torch.is_autocast_enabled(total.device.type) or total.dtype != inputs.dtype:
        # Cast first: compilers of torch 2.4 take a sum with zeros for its other part, whatever the types.
        product = functional.linear(inputs, weight).to(total.dtype)
        return total + product if torch.is_grad_enabled() else total.add_(product)
    flat, rows = total.reshape(-1, total.shape[-1]), inputs.reshape(-1, inputs.shape[-1])
    if not torch.is_grad_enabled():
        return flat.addmm_(rows, weight.t()).view(total.shape)
    return torch.addmm(flat, rows, weight.t()).view(total.shape)


def gather_pairs(sender_ND: Tensor, receiver_CD: Tensor, sender_CK: Tensor) -> Tensor:
    """Sum a term of the sender and a term of the receiver for every slot.

    Args:
        sender_ND: Term of every atom as a sender, shape (N, D).
        receiver_CD: Term of the receivers at hand, shape (C, D).
        sender_CK: Their senders, shape (C, K).

    Returns:
        Shape (C, K, D), freshly made. The sums are taken in at least float32, those of the backward pass too, where the
        gradients of all neighbours meet; under autocast the result is then rounded to its type.
    """
    sender_ND, receiver_CD = at_least_float32(sender_ND), at_least_float32(receiver_CD)
    gathered = sender_ND.index_select(0, sender_CK.reshape(-1)).view(*sender_CK.shape, -1)
    # In place also where gradients are recorded: neither a gather nor a sum needs its result for them.
    return gathered.add_(receiver_CD.unsqueeze(1)).to(autocast_dtype(sender_ND.device) or sender_ND.dtype)
