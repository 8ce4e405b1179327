"""Radial bases, bond-orientational order and masked reductions, against independent computations."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from scipy.special import eval_legendre

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn.basis import (
    BOO_FLOOR,
    DISTANCE_FUNCTIONS,
    angle_cosines,
    bond_orientational_order,
    build_radial_basis,
    masked_mean,
    masked_sum,
    smooth_norm,
)

DISTANCES = torch.tensor([[0.0, 0.5, 1.7], [3.2, 5.99, 6.0]])


def test_gaussian_by_hand():
    # Centres 0, 3, 6; width 2 × 3.
    basis = build_radial_basis("gaussian", 6.0, 3)(torch.tensor([[4.5]], dtype=torch.float64))
    expected = [np.exp(-0.5 * (4.5 / 6) ** 2), np.exp(-0.5 * (1.5 / 6) ** 2), np.exp(-0.5 * (1.5 / 6) ** 2)]
    assert basis[0, 0].tolist() == pytest.approx(expected, rel=1e-12)


def test_sigmoids_by_hand():
    # Centres 0, 3, 6; argument 2 (d − c) / 3.
    distance, arguments = torch.tensor([[4.5]], dtype=torch.float64), np.array([3.0, 1.0, -1.0])
    plain = build_radial_basis("sigmoid", 6.0, 3)(distance)[0, 0].tolist()
    sloped = build_radial_basis("linearsigmoid", 6.0, 3)(distance)[0, 0].tolist()
    assert plain == pytest.approx(1 / (1 + np.exp(-arguments)), rel=1e-12)
    assert sloped == pytest.approx(1 / (1 + np.exp(-arguments)) + 0.001 * arguments, rel=1e-12)


def test_silu_by_hand():
    basis = build_radial_basis("silu", 6.0, 2).double()
    with torch.no_grad():
        basis.affine.weight.copy_(torch.tensor([[2.0, 1.0], [-1.0, 0.5]]))
        basis.affine.bias.copy_(torch.tensor([0.1, -0.2]))
    arguments = np.array([2 * 1.5 + 1.0 + 0.1, -1.5 + 0.5 - 0.2])
    actual = basis(torch.tensor([[1.5]], dtype=torch.float64))[0, 0].tolist()
    assert actual == pytest.approx(arguments / (1 + np.exp(-arguments)), rel=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("fairchem") is None, reason="fairchem is not installed")
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("gaussian", "GaussianSmearing"),
        ("sigmoid", "SigmoidSmearing"),
        ("linearsigmoid", "LinearSigmoidSmearing"),
        ("silu", "SiLUSmearing"),
    ],
)
@pytest.mark.parametrize(("cutoff", "size"), [(6.0, 128), (12.0, 600)])
def test_bases_equal_fairchem_s(name, reference, cutoff, size):
    from fairchem.core.models.scn import smearing

    import escaip_fairchem  # noqa: F401 -- before fairchem

    ours = build_radial_basis(name, cutoff, size)
    theirs = getattr(smearing, reference)(0.0, cutoff, size, basis_width_scalar=2.0)
    if name == "silu":
        theirs.fc1.load_state_dict(ours.affine.state_dict())
    distances = torch.rand(4, 7) * cutoff
    # The widths are rounded differently in float32, and the sigmoids' arguments reach 1200.
    assert torch.allclose(ours(distances), theirs(distances.reshape(-1)).reshape(4, 7, size), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", DISTANCE_FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bases_keep_the_dtype_and_have_derivatives(name, dtype):
    basis = build_radial_basis(name, 6.0, 16).to(dtype)
    distances = DISTANCES.to(dtype).requires_grad_(True)
    expanded = basis(distances)
    assert expanded.shape == (2, 3, 16)
    assert expanded.dtype == dtype
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(basis, (distances,))


def test_an_unknown_basis_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"distance_function: 'gausian' is unknown \(did you mean 'gaussian'\?\)"):
        build_radial_basis("gausian", 6.0, 8)


def legendre_order(directions, lmax):
    """Independent of spherical harmonics: by their addition theorem, |BOO_l|² = (2l + 1) mean_kk' P_l(u_k · u_k')."""
    cosines = np.clip(directions @ directions.T, -1, 1)
    return [np.sqrt(max((2 * order + 1) * eval_legendre(order, cosines).mean(), 0.0)) for order in range(lmax + 1)]


@pytest.mark.parametrize("neighbors", [1, 2, 5, 20])
@pytest.mark.parametrize("lmax", [0, 3, 9, 11])
def test_bond_orientational_order_by_the_addition_theorem(neighbors, lmax):
    directions = torch.nn.functional.normalize(torch.randn(3, neighbors, 3, dtype=torch.float64), dim=-1)
    mask = torch.ones(3, neighbors, dtype=torch.bool)
    if neighbors > 2:
        mask[1, 2:] = False
    actual = bond_orientational_order(directions, mask, lmax)
    assert actual.shape == (3, lmax + 1)
    for atom in range(3):
        expected = legendre_order(directions[atom][mask[atom]].numpy(), lmax)
        assert actual[atom].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_bond_orientational_order_of_known_shapes():
    octahedron = torch.tensor([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1.0]]).double()
    order = bond_orientational_order(octahedron.unsqueeze(0), torch.ones(1, 6, dtype=torch.bool), 4)[0]
    # Steinhardt's Q4 of the octahedron is sqrt(7/12); component normalisation multiplies it by sqrt(2l + 1) = 3.
    assert order.tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0, 3 * (7 / 12) ** 0.5], abs=1e-12)
    single = bond_orientational_order(octahedron[:1].unsqueeze(0), torch.ones(1, 1, dtype=torch.bool), 4)[0]
    assert single.tolist() == pytest.approx([1, 3**0.5, 5**0.5, 7**0.5, 3])


def test_empty_slots_do_not_count_whatever_they_hold():
    directions = torch.nn.functional.normalize(torch.randn(2, 4, 3, dtype=torch.float64), dim=-1)
    mask = torch.tensor([[True, True, False, False]] * 2)
    other = directions.clone()
    other[:, 2:] = torch.tensor([100.0, -3.0, 0.0]).double()
    assert torch.equal(bond_orientational_order(directions, mask, 9), bond_orientational_order(other, mask, 9))


def test_bond_orientational_order_is_differentiable_where_it_vanishes():
    octahedron = torch.tensor([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1.0]]).double()
    directions = octahedron.unsqueeze(0).requires_grad_(True)
    mask = torch.ones(1, 6, dtype=torch.bool)
    order = bond_orientational_order(directions, mask, 9)
    (first,) = torch.autograd.grad(order.sum(), directions, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), directions)
    assert first.isfinite().all()
    assert second.isfinite().all()


def test_smooth_norm_is_exact_above_its_floor_and_zero_at_zero():
    values = torch.tensor([1e-3, 2e-3, 0.5, 40.0], dtype=torch.float64)
    assert torch.allclose(smooth_norm(values.square(), 1e-3), values, rtol=1e-12)
    assert smooth_norm(torch.zeros(1), 1e-3).item() == 0.0


def test_smooth_norm_below_its_floor_by_hand():
    # t = ¼: floor (15/4 − 10/16 + 3/64)/8
    actual = smooth_norm(torch.tensor([0.25], dtype=torch.float64), 1.0).item()
    assert actual == pytest.approx((3.75 - 0.625 + 3 / 64) / 8, rel=1e-12)


def test_smooth_norm_has_two_continuous_derivatives_where_it_joins():
    floor = 0.7
    jets = []
    for side in (-1, 1):
        value = torch.tensor(floor * (1 + side * 1e-9), dtype=torch.float64, requires_grad=True)
        norm = smooth_norm(value.square(), floor)
        (first,) = torch.autograd.grad(norm, value, create_graph=True)
        (second,) = torch.autograd.grad(first, value)
        jets.append([norm.item(), first.item(), second.item()])
    assert jets[0] == pytest.approx(jets[1], rel=1e-6, abs=1e-6)
    assert jets[0] == pytest.approx([floor, 1.0, 0.0], abs=1e-6)


def test_smooth_norm_rises_monotonically_with_finite_derivatives():
    values = torch.linspace(0, 2 * BOO_FLOOR, 401, dtype=torch.float64).square().requires_grad_(True)
    norm = smooth_norm(values, BOO_FLOOR)
    assert (norm.diff() > 0).all()
    (first,) = torch.autograd.grad(norm.sum(), values, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), values)
    assert first.isfinite().all()
    assert second.isfinite().all()


def test_angle_cosines():
    directions = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [2**-0.5, 2**-0.5, 0]]], dtype=torch.float64)
    expected = torch.tensor([[1, 0, 2**-0.5], [0, 1, 2**-0.5], [2**-0.5, 2**-0.5, 1]], dtype=torch.float64)
    assert torch.allclose(angle_cosines(directions)[0], expected)


def test_masked_sum_and_mean_by_hand():
    features = torch.tensor([[[1.0], [2.0], [float("nan")]], [[5.0], [7.0], [9.0]]])
    mask = torch.tensor([[True, True, False], [False, True, False]])
    assert masked_sum(features, mask).tolist() == [[3.0], [7.0]]
    assert masked_mean(features, mask).tolist() == [[1.5], [7.0]]
    deeper = masked_mean(features.unsqueeze(-1).expand(2, 3, 1, 4), mask)
    assert deeper.tolist() == [[[1.5] * 4], [[7.0] * 4]]
