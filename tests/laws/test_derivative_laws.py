"""Conservative forces and stress are derivatives, once and twice, checked in float64 against finite differences."""

from __future__ import annotations

import pytest
import torch

from escaip_fairchem.nn import build_graph, energy_derivatives, make_differentiable
from escaip_fairchem.testing import (
    batch,
    check_finite_difference_forces,
    check_finite_difference_stress,
    structures,
    tiny_predictor,
)

STRUCTURES = {
    "bulk": structures.disordered(1),
    "slab": structures.disordered(5, 5, (True, True, False)),
    "molecule": structures.molecule(3),
    "one atom": structures.disordered(2, 1, length=2.6),
}


@pytest.mark.parametrize("name", ["bulk", "slab", "molecule"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_forces(name, reduce):
    check_finite_difference_forces(tiny_predictor("conservative", energy_reduce=reduce), STRUCTURES[name])


@pytest.mark.parametrize("name", ["bulk", "slab", "one atom"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_stress(name, reduce):
    check_finite_difference_stress(tiny_predictor("conservative", energy_reduce=reduce), STRUCTURES[name])


def test_stress_is_that_of_the_whole_structure_wherever_its_atoms_are():
    """Atoms outside the cell and a left-handed cell: the volume stays positive, the stress the same."""
    structure = structures.disordered(1)
    moved = structure.positions + torch.randint(-2, 3, (len(structure), 3)).double() @ structure.cell
    swapped = structure.replaced(positions=moved, cell=structure.cell[[1, 0, 2]])
    predictor = tiny_predictor("conservative")
    check_finite_difference_stress(predictor, swapped)
    expected = predictor(batch([structure]))["stress"]
    assert torch.allclose(predictor(batch([swapped]))["stress"], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("activation", ["gelu", "silu", "squared_relu", "star_relu", "smelu"])
@pytest.mark.parametrize("basis", ["gaussian", "sigmoid", "linearsigmoid", "silu"])
def test_forces_with_every_continuously_differentiable_activation_and_basis(activation, basis):
    predictor = tiny_predictor("conservative", activation=activation, distance_function=basis, num_layers=1)
    # Some have second derivatives that jump: few of the jumps lie within a tiny step.
    check_finite_difference_forces(predictor, structures.molecule(4, 3), step=3e-6)


def test_forces_sum_to_zero_and_stress_is_symmetric():
    outputs = tiny_predictor("conservative")(batch([STRUCTURES["bulk"], STRUCTURES["molecule"]]))
    assert outputs["forces"][:6].sum(0).abs().max() < 1e-13
    assert outputs["forces"][6:].sum(0).abs().max() < 1e-13
    assert torch.allclose(outputs["stress"], outputs["stress"].transpose(1, 2), rtol=0, atol=1e-14)


def test_the_sum_s_forces_are_the_mean_s_times_the_atoms():
    by_mean = tiny_predictor("conservative", energy_reduce="mean")(batch([STRUCTURES["bulk"]]))
    by_sum = tiny_predictor("conservative", energy_reduce="sum")(batch([STRUCTURES["bulk"]]))
    for name in ("energy", "forces", "stress"):
        assert torch.allclose(by_sum[name], 6 * by_mean[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", STRUCTURES)
def test_first_and_second_derivatives_by_gradcheck(name):
    predictor, systems = tiny_predictor("conservative", num_layers=1, hidden_size=8), batch([STRUCTURES[name]])
    neighborhoods = predictor.neighborhoods(systems)

    def energy(positions_N3, strain_B33):
        symmetric = 0.5 * (strain_B33 + strain_B33.transpose(1, 2))
        moved = positions_N3 + (positions_N3.unsqueeze(1) @ symmetric[systems.structure_N]).squeeze(1)
        strained = systems.with_geometry(moved, systems.cell_B33 + systems.cell_B33 @ symmetric)
        return predictor.energy_of(build_graph(strained, neighborhoods))

    inputs = (
        systems.positions_N3.clone().requires_grad_(True),
        torch.zeros_like(systems.cell_B33).requires_grad_(True),
    )
    assert torch.autograd.gradcheck(energy, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(energy, inputs, fast_mode=True)


@pytest.mark.parametrize("kind", ["direct", "equivariant rank-2", "original rank-2"])
def test_direct_predictions_are_differentiable_in_the_positions(kind):
    predictor, systems = tiny_predictor(kind, num_layers=1, hidden_size=8), batch([structures.molecule(3)])
    neighborhoods = predictor.neighborhoods(systems)

    def outputs(positions_N3):
        moved = systems.with_geometry(positions_N3, systems.cell_B33)
        return tuple(predictor(moved, neighborhoods=neighborhoods).values())

    assert torch.autograd.gradcheck(outputs, (systems.positions_N3.clone().requires_grad_(True),), fast_mode=True)


@pytest.mark.parametrize("seed", range(3))
def test_a_loss_on_forces_and_stress_has_the_right_gradient_for_the_parameters(seed):
    predictor = tiny_predictor("conservative")
    systems = batch([STRUCTURES["bulk"], STRUCTURES["molecule"]])
    generator = torch.Generator().manual_seed(seed)
    parameters = list(predictor.parameters())
    direction = [torch.randn(part.shape, generator=generator, dtype=part.dtype) for part in parameters]

    def loss():
        outputs = predictor(systems)
        return (1e3 * outputs["forces"]).square().sum() + (1e3 * outputs["stress"]).square().sum()

    loss().backward()
    used = [(part.grad, way) for part, way in zip(parameters, direction, strict=True) if part.grad is not None]
    exact = sum(float((gradient * way).sum()) for gradient, way in used)
    step, values = 1e-5, []
    for multiple in (-2, -1, 1, 2):
        with torch.no_grad():
            for part, way in zip(parameters, direction, strict=True):
                part.add_(way, alpha=multiple * step)
        values.append(float(loss().detach()))
        with torch.no_grad():
            for part, way in zip(parameters, direction, strict=True):
                part.sub_(way, alpha=multiple * step)
    numeric = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    assert numeric == pytest.approx(exact, rel=1e-6)


def test_predicting_keeps_no_graph_and_training_does():
    predictor, systems = tiny_predictor("conservative"), batch([STRUCTURES["bulk"]])
    with torch.no_grad():
        evaluated = predictor(systems)
    trained = predictor(systems)
    assert not evaluated["forces"].requires_grad
    assert trained["forces"].requires_grad
    assert torch.equal(evaluated["forces"], trained["forces"])
    assert not systems.positions_N3.requires_grad, "inputs stay as they were given"


def test_derivatives_are_those_of_the_inputs_not_of_the_network():
    """A potential known in closed form: E = ½ k Σ|r|² has F = −k r and virial k Σ r⊗r."""
    systems = batch([structures.molecule(1), structures.disordered(1)])
    strained = make_differentiable(systems)
    squares = 0.5 * 3.0 * strained.systems.positions_N3.square().sum(1, keepdim=True)
    energy = torch.zeros(2, 1, dtype=torch.float64).index_add(0, systems.structure_N, squares)
    forces, virial = energy_derivatives(energy, strained, create_graph=False)
    assert torch.allclose(forces, -3.0 * systems.positions_N3)
    for row in range(2):
        own = systems.positions_N3[systems.structure_N == row]
        assert torch.allclose(virial[row], 3.0 * own.T @ own)
