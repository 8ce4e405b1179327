"""Perfect crystals, where the original's conservative forces are NaN: finite, and zero where symmetry says so."""

from __future__ import annotations

import pytest
import torch

from escaip_fairchem.testing import KINDS, TOLERANCES, batch, structures, tiny_predictor
from escaip_fairchem.testing.tolerances import root_mean_square

DTYPES = (torch.float32, torch.float64)
CRYSTALS = {
    "fcc Cu, primitive": structures.copper(),
    "fcc Cu, cubic": structures.copper(cubic=True),
    "NaCl": structures.rock_salt(),
    "diamond Si": structures.silicon(),
}
# As many slots as close a shell: 12 + 6, 6 + 12, 4 + 12 neighbours.
CLOSED_SHELLS = {"fcc Cu, primitive": 18, "fcc Cu, cubic": 18, "NaCl": 18, "diamond Si": 16}


def rattled(structure, size):
    noise = torch.randn(structure.positions.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return structure.replaced(positions=structure.positions + size * noise)


@pytest.mark.parametrize("name", CRYSTALS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_predictions_are_finite(name, kind, dtype):
    for value in tiny_predictor(kind, dtype=dtype)(batch([CRYSTALS[name]], dtype)).values():
        assert value.isfinite().all()


@pytest.mark.parametrize("name", CRYSTALS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lmax", [6, 9])
def test_conservative_forces_vanish_where_whole_shells_are_kept(name, dtype, lmax):
    predictor = tiny_predictor(
        "conservative", dtype=dtype, max_neighbors=CLOSED_SHELLS[name], node_direction_expansion_size=lmax + 1
    )
    forces = predictor(batch([CRYSTALS[name]], dtype))["forces"]
    usual = root_mean_square(predictor(batch([rattled(structures.rock_salt(), 0.05)], dtype))["forces"])
    assert forces.abs().max() <= TOLERANCES["zero by symmetry"].at(dtype) * usual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("max_neighbors", [1, 5, 20])
def test_the_atom_of_a_one_atom_cell_feels_no_conservative_force(dtype, max_neighbors):
    predictor = tiny_predictor("conservative", dtype=dtype, max_neighbors=max_neighbors)
    outputs = predictor(batch([structures.copper(), structures.disordered(1, 1, length=3.0)], dtype))
    assert outputs["forces"].abs().max() <= TOLERANCES["zero by symmetry"].at(dtype)
    assert outputs["stress"].abs().max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_cell_with_hundreds_of_self_images(kind):
    tight = structures.make([1], [[0.1, 0.2, 0.3]], 0.7 * structures.disordered(1, 1, length=1.0).cell)
    predictor = tiny_predictor(kind)
    neighborhoods = predictor.neighborhoods(batch([tight]))
    assert neighborhoods.mask_NK.all()
    assert neighborhoods.mask_NK.shape == (1, 20)
    for value in predictor(batch([tight])).values():
        assert value.isfinite().all()


@pytest.mark.parametrize("name", [name for name in CRYSTALS if name != "fcc Cu, primitive"])
def test_forces_grow_continuously_from_zero(name):
    """The rounding of the bond-orientational order joins smoothly: a tiny displacement makes a tiny force."""
    predictor = tiny_predictor("conservative", max_neighbors=CLOSED_SHELLS[name])
    # Smaller ones show the rounding of sums that cancel: the orders themselves are some 1e-6 there.
    tiny, small, large = (
        root_mean_square(predictor(batch([rattled(CRYSTALS[name], size)]))["forces"]) for size in (3e-7, 3e-6, 1e-2)
    )
    assert small / tiny == pytest.approx(10, rel=0.02), "linear in the displacement"
    assert small < 0.05 * large


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_training_on_conservative_forces_of_perfect_crystals_has_finite_gradients(dtype):
    predictor = tiny_predictor("conservative", dtype=dtype)
    outputs = predictor(batch(list(CRYSTALS.values()), dtype))
    sum((value - 0.1).square().sum() for value in outputs.values()).backward()
    for name, parameter in predictor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
