"""Cubic B-splines on an even grid: a smooth function of one number, for the price of four rows of a table.

The spline through samples f_g has two continuous derivatives, so that forces derived from it are smooth; its error
falls with the fourth power of the spacing. A value is the sum of four neighbouring coefficients c times the B-spline's
weights, and the coefficients solve ``(c_{g−1} + 4 c_g + c_{g+1})/6 = f_g``. On an unbounded grid the solution is a
filter that decays by 0.268 with each step, so a few samples beyond the ends take the place of boundary conditions.

Legend: G grid points, E arguments, D components of the function.
"""

from __future__ import annotations

import torch
from torch import Tensor

FILTER_REACH = 24
"""Samples on each side that a coefficient is made from: 0.268²⁴ is below the rounding of float64's sums."""

_POLE = 3.0**0.5 - 2.0


def interpolation_filter() -> Tensor:
    """Weights of the samples around a grid point in its coefficient, shape (2 · FILTER_REACH + 1,)."""
    distance = torch.arange(-FILTER_REACH, FILTER_REACH + 1, dtype=torch.float64).abs()
    response: Tensor = (-6.0 * _POLE / (1.0 - _POLE**2)) * _POLE**distance
    return response


def coefficients(samples_GD: Tensor) -> Tensor:
    """Coefficients of the spline through samples.

    Args:
        samples_GD: Values at consecutive grid points, shape (G, D).

    Returns:
        The coefficients of the grid points that have ``FILTER_REACH`` samples on each side, shape
        (G − 2 · FILTER_REACH, D).
    """
    inner = len(samples_GD) - 2 * FILTER_REACH
    total_GD = torch.zeros_like(samples_GD[:inner])
    # One pass per weight: a convolution would lay out fifty copies of the samples first.
    for step, weight in enumerate(interpolation_filter().tolist()):
        total_GD.add_(samples_GD[step : step + inner], alpha=weight)
    return total_GD


def weights(fraction_E: Tensor) -> Tensor:
    """Weights of the four coefficients around arguments.

    Args:
        fraction_E: Position between the second and the third of the four grid points, in [0, 1], shape (E,).

    Returns:
        Shape (E, 4).
    """
    t = fraction_E
    s = 1.0 - t
    return torch.stack((s**3, 4.0 - 3.0 * t**2 * (1.0 + s), 4.0 - 3.0 * s**2 * (1.0 + t), t**3), dim=-1) / 6.0
