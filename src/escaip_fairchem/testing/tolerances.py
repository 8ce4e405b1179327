"""How exactly each law must hold: one table, so that a looser tolerance is a visible decision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Largest allowed error, relative to the root mean square of the reference.

    Attributes:
        float32: In single precision.
        float64: In double precision.
        why: What limits it.
    """

    float32: float
    float64: float
    why: str

    def at(self, dtype: torch.dtype) -> float:
        """The tolerance for tensors of a dtype."""
        return self.float64 if dtype == torch.float64 else self.float32


TOLERANCES = {
    "same numbers": Tolerance(
        float32=1e-5, float64=1e-13, why="same operations on the same numbers, summed in another order or shape"
    ),
    "turned": Tolerance(float32=1e-5, float64=1e-10, why="the inputs are rounded anew, and the model amplifies that"),
    "moved": Tolerance(
        float32=5e-5, float64=1e-10, why="as for turned, and positions farther out are rounded more coarsely"
    ),
    "turned, narrow basis": Tolerance(
        float32=5e-5,
        float64=1e-10,
        why="600 Gaussians 0.04 Å wide; rounding the positions alone changes single forces by 1e-5",
    ),
    "zero by symmetry": Tolerance(
        float32=1e-4,
        float64=1e-11,
        why="forces are stiff where the bond-orientational order vanishes: a thousand times the rounding of positions",
    ),
    "derivative": Tolerance(float32=float("nan"), float64=1e-7, why="error of fourth-order finite differences"),
    "fused attention": Tolerance(float32=2e-6, float64=1e-13, why="another order of summation within a softmax"),
    "original": Tolerance(float32=1e-5, float64=float("nan"), why="DESIGN: of the output's root mean square"),
    "bf16": Tolerance(float32=0.2, float64=float("nan"), why="8 bits of mantissa through every linear layer"),
}
"""Named tolerances of the laws and of comparisons between implementations."""


def root_mean_square(values: Tensor) -> float:
    """Root mean square over all elements, in float64; 0 for an empty tensor."""
    return float(values.detach().double().square().mean().sqrt()) if values.numel() else 0.0


def relative_error(actual: Tensor, reference: Tensor, *, floor: float = 1e-3) -> float:
    """Largest difference in units of the reference's root mean square.

    Args:
        actual: Any shape.
        reference: Same shape.
        floor: Smallest unit, for references that are zero or nearly so. Tiny models predict numbers around 1.

    Returns:
        The error; infinite if a value is not finite or the shapes differ.
    """
    if actual.shape != reference.shape:
        return float("inf")
    difference = (actual.detach().double() - reference.detach().double()).abs()
    if not difference.isfinite().all():
        return float("inf")
    largest = float(difference.max()) if difference.numel() else 0.0
    return largest / max(root_mean_square(reference), floor)


def assert_close(actual: Tensor, reference: Tensor, name: str, what: str = "values", *, floor: float = 1e-3) -> float:
    """Check two tensors against a named tolerance.

    Args:
        actual: Any shape.
        reference: Same shape; its dtype decides which tolerance counts.
        name: Key of :data:`TOLERANCES`.
        what: What is compared, for the message.
        floor: See :func:`relative_error`.

    Returns:
        The relative error.

    Raises:
        AssertionError: Says the error, the tolerance and the values.
    """
    limit = TOLERANCES[name].at(reference.dtype)
    error = relative_error(actual, reference, floor=floor)
    if not error <= limit:
        raise AssertionError(f"{what}: relative error {error:.3g}, allowed {limit:.3g} ({name})\n{actual}\n{reference}")
    return error
