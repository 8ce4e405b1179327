"""The projection of all depths' readouts, summed up depth by depth.

``W norm(concat_l y_l)`` is a sum over the depths but for the norm, whose one number per row (two for layernorm) can
be collected beside it. The concatenation, the largest tensor of the model, never exists.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from escaip_fairchem.nn.fast.products import accumulate
from escaip_fairchem.nn.normalization import RMSNorm
from escaip_fairchem.nn.precision import at_least_float32
from escaip_fairchem.nn.readout import Projection


@dataclass(kw_only=True)
class ProjectionSum:
    """What has been collected of one set of rows.

    Attributes:
        total: Projected readouts so far, shape (..., H), None before the first.
        squares: Per depth, the sum of squares (rmsnorm) or of squared deviations (layernorm), shape (...).
        means: Per depth, the mean of the readout, shape (..., 1); layernorm alone.
    """

    total: Tensor | None
    squares: list[Tensor]
    means: list[Tensor]


class DepthwiseProjection:
    """``norm(act(W norm(concat of all depths)))`` fed with one depth after the other.

    Args:
        projection: The layer whose parameters are read.
    """

    def __init__(self, projection: Projection) -> None:
        self.projection = projection
        norm, linear = projection.in_norm, projection.linear.affine
        size = linear.out_features
        self.depths = linear.in_features // size
        weight = linear.weight if isinstance(norm, nn.Identity) else linear.weight * norm.weight
        self.weights = weight.split(size, dim=1)

    def start(self, total: Tensor | None = None) -> ProjectionSum:
        """Begin with no depth collected.

        Args:
            total: Zeros to add up in, where no gradients are recorded; by default new ones.
        """
        return ProjectionSum(total=total, squares=[], means=[])

    def add(self, collected: ProjectionSum, depth: int, readout: Tensor) -> None:
        """Collect the readout of a depth, shape (..., H)."""
        norm = self.projection.in_norm
        if isinstance(norm, RMSNorm):
            collected.squares.append(at_least_float32(readout).square().sum(dim=-1))
        elif isinstance(norm, nn.LayerNorm):
            # Centred by its own mean first, so that a large common offset costs no digits.
            variance, mean = torch.var_mean(at_least_float32(readout), dim=-1, correction=0, keepdim=True)
            collected.squares.append(variance.squeeze(-1) * readout.shape[-1])
            collected.means.append(mean)
            readout = readout - mean.to(readout.dtype)
        if collected.total is None:
            collected.total = torch.zeros_like(at_least_float32(readout))
        collected.total = accumulate(collected.total, readout, self.weights[depth])

    def finish(self, collected: ProjectionSum) -> Tensor:
        """Join what was collected into features of shape (..., H)."""
        norm, linear = self.projection.in_norm, self.projection.linear.affine
        assert collected.total is not None
        total = collected.total
        if isinstance(norm, RMSNorm):
            mean_square = torch.stack(collected.squares).sum(dim=0) / linear.in_features
            total = total * torch.rsqrt(mean_square + norm.EPSILON).unsqueeze(-1)
        elif isinstance(norm, nn.LayerNorm):
            total = self._layer_normed(collected, norm)
        features: Tensor = self.projection.out_norm(self.projection.linear.activate(total + linear.bias))
        return features

    def _layer_normed(self, collected: ProjectionSum, norm: nn.LayerNorm) -> Tensor:
        """Centre and scale; mean and variance of the whole from those of the parts (Chan et al. 1979)."""
        assert collected.total is not None
        linear, means = self.projection.linear.affine, torch.cat(collected.means, dim=-1)
        offsets = means - means.mean(dim=-1, keepdim=True)
        column_sums = torch.stack([weight.sum(dim=1) for weight in self.weights])
        between = offsets.square().mean(dim=-1) * linear.in_features
        variance = (torch.stack(collected.squares).sum(dim=0) + between) / linear.in_features
        scale = torch.rsqrt(variance + norm.eps).unsqueeze(-1)
        normed: Tensor = (collected.total + offsets @ column_sums) * scale + linear.weight @ norm.bias
        return normed
