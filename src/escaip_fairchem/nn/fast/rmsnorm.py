"""RMSNorm with a backward pass written out: half the passes over memory of the one that autograd puts together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from escaip_fairchem.nn.normalization import RMSNorm
from escaip_fairchem.nn.precision import at_least_float32


def rms_norm(norm: RMSNorm, inputs: Tensor) -> Tensor:
    """``x / rms(x) · weight`` over the last axis; shape and dtype as the inputs. It can be differentiated once."""
    normed: Tensor = _RMSNorm.apply(inputs, norm.weight, norm.EPSILON)
    return normed


class _RMSNorm(torch.autograd.Function):
    """With s = 1/√(mean x² + ε) and y = x s w: ``∂x = s (g w − x s² mean(g w x))``, ``∂w = Σ g x s``."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Normalise."""
        wide = at_least_float32(inputs)
        mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(inputs.shape[-1])
        scale = mean_square.add_(epsilon).rsqrt_()
        ctx.save_for_backward(inputs, weight, scale)
        normed: Tensor = (wide * scale).mul_(weight).to(inputs.dtype)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of inputs and weight, summed up in at least float32."""
        inputs, weight, scale = ctx.saved_tensors
        wide, gradient = inputs.to(scale.dtype), gradient.to(scale.dtype)
        scaled = wide * scale
        weight_gradient = (gradient * scaled).flatten(0, -2).sum(0)
        gradient = gradient * weight.to(scale.dtype)
        projection = (gradient * scaled).mean(dim=-1, keepdim=True)
        input_gradient = torch.addcmul(gradient, scaled, projection, value=-1.0).mul_(scale)
        return input_gradient.to(inputs.dtype), weight_gradient.to(weight.dtype), None
