"""What a neighbourhood looks like in numbers: radial basis, bond-orientational order, angles.

Shapes: N atoms in the batch, K neighbour slots, G basis functions, L orders l = 0..lmax.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from e3nn import o3
from torch import Tensor, nn

from escaip_fairchem.errors import ConfigError, nearest

# Width of a basis function in units of the spacing between centres.
RELATIVE_WIDTH = 2.0
# Below this, the bond-orientational order is rounded off smoothly to zero (see smooth_norm).
BOO_FLOOR = 1e-3
_SHORTEST = 1e-30  # of squared lengths: empty slots may hold zeros


class GaussianBasis(nn.Module):
    """``exp(−½ ((d − c_g)/(2Δ))²)``, centres c_g evenly spaced by Δ on [0, cutoff] (Å)."""

    centers: Tensor

    def __init__(self, cutoff: float, size: int) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(0.0, cutoff, size), persistent=False)
        self.width = RELATIVE_WIDTH * cutoff / (size - 1)

    def forward(self, distance_NK: Tensor) -> Tensor:
        """Expand distances (Å) of shape (N, K) to (N, K, G)."""
        scaled = (distance_NK.unsqueeze(-1) - self.centers.to(distance_NK.dtype)) / self.width
        return torch.exp(-0.5 * scaled.square())


class SigmoidBasis(nn.Module):
    """``σ(2 (d − c_g)/Δ)``, plus a slope of ``slope`` times its argument where that is not 0."""

    centers: Tensor

    def __init__(self, cutoff: float, size: int, slope: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(0.0, cutoff, size), persistent=False)
        self.steepness = RELATIVE_WIDTH * (size - 1) / cutoff
        self.slope = slope

    def forward(self, distance_NK: Tensor) -> Tensor:
        """Expand distances (Å) of shape (N, K) to (N, K, G)."""
        argument = self.steepness * (distance_NK.unsqueeze(-1) - self.centers.to(distance_NK.dtype))
        return torch.sigmoid(argument) + self.slope * argument


class SiLUBasis(nn.Module):
    """``silu(w_g d + v_g)`` with learned w and v."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.affine = nn.Linear(2, size)

    def forward(self, distance_NK: Tensor) -> Tensor:
        """Expand distances (Å) of shape (N, K) to (N, K, G)."""
        slope_G, offset_G = self.affine.weight.unbind(dim=1)
        return nn.functional.silu(distance_NK.unsqueeze(-1) * slope_G + (offset_G + self.affine.bias))


DISTANCE_FUNCTIONS = ("gaussian", "linearsigmoid", "sigmoid", "silu")


def build_radial_basis(name: str, cutoff: float, size: int) -> nn.Module:
    """Make the radial basis of that name.

    Args:
        name: One of :data:`DISTANCE_FUNCTIONS`.
        cutoff: Radius of a neighbourhood in Å.
        size: Number of basis functions G.

    Raises:
        ConfigError: The name is unknown.
    """
    if name == "gaussian":
        return GaussianBasis(cutoff, size)
    if name == "sigmoid":
        return SigmoidBasis(cutoff, size)
    if name == "linearsigmoid":
        return SigmoidBasis(cutoff, size, slope=0.001)
    if name == "silu":
        return SiLUBasis(size)
    raise ConfigError(f"distance_function: {name!r} is unknown{nearest(name, DISTANCE_FUNCTIONS)}")


def smooth_norm(squared: Tensor, floor: float) -> Tensor:
    """Square root whose derivatives stay finite at zero.

    With q² the argument: q where q ≥ floor, and below it the even polynomial
    ``floor (15 t − 10 t² + 3 t³)/8`` of t = (q/floor)², which joins with two continuous derivatives.
    The plain root has a kink at q = 0, where perfect crystals sit; there it makes forces NaN.

    Args:
        squared: q² ≥ 0, any shape.
        floor: Where the rounding begins, in units of q.
    """
    ratio = squared / floor**2
    rounded = floor / 8.0 * ratio * (15.0 + ratio * (3.0 * ratio - 10.0))
    is_large = ratio >= 1.0
    # The inner where keeps the unused branch from producing an infinite gradient.
    root = torch.where(is_large, squared, torch.ones_like(squared)).sqrt()
    return torch.where(is_large, root, rounded)


