"""Atoms without neighbours still have an element, feel no force, and do not know of each other."""

from __future__ import annotations

import pytest
import torch

from escaip_fairchem.testing import KINDS, batch, check_rotation, structures, tiny_predictor

DTYPES = (torch.float32, torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_energy_of_an_atom_depends_on_its_element_alone(kind, dtype):
    predictor = tiny_predictor(kind, dtype=dtype)
    elements = [1, 6, 8, 29, 89]
    energies = predictor(batch([structures.isolated(number) for number in elements], dtype))["energy"].squeeze(1)
    assert energies.isfinite().all()
    assert len({round(float(energy), 6) for energy in energies}) == len(elements)
    elsewhere = predictor(batch([structures.isolated(number, position=(-9, 4, 2)) for number in elements], dtype))
    assert torch.equal(elsewhere["energy"].squeeze(1), energies)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_pulls_at_an_isolated_atom(kind, dtype):
    """Exactly zero, alone and in a batch where other atoms fill more slots."""
    predictor = tiny_predictor(kind, dtype=dtype)
    alone = predictor(batch([structures.isolated(8)], dtype))
    batched = predictor(batch([structures.rock_salt(), structures.isolated(8), structures.slab()], dtype))
    for outputs, atom, row in ((alone, 0, 0), (batched, 8, 1)):
        if "forces" in outputs:
            assert not outputs["forces"][atom].any()
        if "stress" in outputs:
            assert not outputs["stress"][row].any()
        if kind == "equivariant rank-2":
            assert not outputs["anisotropic"][row].any()
    if "forces" in batched:
        assert batched["forces"][:8].any() or kind == "conservative"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_a_dimer_beyond_the_cutoff_is_two_atoms(kind, reduce):
    predictor = tiny_predictor(kind, energy_reduce=reduce)
    near, far = [structures.make([8, 29], [[0.0, 0.0, 0.0], [distance, 0.0, 0.0]]) for distance in (4.9999, 5.0001)]
    outputs = predictor(batch([far]))
    atoms = predictor(batch([structures.isolated(8), structures.isolated(29)]))
    expected = atoms["energy"].mean() if reduce == "mean" else atoms["energy"].sum()
    assert torch.allclose(outputs["energy"].squeeze(), expected, rtol=1e-12)
    if "forces" in outputs:
        assert not outputs["forces"].any()
    assert not torch.allclose(predictor(batch([near]))["energy"].squeeze(), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_structures_far_apart_are_additive(kind):
    """With energies summed, a structure of two distant parts has the energy of both."""
    predictor = tiny_predictor(kind, energy_reduce="sum")
    one, other = structures.molecule(1), structures.molecule(2)
    both = structures.make(
        [*one.numbers.tolist(), *other.numbers.tolist()], torch.cat((one.positions, other.positions + 50.0))
    )
    joined, parts = predictor(batch([both])), predictor(batch([one, other]))
    assert torch.allclose(joined["energy"].sum(), parts["energy"].sum(), rtol=1e-12)
    if "forces" in joined:
        assert torch.allclose(joined["forces"], parts["forces"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_an_isolated_atom_in_a_large_periodic_cell(kind):
    cell = 30.0 * torch.eye(3, dtype=torch.float64)
    periodic = structures.isolated(8).replaced(cell=cell, pbc=torch.tensor([True] * 3))
    predictor = tiny_predictor(kind)
    expected = predictor(batch([structures.isolated(8)]))
    assert torch.equal(predictor(batch([periodic]))["energy"], expected["energy"])
    assert not predictor(batch([periodic]))["forces"].any()


def test_an_isolated_atom_and_a_dimer_turn_as_everything_else():
    dimer = structures.make([8, 29], [[0.0, 0.0, 0.0], [1.2, 0.4, -0.3]])
    check_rotation(
        tiny_predictor("conservative"),
        [structures.isolated(8), dimer],
        structures.rotation_matrix(0),
        vectors=["forces"],
    )
