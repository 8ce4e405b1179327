"""Loss functions that fairchem lacks."""

from __future__ import annotations

from typing import ClassVar

import torch
from fairchem.core.common.registry import registry
from torch import Tensor, nn

SMALLEST_LENGTH = 1e-3
"""In normalised units: below it the direction of a predicted force counts less and less, where it means nothing."""


@registry.register_loss("escaip_force_cosine")
class ForceCosineLoss(nn.Module):
    """``1 − cos`` of the angle between predicted and true vectors, 0 where the true one has no direction."""

    short_name: ClassVar[str] = "escaip_force_cosine"

    def forward(self, pred: Tensor, target: Tensor, natoms: Tensor) -> Tensor:
        """Compute the loss of every row.

        Args:
            pred: Predictions, shape (N, 3).
            target: Labels, shape (N, 3).
            natoms: Atoms per structure; not used.

        Returns:
            Between 0 and 2, shape (N,).
        """
        # The added square keeps the derivative finite for predictions of length zero.
        length_N = (pred.square().sum(-1) + SMALLEST_LENGTH**2).sqrt()
        wanted_N = target.norm(dim=-1)
        has_direction_N = wanted_N > 0
        product_N = (pred * target).sum(-1) / (length_N * torch.where(has_direction_N, wanted_N, 1.0))
        return torch.where(has_direction_N, 1.0 - product_N, 0.0)
