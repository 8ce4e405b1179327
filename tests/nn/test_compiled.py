"""Compiled code computes what the plain path does, and is made once per shape."""

from __future__ import annotations

import copy
import pickle
import shutil

import pytest
import torch

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn.fast.compiled import CompiledRegions
from escaip_fairchem.nn.fast.products import accumulate
from escaip_fairchem.nn.graph import build_graph
from escaip_fairchem.nn.shapes import bucket, pad_graph
from escaip_fairchem.testing import KINDS, batch, relative_error, structures, tiny_config, tiny_predictor
from escaip_fairchem.testing.tolerances import assert_close

ZOO = [structures.disordered(1), structures.molecule(), structures.isolated(8)]


def pair(kind: str, *, backend="aot_eager", dtype=torch.float32, **changes):
    """The same model, plain and compiled."""
    changes = {"num_layers": 1, **changes}
    plain = tiny_predictor(kind, dtype=dtype, execution="plain", **changes)
    compiled = tiny_predictor(kind, dtype=dtype, compile=True, **changes)
    compiled.backbone._regions = CompiledRegions(backend)
    return plain, compiled


def compare(plain, compiled, systems) -> None:
    expected, actual = plain(systems), compiled(systems)
    assert set(actual) == set(expected)
    for name, reference in expected.items():
        assert_close(actual[name], reference, "same numbers", name)


def gradients(model, systems) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    outputs = model(systems)
    generator = torch.Generator().manual_seed(0)
    sum(
        (value * torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value)).sum()
        for _, value in sorted(outputs.items())
    ).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_predictions(kind):
    plain, compiled = pair(kind)
    with torch.no_grad():
        compare(plain, compiled, batch(ZOO, torch.float32))
    assert len(compiled.backbone._regions) == 1


@pytest.mark.parametrize("table", [False, True])
def test_forces_as_derivatives_of_compiled_code(table):
    plain, compiled = pair("conservative", num_layers=2, distance_table=table)
    with torch.no_grad():
        compare(plain, compiled, batch(ZOO, torch.float32))


@pytest.mark.parametrize(("normalization", "kind"), [("rmsnorm", "direct"), ("layernorm", "equivariant rank-2")])
def test_every_gradient(normalization, kind):
    plain, compiled = pair(kind, dtype=torch.float64, normalization=normalization)
    systems = batch(ZOO, torch.float64)
    expected, actual = gradients(plain.train(), systems), gradients(compiled.train(), systems)
    assert len(compiled.backbone._regions) == 1
    for name, reference in expected.items():
        assert (actual[name] is None) == (reference is None), name
        if reference is not None:
            assert relative_error(actual[name], reference, floor=1e-6) < 1e-10, name


def test_training_that_differentiates_twice_runs_uncompiled():
    plain, compiled = pair("conservative", dtype=torch.float64)
    systems = batch(ZOO, torch.float64)
    expected, actual = gradients(plain.train(), systems), gradients(compiled.train(), systems)
    assert len(compiled.backbone._regions) == 0
    for name, reference in expected.items():
        if reference is not None:
            assert relative_error(actual[name], reference, floor=1e-6) < 1e-10, name


