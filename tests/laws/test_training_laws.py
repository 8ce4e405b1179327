"""What training relies on: gradients everywhere, low precision that stays close, no side effects, exact copies."""

from __future__ import annotations

import copy
import io
import itertools
import pickle

import pytest
import torch

from escaip_fairchem.testing import KINDS, TOLERANCES, batch, relative_error, structures, tiny_predictor
from escaip_fairchem.testing.tolerances import root_mean_square

ZOO = [structures.disordered(1), structures.molecule(), structures.slab(), structures.isolated(8)]


def total(outputs):
    return sum((value - 0.3).square().sum() for value in outputs.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("basis", ["gaussian", "silu"])
def test_every_parameter_gets_a_gradient(kind, training, basis):
    """Distributed training waits for each of them; one that is never used stops it."""
    dropouts = {"mlp_dropout": 0.1, "atten_dropout": 0.1, "stochastic_depth_prob": 0.1} if training else {}
    predictor = tiny_predictor(kind, distance_function=basis, **dropouts).train(training)
    total(predictor(batch(ZOO))).backward()
    for name, parameter in predictor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_any_edge_still_trains_every_parameter_it_uses(kind):
    predictor = tiny_predictor(kind)
    outputs = predictor(batch([structures.isolated(8), structures.isolated(1)]))
    total(outputs).backward()
    for name, parameter in predictor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast_is_close(kind):
    predictor = tiny_predictor(kind, dtype=torch.float32, execution="plain")
    systems = batch(ZOO, torch.float32)
    reference = predictor(systems)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = predictor(systems)
    total(low).backward()
    for name, value in reference.items():
        assert low[name].dtype == torch.float32, "sums are taken in float32"
        error = relative_error(low[name], value)
        assert 0 < error < TOLERANCES["bf16"].float32, (name, error)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast_is_as_close_on_the_fast_path(kind, gradients):
    """Which single number is rounded worst is luck; the root mean square over several models is not."""
    systems = batch(ZOO, torch.float32)
    errors: dict[tuple[str, str], list[float]] = {}
    for seed, execution in itertools.product(range(6), ("plain", "fast")):
        predictor = tiny_predictor(kind, seed=seed, dtype=torch.float32, execution=execution)
        with torch.set_grad_enabled(gradients):
            reference = predictor(systems)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                low = predictor(systems)
        for name, value in reference.items():
            assert low[name].dtype == torch.float32, "sums are taken in float32"
            error = root_mean_square(low[name] - value) / root_mean_square(value)
            errors.setdefault((name, execution), []).append(error)
    for name in reference:
        fast, plain = (sum(errors[name, execution]) for execution in ("fast", "plain"))
        assert 0 < fast < 1.5 * plain, (name, fast, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_float64_parameters_and_float32_parameters_agree(kind):
    double = tiny_predictor(kind, seed=0, dtype=torch.float64)(batch(ZOO, torch.float64))
    single = tiny_predictor(kind, seed=0, dtype=torch.float32)(batch(ZOO, torch.float32))
    for name, value in double.items():
        assert value.dtype == torch.float64
        assert single[name].dtype == torch.float32
        assert relative_error(single[name], value) < 2e-5, name


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_deterministic_to_the_last_bit(kind):
    predictor, systems = tiny_predictor(kind, mlp_dropout=0.3, atten_dropout=0.3, stochastic_depth_prob=0.3), batch(ZOO)
    first, second = predictor(systems), predictor(systems)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_draws_from_torch_s_generator_and_nothing_else():
    predictor = tiny_predictor("direct", mlp_dropout=0.3, atten_dropout=0.3, stochastic_depth_prob=0.3).train()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(predictor(batch(ZOO))["energy"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def global_state():
    return {
        "matmul precision": torch.get_float32_matmul_precision(),
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "memory efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled(),
        "threads": torch.get_num_threads(),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["math", "flash"])
def test_building_and_running_leave_the_process_as_it_was(kind, attention):
    if kind == "conservative" and attention == "flash":
        pytest.skip("refused: no second derivative")
    before = global_state()
    predictor = tiny_predictor(kind, atten_name=attention)
    generator_before = torch.get_rng_state()
    systems = batch(ZOO)
    inputs = copy.deepcopy(systems)
    predictor(systems)
    assert global_state() == before
    assert torch.equal(torch.get_rng_state(), generator_before), "evaluation draws no random numbers"
    for name in ("positions_N3", "cell_B33", "pbc_B3", "numbers_N", "structure_N"):
        assert torch.equal(getattr(systems, name), getattr(inputs, name)), "inputs are not mutated"


@pytest.mark.parametrize("kind", KINDS)
def test_copies_predict_the_same(kind):
    predictor, systems = tiny_predictor(kind), batch(ZOO)
    expected = predictor(systems)
    file = io.BytesIO()
    torch.save(predictor.state_dict(), file)
    file.seek(0)
    loaded = tiny_predictor(kind, seed=1)
    assert not torch.equal(loaded(systems)["energy"], expected["energy"])
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor)), loaded):
        actual = other(systems)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_extreme_geometries_stay_finite(kind):
    predictor = tiny_predictor(kind)
    extremes = [
        structures.make([1, 1], [[0.0, 0.0, 0.0], [0.002, 0.0, 0.0]]),
        structures.make([1, 1], [[1e6, 1e6, 1e6], [1e6 + 1.0, 1e6, 1e6]]),
        structures.make([8, 8, 8], [[0.0, 0.0, 0.0], [1e5, 0.0, 0.0], [0.0, 1.1, 0.0]]),
        structures.make([29], [[0.0, 0.0, 0.0]], 1e4 * torch.eye(3, dtype=torch.float64)),
        structures.make([29, 29], [[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]], [[3.0, 0, 0], [0, 300.0, 0], [0, 0, 30.0]]),
    ]
    for value in predictor(batch(extremes)).values():
        assert value.isfinite().all()


def test_many_atoms_of_one_structure_and_one_atom_of_another():
    crowd = structures.disordered(9, 60, length=9.0, apart=1.0)
    outputs = tiny_predictor("direct")(batch([crowd, structures.isolated(3), crowd]))
    assert torch.allclose(outputs["forces"][:60], outputs["forces"][61:], rtol=1e-11, atol=1e-13)
