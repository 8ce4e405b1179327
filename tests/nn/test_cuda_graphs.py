"""CUDA graphs: what needs no GPU is tested anywhere, the rest where there is one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn.cuda_graphs import MAX_CAPTURES, CapturedPasses, StaticInputs
from escaip_fairchem.nn.fast.compiled import pass_key
from escaip_fairchem.nn.fast.flatten import tensors_in, with_tensors
from escaip_fairchem.nn.fast.inference import infer
from escaip_fairchem.nn.graph import build_graph
from escaip_fairchem.nn.precision import tf32
from escaip_fairchem.nn.recent import RecentlyUsed
from escaip_fairchem.nn.shapes import pad_graph
from escaip_fairchem.nn.systems import Systems
from escaip_fairchem.testing import batch, structures, tiny_predictor
from escaip_fairchem.testing.tolerances import assert_close

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

FIRST = [structures.disordered(1), structures.molecule()]
SECOND = [structures.disordered(2), structures.molecule()]


@pytest.fixture
def model():
    return tiny_predictor("direct", dtype=torch.float32)


@torch.no_grad()
def inputs_of(model, found):
    systems = batch(found, torch.float32)
    graph = pad_graph(build_graph(systems, model.neighborhoods(systems)), model.config.max_neighbors)
    return model.backbone.fast_inputs(graph, False)


@torch.no_grad()
def test_a_pass_over_static_inputs_follows_what_is_copied_in(model):
    first, second = inputs_of(model, FIRST), inputs_of(model, SECOND)
    static = StaticInputs.like(first)
    places = [tensor.data_ptr() for tensor in tensors_in(static.inputs)]
    for inputs in (first, second, first):
        static.load(inputs)
        for found, expected in zip(infer(model.backbone, static.inputs), infer(model.backbone, inputs), strict=True):
            assert torch.equal(found, expected)
    assert [tensor.data_ptr() for tensor in tensors_in(static.inputs)] == places


def test_tables_are_read_where_they_are(model):
    inputs = inputs_of(model, FIRST)
    static = StaticInputs.like(inputs)
    tables = inputs.distances.constants()
    assert len(tables) == model.config.num_layers + 1
    assert all(a is b for a, b in zip(static.inputs.distances.constants(), tables, strict=True))
    assert len(static.buffers) == len(tensors_in(inputs)) - len(tables)
    buffers = {buffer.data_ptr() for buffer in static.buffers}
    assert not buffers & {tensor.data_ptr() for tensor in tensors_in(inputs)}


def test_the_key_tells_all_that_changes_the_operations_and_nothing_else(model):
    with torch.no_grad():
        first, second = inputs_of(model, FIRST), inputs_of(model, SECOND)
        keys = [pass_key(model.backbone, first)]
        assert pass_key(model.backbone, second) == keys[0]
        keys.append(pass_key(model.backbone, inputs_of(model, FIRST * 3)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            keys.append(pass_key(model.backbone, first))
        with tf32(True):
            keys.append(pass_key(model.backbone, first))
        keys.append(pass_key(model.backbone.train(), first))
        model.backbone.eval()
    keys.append(pass_key(model.backbone, first))  # with gradients
    assert len(set(keys)) == len(keys)


def test_recordings_are_forgotten_when_parameters_or_tables_move(model):
    inputs, captures = inputs_of(model, FIRST), CapturedPasses()
    captures.forget_if_moved(model.backbone, inputs)
    kept = captures._passes
    with torch.no_grad():
        next(model.backbone.parameters()).mul_(2.0)
    captures.forget_if_moved(model.backbone, inputs)
    assert captures._passes is kept
    parameter = next(model.backbone.parameters())
    parameter.data = parameter.data.clone()
    captures.forget_if_moved(model.backbone, inputs)
    assert captures._passes is not kept
    kept = captures._passes
    captures.forget_if_moved(model.backbone, with_tensors(inputs, iter([t.clone() for t in tensors_in(inputs)])))
    assert captures._passes is not kept


def test_what_was_unused_for_longest_goes_first():
    made: list[str] = []
    kept: RecentlyUsed[str] = RecentlyUsed(2)
    for key in ("a", "b", "a", "c", "a", "b"):
        assert kept.get(key, lambda key=key: made.append(key) or key) == key
    assert made == ["a", "b", "c", "b"]
    assert len(kept) == 2


def test_a_failure_keeps_nothing():
    kept: RecentlyUsed[str] = RecentlyUsed(2)
    with pytest.raises(ZeroDivisionError):
        kept.get("a", lambda: str(1 / 0))
    assert len(kept) == 0


def test_a_model_on_the_cpu_is_refused():
    model = tiny_predictor("direct", dtype=torch.float32, cuda_graphs=True)
    systems = batch(FIRST, torch.float32)
    with (
        torch.no_grad(),
        pytest.raises(ConfigError, match="cuda_graphs: .*on a GPU, this one is on cpu"),
    ):
        model(systems)
    model(systems)["forces"].sum().backward()  # training records nothing


def test_recordings_are_no_part_of_the_model():
    model = tiny_predictor("direct", cuda_graphs=True)
    plain = tiny_predictor("direct")
    assert list(model.state_dict()) == list(plain.state_dict())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(copied.backbone._captures, CapturedPasses)
        assert copied.backbone._captures is not model.backbone._captures


def on_gpu(found) -> Systems:
    systems = batch(found, torch.float32)
    return Systems(**{name: value.cuda() for name, value in vars(systems).items()})


@needs_gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["direct", "energy", "equivariant rank-2"])
def test_replays_give_the_same_numbers(kind, compiled):
    plain = tiny_predictor(kind, dtype=torch.float32, execution="plain").cuda()
    model = tiny_predictor(kind, dtype=torch.float32, cuda_graphs=True, compile=compiled).cuda()
    with torch.no_grad():
        kept = model(on_gpu(FIRST))
        values = {name: value.clone() for name, value in kept.items()}
        for found in (SECOND, FIRST * 3, FIRST, SECOND):
            expected, actual = plain(on_gpu(found)), model(on_gpu(found))
            for name, reference in expected.items():
                assert_close(actual[name], reference, "same numbers", name)
    assert all(torch.equal(kept[name], value) for name, value in values.items())  # a replay overwrites nobody's results
    assert len(model.backbone._captures._passes) == 2


@needs_gpu
def test_replays_follow_parameters_and_precision():
    plain = tiny_predictor("direct", dtype=torch.float32, execution="plain").cuda()
    model = tiny_predictor("direct", dtype=torch.float32, cuda_graphs=True).cuda()
    with torch.no_grad():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            for _ in range(3):
                low = model(on_gpu(FIRST))["forces"]
        exact = model(on_gpu(FIRST))["forces"]
        assert 0.0 < float((low - exact).abs().max()) < 0.1 * float(exact.abs().max())
        for changed in (plain, model):
            for parameter in changed.parameters():
                parameter.data = parameter.data * 1.01
        assert_close(model(on_gpu(FIRST))["forces"], plain(on_gpu(FIRST))["forces"], "same numbers")


@needs_gpu
def test_the_number_of_recordings_is_bounded():
    model = tiny_predictor("energy", dtype=torch.float32, cuda_graphs=True).cuda()
    with torch.no_grad():
        for copies in range(1, MAX_CAPTURES + 4):
            model(on_gpu(FIRST * (8 * copies)))
    assert len(model.backbone._captures._passes) <= MAX_CAPTURES