def test_autocast_is_compiled_in():
    """The code of one precision is not used for the other, whichever comes first."""
    _, compiled = pair("direct")
    fast = tiny_predictor("direct", dtype=torch.float32, num_layers=1)
    systems = batch(ZOO, torch.float32)
    errors = []
    with torch.no_grad():
        for enabled in (True, False, True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                errors.append(relative_error(compiled(systems)["forces"], fast(systems)["forces"]))
    assert len(compiled.backbone._regions) == 2
    assert errors[1] < 1e-5
    assert max(errors[0], errors[2]) < 0.03  # bfloat16's roundings of other sums


def test_parameters_that_change_are_followed():
    """By other storage, as averages are swapped in, and in place."""
    plain, compiled = pair("energy")
    systems = batch(ZOO, torch.float32)
    with torch.no_grad():
        compiled(systems)
        for model in (plain, compiled):
            for parameter in model.parameters():
                parameter.data = parameter.data * 1.01
        compare(plain, compiled, systems)
        for model in (plain, compiled):
            for parameter in model.parameters():
                parameter.mul_(1.01)
        compare(plain, compiled, systems)
    assert len(compiled.backbone._regions) == 1


class Counting:
    """A compiler that counts how often it is asked, and leaves the code as it is."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, module, inputs):
        self.calls += 1
        return module.forward


LARGEST = 24


def random_batch(generator: torch.Generator):
    """One or two structures of one to twelve atoms, some of them isolated, in boxes of different sizes."""
    found = []
    for _ in range(int(torch.randint(1, 3, (), generator=generator))):
        atoms = int(torch.randint(1, 13, (), generator=generator))
        box = 3.0 + 20.0 * float(torch.rand((), generator=generator))
        positions = box * torch.rand(atoms, 3, dtype=torch.float64, generator=generator)
        is_periodic = box < 10.0 and bool(torch.rand((), generator=generator) < 0.5)
        numbers = torch.randint(1, 80, (atoms,), generator=generator).tolist()
        cell = box * torch.eye(3, dtype=torch.float64) if is_periodic else None
        found.append(structures.make(numbers, positions, cell))
    return batch(found, torch.float32)


def warm_up(model) -> None:
    """Show a model every size that random batches have."""
    generator = torch.Generator().manual_seed(0)
    for atoms in sorted({bucket(size) for size in range(1, LARGEST + 1)}):
        positions = 20.0 * torch.rand(atoms, 3, generator=generator)
        model(batch([structures.make([6] * atoms, positions)], torch.float32))


@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_no_compilation_after_the_warm_up(kind):
    counting = Counting()
    _, model = pair(kind, backend=counting)
    with torch.no_grad():
        warm_up(model)
        warm, generator = counting.calls, torch.Generator().manual_seed(0)
        assert warm == 3
        sizes = set()
        for _ in range(200):
            systems = random_batch(generator)
            sizes.add((len(systems.numbers_N), systems.num_structures))
            model(systems)
    assert counting.calls == warm
    assert len(sizes) > 25


def test_no_compilation_after_the_warm_up_in_training():
    counting = Counting()
    _, model = pair("energy", backend=counting, stochastic_depth_prob=0.2, mlp_dropout=0.1)
    model.train()
    warm_up(model)
    warm, generator = counting.calls, torch.Generator().manual_seed(0)
    assert warm == 3
    for _ in range(60):
        model(random_batch(generator))["energy"].sum().backward()
    assert counting.calls == warm


def test_dropout_is_drawn_anew():
    _, compiled = pair("energy", mlp_dropout=0.3, atten_dropout=0.3, stochastic_depth_prob=0.5)
    compiled.train()
    systems = batch(ZOO, torch.float32)
    assert relative_error(compiled(systems)["energy"], compiled(systems)["energy"]) > 1e-3


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler for the CPU")
@pytest.mark.parametrize("gradients", [False, True])
def test_sums_begin_in_float32_under_autocast(gradients):
    """Inductor of torch 2.4 drops sums with zeros, and with them their type."""

    def sums(inputs, weight):
        total = torch.zeros(2 * len(inputs), len(weight))
        first = accumulate(total[: len(inputs)], inputs, weight)
        return accumulate(first, inputs, weight), total

    generator = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(6, 8, generator=generator), torch.randn(4, 8, generator=generator)
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype=torch.bfloat16):
        expected, actual = sums(inputs, weight), torch.compile(sums)(inputs, weight)
    for value, reference in zip(actual, expected, strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, reference)


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler for the CPU")
def test_the_default_compiler():
    plain, compiled = pair("energy", backend="inductor")
    with torch.no_grad():
        compare(plain, compiled, batch(ZOO, torch.float32))


def test_compiled_code_is_no_part_of_the_model():
    plain, compiled = pair("energy", backend=Counting())
    with torch.no_grad():
        compiled(batch(ZOO, torch.float32))
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in compiled.named_modules()] == [name for name, _ in plain.named_modules()]
    for copied in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert len(copied.backbone._regions) == 0
    assert len(compiled.backbone._regions) == 1


@pytest.mark.parametrize("key", ["compile", "cuda_graphs"])
def test_the_reference_is_not_compiled(key):
    with pytest.raises(ConfigError, match=f"{key}: true needs execution: fast"):
        tiny_config(execution="plain", **{key: True})


def test_buckets_waste_little():
    sizes = range(1, 5000)
    assert all(bucket(size) >= size and bucket(size) % 8 == 0 for size in sizes)
    assert all(bucket(size) < 1.125 * size for size in sizes if size >= 64)
    assert all(bucket(size) - size < 8 for size in sizes if size < 64)
    assert len({bucket(size) for size in range(512, 4097)}) == 25
    assert all(bucket(bucket(size)) == bucket(size) for size in sizes)


def test_padding_adds_atoms_that_touch_nothing():
    model = tiny_predictor("direct", dtype=torch.float64)
    systems = batch(ZOO, torch.float64)
    graph = build_graph(systems, model.neighborhoods(systems))
    padded = pad_graph(graph, 30)
    atoms, slots = graph.sender_NK.shape
    rows = bucket(atoms)
    assert padded.sender_NK.shape == (rows, 30) == padded.mask_NK.shape
    assert torch.equal(padded.sender_NK[:atoms, :slots], graph.sender_NK)
    assert torch.equal(padded.direction_NK3[:atoms, :slots], graph.direction_NK3)
    assert torch.equal(padded.mask_NK[:atoms, :slots], graph.mask_NK)
    assert not padded.edge_mask_NK[atoms:].any()
    assert not padded.mask_NK[:atoms, slots:].any()
    assert padded.mask_NK[atoms:].sum() == rows - atoms
    assert (padded.sender_NK[:atoms] < atoms).all()
    assert (padded.structure_N[atoms:] >= graph.num_structures).all()
    assert (padded.structure_N < padded.num_structures).all()
    assert torch.equal(padded.direction_NK3.norm(dim=-1)[atoms:], torch.ones(rows - atoms, 30, dtype=torch.float64))
    with torch.no_grad():
        features, reference = model.backbone(padded), model.backbone(graph)
    assert_close(features.node_NH[:atoms], reference.node_NH, "same numbers")
    assert_close(features.edge_NKH[:atoms, :slots], reference.edge_NKH, "same numbers")
