"""Multi-head self-attention within each neighbourhood, with one signature for every implementation.

Shapes: N atoms, K neighbour slots (the sequence), A heads, D features per head.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from escaip_fairchem.errors import ConfigError, nearest


class AttentionFunction(Protocol):
    """Attention over the slots of each atom."""

    def __call__(
        self, query_NAKD: Tensor, key_NAKD: Tensor, value_NAKD: Tensor, bias_NKK: Tensor, dropout: float
    ) -> Tensor:
        """Attend; ``bias_NKK`` is shared by the heads and −inf in columns of empty slots.

        Returns:
            Shape (N, A, K, D).
        """
        ...


def plain_attention(
    query_NAKD: Tensor, key_NAKD: Tensor, value_NAKD: Tensor, bias_NKK: Tensor, dropout: float
) -> Tensor:
    """``softmax(q kᵀ/√D + bias) v``, written out: the reference, differentiable any number of times."""
    logits_NAKK = query_NAKD @ key_NAKD.transpose(-1, -2) / math.sqrt(query_NAKD.shape[-1])
    weights_NAKK = torch.softmax(logits_NAKK + bias_NKK.unsqueeze(1), dim=-1)
    return functional.dropout(weights_NAKK, dropout) @ value_NAKD


def sdpa_attention(
    query_NAKD: Tensor, key_NAKD: Tensor, value_NAKD: Tensor, bias_NKK: Tensor, dropout: float
) -> Tensor:
    """PyTorch's fused attention. Only its math path has a second derivative."""
    bias_NAKK = bias_NKK.unsqueeze(1).to(query_NAKD.dtype)
    return functional.scaled_dot_product_attention(
        query_NAKD, key_NAKD, value_NAKD, attn_mask=bias_NAKK, dropout_p=dropout
    )


# The original chooses among PyTorch's back-ends by a process-wide switch; here the dispatcher chooses.
ATTENTION_FUNCTIONS: dict[str, AttentionFunction] = {
    "math": plain_attention,
    "scaled_dot_product": sdpa_attention,
    "memory_efficient": sdpa_attention,
    "flash": sdpa_attention,
}


def attention_function(name: str) -> AttentionFunction:
    """Look an implementation up by its name in the YAML files.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in ATTENTION_FUNCTIONS:
        raise ConfigError(f"atten_name: {name!r} is unknown{nearest(name, ATTENTION_FUNCTIONS)}")
    return ATTENTION_FUNCTIONS[name]


class NeighborhoodAttention(nn.Module):
    """Self-attention among the edges of each atom, biased by the angles between them.

    Args:
        hidden_size: Width H of an edge.
        num_heads: Number of heads A, a divisor of H.
        use_angles: Whether ``s · cos(angle)`` is added to the logits, s a learned scalar.
        dropout: Probability to drop an attention weight in training.
        implementation: A name in :data:`ATTENTION_FUNCTIONS`.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, *, use_angles: bool, dropout: float, implementation: str
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.attend = attention_function(implementation)
        self.in_projection = nn.Linear(hidden_size, 3 * hidden_size)
        self.out_projection = nn.Linear(hidden_size, hidden_size)
        self.angle_scale = nn.Parameter(torch.ones(())) if use_angles else None

    @property
    def active_dropout(self) -> float:
        """Probability to drop an attention weight in the present mode."""
        return self.dropout if self.training else 0.0

    def forward(self, messages_NKH: Tensor, cosines_NKK: Tensor, mask_NK: Tensor) -> Tensor:
        """Let the edges of every atom attend to each other.

        Args:
            messages_NKH: Edge messages, shape (N, K, H).
            cosines_NKK: Cosines of the angles between edges, shape (N, K, K).
            mask_NK: True for used slots, shape (N, K).

        Returns:
            Shape (N, K, H). Rows of empty slots are finite and without meaning.
        """
        mixed_NKH = self.mix_projected(self.in_projection(messages_NKH), cosines_NKK, mask_NK)
        update_NKH: Tensor = self.out_projection(mixed_NKH)
        return update_NKH

    def mix_projected(self, projected_NKJ: Tensor, cosines_NKK: Tensor, mask_NK: Tensor) -> Tensor:
        """The attention itself: queries, keys and values side by side, shape (N, K, 3 H), to (N, K, H)."""
        heads_N3AKD = projected_NKJ.unflatten(-1, (3, self.num_heads, -1)).permute(0, 2, 3, 1, 4)
        query_NAKD, key_NAKD, value_NAKD = heads_N3AKD.unbind(1)
        mixed_NAKD = self.attend(
            query_NAKD, key_NAKD, value_NAKD, self._bias(cosines_NKK, mask_NK), self.active_dropout
        )
        return mixed_NAKD.transpose(1, 2).flatten(-2)

    def _bias(self, cosines_NKK: Tensor, mask_NK: Tensor) -> Tensor:
        """Additive bias: the scaled cosines, −inf where the key's slot is empty."""
        scaled_NKK = torch.zeros_like(cosines_NKK) if self.angle_scale is None else cosines_NKK * self.angle_scale
        return scaled_NKK.masked_fill(~mask_NK.unsqueeze(1), -torch.inf)