def bond_orientational_order(direction_NK3: Tensor, mask_NK: Tensor, lmax: int) -> Tensor:
    """Rotation-invariant shape of each neighbourhood (Steinhardt et al. 1983; EScAIP's node directions).

    ``BOO_l(i) = sqrt(Σ_m (mean_k Y_lm(u_ik))²)``, with real spherical harmonics for which Σ_m Y_lm² = 2l + 1 (e3nn's
    ``component``). By their addition theorem that is ``sqrt((2l + 1) mean_kk' P_l(u_ik · u_ik'))`` with Legendre's
    polynomials, which takes a few operations on the cosines of pairs where harmonics of nine orders take hundreds, and
    thousands for the derivatives that forces need.

    Args:
        direction_NK3: Unit vectors from sender to receiver, shape (N, K, 3). Empty slots may hold anything finite.
        mask_NK: True for used slots, shape (N, K), at least one per atom.
        lmax: Highest order.

    Returns:
        Shape (N, lmax + 1).
    """
    slots = mask_NK.shape[1]
    first_P, second_P = torch.triu_indices(slots, slots, offset=1, device=mask_NK.device)
    # In float64: polynomials of symmetric neighbourhoods cancel, and the root of what is left magnifies its rounding.
    exact_NK3 = direction_NK3.double()
    # Near ±1, where the polynomials are steep, a length that is rounded to float32 would count.
    exact_NK3 = exact_NK3 * exact_NK3.square().sum(dim=-1, keepdim=True).clamp_min(_SHORTEST).rsqrt()
    cosine_NP = _pair_cosines(exact_NK3).flatten(1)[:, first_P * slots + second_P]
    count_N1 = mask_NK.sum(dim=1, keepdim=True).to(cosine_NP.dtype)
    weight_NP = (mask_NK[:, first_P] & mask_NK[:, second_P]).to(cosine_NP.dtype) * (2.0 / count_N1.square())
    # A slot with itself has the cosine 1, where every polynomial is 1.
    squared = [
        (2 * order + 1) * (1.0 / count_N1.squeeze(1) + (weight_NP * values_NP).sum(dim=1))
        for order, values_NP in enumerate(legendre_polynomials(cosine_NP, lmax))
    ]
    return smooth_norm(torch.stack(squared, dim=-1).clamp_min(0.0), BOO_FLOOR).to(direction_NK3.dtype)


def legendre_polynomials(argument: Tensor, lmax: int) -> Iterator[Tensor]:
    """Legendre's polynomials P_0 … P_lmax of any tensor, by Bonnet's recursion, one after the other."""
    before, now = torch.ones_like(argument), argument
    yield before
    for order in range(1, lmax + 1):
        if order > 1:
            share = (order - 1) / order
            before, now = now, torch.addcmul(before * -share, argument, now, value=1.0 + share)
        yield now


def harmonics_up_to(lmax: int, direction_X3: Tensor) -> Tensor:
    """Real spherical harmonics of all orders l = 0 .. lmax side by side (e3nn's ``component``), in float64.

    Args:
        lmax: Highest order.
        direction_X3: Unit vectors, shape (..., 3).

    Returns:
        Shape (..., (lmax + 1)²).
    """
    # In float64: harmonics of symmetric neighbourhoods cancel, and the norm of what is left magnifies its rounding.
    harmonics: Tensor = o3.spherical_harmonics(
        list(range(lmax + 1)), direction_X3.double(), normalize=False, normalization="component"
    )
    return harmonics


def orders_of(mean_NY: Tensor, lmax: int) -> Tensor:
    """Bond-orientational orders from the mean harmonics of neighbourhoods of any size: the norm of every order's part.

    Args:
        mean_NY: Shape (N, (lmax + 1)²).
        lmax: Highest order.

    Returns:
        Shape (N, lmax + 1).
    """
    # A fixed assignment of the (lmax+1)² components to their orders, as sums over slices.
    blocks = mean_NY.split([2 * order + 1 for order in range(lmax + 1)], dim=-1)
    return smooth_norm(torch.stack([block.square().sum(dim=-1) for block in blocks], dim=-1), BOO_FLOOR)


def angle_cosines(direction_NK3: Tensor) -> Tensor:
    """Cosine of the angle between every two edges of an atom, ``u_ik · u_ik'``.

    Args:
        direction_NK3: Unit vectors, shape (N, K, 3).

    Returns:
        Shape (N, K, K).
    """
    return _pair_cosines(direction_NK3.double()).to(direction_NK3.dtype)


def _pair_cosines(direction_NK3: Tensor) -> Tensor:
    # No matrix product: where TF32 is allowed, one in the backward pass would round the forces' geometry.
    products_3NKK = [u_NK.unsqueeze(2) * u_NK.unsqueeze(1) for u_NK in direction_NK3.unbind(-1)]
    return products_3NKK[0] + products_3NKK[1] + products_3NKK[2]


def masked_sum(features_NKD: Tensor, mask_NK: Tensor) -> Tensor:
    """Sum over the used slots; shape (N, K, ...) to (N, ...)."""
    mask = mask_NK.reshape(mask_NK.shape + (1,) * (features_NKD.dim() - 2))
    return features_NKD.masked_fill(~mask, 0.0).sum(dim=1)


def masked_mean(features_NKD: Tensor, mask_NK: Tensor) -> Tensor:
    """Mean over the used slots; shape (N, K, ...) to (N, ...). Every atom has at least one."""
    count = mask_NK.sum(dim=1).to(features_NKD.dtype)
    total = masked_sum(features_NKD, mask_NK)
    return total / count.reshape(count.shape + (1,) * (total.dim() - 1))
