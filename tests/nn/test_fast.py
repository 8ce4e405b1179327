"""The fast path computes what the plain one does: features, predictions and every gradient."""

from __future__ import annotations

import pytest
import torch

from escaip_fairchem.nn.activations import ACTIVATIONS
from escaip_fairchem.nn.basis import DISTANCE_FUNCTIONS, GaussianBasis
from escaip_fairchem.nn.fast import inference
from escaip_fairchem.nn.fast.distances import without_underflow
from escaip_fairchem.nn.fast.flatten import tensors_in
from escaip_fairchem.nn.fast.rmsnorm import _RMSNorm, rms_norm
from escaip_fairchem.nn.normalization import RMSNorm
from escaip_fairchem.testing import KINDS, batch, relative_error, structures, tiny_predictor
from escaip_fairchem.testing.tolerances import assert_close

ZOO = [
    structures.disordered(1),
    structures.molecule(),
    structures.slab(),
    structures.isolated(8),
    structures.disordered(2, 4, (True, False, True)),
]


def pair(kind: str, *, dtype: torch.dtype, **changes):
    """The same model on both paths."""
    plain = tiny_predictor(kind, dtype=dtype, execution="plain", **changes)
    fast = tiny_predictor(kind, dtype=dtype, execution="fast", **changes)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def compare(plain, fast, systems) -> None:
    expected, actual = plain(systems), fast(systems)
    assert set(actual) == set(expected)
    for name, reference in expected.items():
        assert_close(actual[name], reference, "same numbers", name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_without_gradients(kind, dtype):
    plain, fast = pair(kind, dtype=dtype)
    with torch.no_grad():
        compare(plain, fast, batch(ZOO, dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_in_chunks(kind, monkeypatch):
    monkeypatch.setitem(inference.CHUNK_VALUES, "cpu", 60 * 16)
    plain, fast = pair(kind, dtype=torch.float64)
    with torch.no_grad():
        compare(plain, fast, batch(ZOO, torch.float64))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_gradient(kind, training):
    plain, fast = pair(kind, dtype=torch.float64)
    systems = batch(ZOO, torch.float64)
    for model in (plain, fast):
        model.train(training)
        outputs = model(systems)
        generator = torch.Generator().manual_seed(0)
        sum(
            (value * torch.randn(value.shape, generator=generator, dtype=value.dtype)).sum()
            for _, value in sorted(outputs.items())
        ).backward()
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in fast.named_parameters():
        assert (parameter.grad is None) == (expected[name] is None), name
        if parameter.grad is not None:
            assert relative_error(parameter.grad, expected[name], floor=1e-6) < 1e-10, name


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_every_activation(kind, activation):
    plain, fast = pair(kind, dtype=torch.float64, activation=activation)
    with torch.no_grad():
        compare(plain, fast, batch(ZOO, torch.float64))


@pytest.mark.parametrize("normalization", ["rmsnorm", "layernorm", "none"])
@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_every_normalization(kind, normalization):
    plain, fast = pair(kind, dtype=torch.float64, normalization=normalization)
    with torch.no_grad():
        compare(plain, fast, batch(ZOO, torch.float64))


@pytest.mark.parametrize("distance_function", DISTANCE_FUNCTIONS)
def test_every_basis(distance_function):
    plain, fast = pair("direct", dtype=torch.float64, distance_function=distance_function)
    with torch.no_grad():
        compare(plain, fast, batch(ZOO, torch.float64))


def test_layernorm_of_readouts_far_from_zero():
    """The variance of the concatenation comes from parts; a difference of squares would lose it in float32."""
    plain, fast = pair("direct", dtype=torch.float32, normalization="layernorm")
    exact, _ = pair("direct", dtype=torch.float64, normalization="layernorm")
    with torch.no_grad():
        for model in (plain, fast, exact):
            for readout in model.backbone.readouts:
                readout.node.ffn[1].bias.fill_(100.0)
        energies = [
            model(batch(ZOO, dtype))["energy"] for model, dtype in ((plain, torch.float32), (fast, torch.float32))
        ]
        reference = exact(batch(ZOO, torch.float64))["energy"]
    plain_error, fast_error = (relative_error(energy, reference) for energy in energies)
    assert fast_error < 2 * plain_error


def test_stochastic_depth_and_dropout_stay_random_per_structure():
    _, fast = pair("direct", dtype=torch.float64, stochastic_depth_prob=0.5, mlp_dropout=0.3, atten_dropout=0.3)
    systems = batch(ZOO, torch.float64)
    fast.train()
    with torch.no_grad():
        first, second = fast(systems)["forces"], fast(systems)["forces"]
    assert relative_error(first, second) > 1e-3


def test_the_rms_norm_written_out_and_its_gradients():
    norm = RMSNorm(7).double()
    inputs = torch.randn(3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    torch.nn.init.normal_(norm.weight)
    assert relative_error(rms_norm(norm, inputs), norm(inputs)) < 1e-14
    assert torch.autograd.gradcheck(lambda x, w: _RMSNorm.apply(x, w, norm.EPSILON), (inputs, norm.weight))
    zeros = torch.zeros(2, 7, dtype=torch.float64, requires_grad=True)
    rms_norm(norm, zeros).sum().backward()
    assert zeros.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_rms_norm_sums_in_float32(dtype):
    norm = RMSNorm(2048)
    inputs = torch.full((1, 2048), 300.0, dtype=dtype, requires_grad=True)  # whose square exceeds float16
    outputs = rms_norm(norm, inputs)
    assert outputs.dtype == dtype
    assert relative_error(outputs, torch.ones_like(outputs)) < 1e-2
    outputs.sum().backward()
    assert inputs.grad.dtype == dtype
    assert norm.weight.grad.dtype == torch.float32


def kept_bytes(model, systems) -> int:
    """Memory that the backward pass keeps from a forward pass."""
    kept = {}

    def remember(tensor):
        kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        model(systems)
    constants = (*model.parameters(), *tensors_in(model.backbone._table_keeper._tables))
    parameters = {tensor.data_ptr() for tensor in constants}
    return sum(t.numel() * t.element_size() for pointer, t in kept.items() if pointer not in parameters)


def test_forces_at_inference_keep_little_for_the_backward_pass():
    # So many atoms that the weights multiplied together, which are kept once, count little.
    systems = batch([structures.copper()] * 32, torch.float32)
    kept = {}
    for execution in ("plain", "fast"):
        model = tiny_predictor("conservative", dtype=torch.float32, execution=execution)
        with torch.no_grad():
            model(systems)
            kept[execution] = kept_bytes(model, systems)
        assert all(parameter.requires_grad for parameter in model.parameters())
    assert kept["fast"] < 0.6 * kept["plain"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_radial_values_cannot_underflow_in_products(dtype):
    radial = GaussianBasis(12.0, 600).to(dtype)(torch.linspace(0.0, 12.0, 500, dtype=dtype).unsqueeze(0))
    kept = without_underflow(radial)
    assert (kept - radial).abs().max() < 1e-15
    smallest = kept[kept > 0].min()
    assert smallest.square() > torch.finfo(dtype).tiny
