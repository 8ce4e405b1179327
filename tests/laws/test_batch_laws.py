"""A structure's predictions are its own: whatever else is in the batch, whatever the order, whatever the padding."""

from __future__ import annotations

import itertools

import pytest
import torch

from escaip_fairchem.testing import (
    KINDS,
    Predictor,
    batch,
    check_alone_equals_batched,
    check_atom_permutation,
    check_no_cross_talk,
    check_padding,
    check_structure_permutation,
    relative_error,
    structures,
    tiny_config,
    tiny_predictor,
)

ZOO = [
    structures.copper(),
    structures.rock_salt(),
    structures.disordered(1),
    structures.molecule(),
    structures.slab(),
    structures.isolated(8),
    structures.disordered(2, 4, (True, False, True)),
    structures.silicon(),
]

MODELS = [*((kind, torch.float64) for kind in KINDS), ("direct", torch.float32), ("conservative", torch.float32)]
all_models = pytest.mark.parametrize(("kind", "dtype"), MODELS, ids=str)


@all_models
def test_alone_equals_batched(kind, dtype):
    check_alone_equals_batched(tiny_predictor(kind, dtype=dtype), ZOO, dtype)


@all_models
@pytest.mark.parametrize("extra", [1, 7])
def test_empty_slots_change_nothing(kind, dtype, extra):
    check_padding(tiny_predictor(kind, dtype=dtype), ZOO, extra, dtype)


@all_models
def test_structures_in_another_order(kind, dtype):
    check_structure_permutation(tiny_predictor(kind, dtype=dtype), ZOO, [3, 1, 2, 0, 7, 6, 5, 4], dtype)


@all_models
@pytest.mark.parametrize("structure", [structures.slab(), structures.rock_salt(), structures.disordered(3, 8)])
def test_atoms_in_another_order(kind, dtype, structure):
    check_atom_permutation(tiny_predictor(kind, dtype=dtype), structure, torch.randperm(len(structure)), dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_crosses_from_one_structure_to_another(kind):
    apart = [structures.disordered(1), structures.molecule(), structures.disordered(2, 4, (True, False, True))]
    check_no_cross_talk(tiny_predictor(kind), apart)


@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_every_combination_of_periodic_axes_in_one_batch(kind):
    same_atoms = [structures.disordered(4, 5, pbc) for pbc in itertools.product([True, False], repeat=3)]
    predictor = tiny_predictor(kind)
    check_alone_equals_batched(predictor, same_atoms)
    energies = predictor(batch(same_atoms))["energy"].squeeze(1)
    assert len({round(float(energy), 9) for energy in energies}) == 8, (
        "periodicity must matter for this law to mean much"
    )


@pytest.mark.parametrize("attention", ["math", "scaled_dot_product"])
@pytest.mark.parametrize("angles", [True, False])
def test_padding_is_invisible_to_every_attention(attention, angles):
    predictor = tiny_predictor("direct", atten_name=attention, use_angle_embedding=angles)
    check_padding(predictor, ZOO, 5)
    check_alone_equals_batched(predictor, ZOO)


@pytest.mark.parametrize("normalization", ["rmsnorm", "layernorm", "none"])
@pytest.mark.parametrize("basis", ["gaussian", "sigmoid", "linearsigmoid", "silu"])
def test_the_laws_hold_for_every_norm_and_basis(normalization, basis):
    predictor = tiny_predictor("conservative", normalization=normalization, distance_function=basis)
    check_alone_equals_batched(predictor, ZOO)
    check_padding(predictor, ZOO, 2)


def test_the_checks_notice_a_model_that_lets_structures_mix():
    class Mixing(Predictor):
        def forward(self, systems, *, neighborhoods=None):
            outputs = super().forward(systems, neighborhoods=neighborhoods)
            return {**outputs, "energy": outputs["energy"] + 1e-9 * systems.positions_N3.sum()}

    mixing = Mixing(tiny_config(), "energy").double().eval()
    apart = [structures.disordered(1), structures.molecule()]
    with pytest.raises(AssertionError, match="energy of structure 0: gradient .* with respect to other structures"):
        check_no_cross_talk(mixing, apart)
    with pytest.raises(AssertionError, match="energy, batched against alone"):
        check_alone_equals_batched(mixing, apart)


def test_errors_that_are_no_numbers_count_as_infinite():
    zeros = torch.zeros(3)
    assert relative_error(zeros[:2], zeros) == float("inf")
    assert relative_error(torch.full((3,), float("nan")), zeros) == float("inf")
    assert relative_error(zeros, zeros) == 0.0
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([4.0, 4.0])) == pytest.approx(0.25)
