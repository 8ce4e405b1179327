"""Tables of the distance terms: as exact as float32, following the parameters, never used where they may not be."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from escaip_fairchem.nn.fast import spline, tables
from escaip_fairchem.nn.fast.distances import BasisTerms
from escaip_fairchem.nn.graph import build_graph
from escaip_fairchem.testing import batch, relative_error, structures, tiny_predictor

ZOO = [structures.disordered(1), structures.molecule(), structures.isolated(8), structures.slab()]
WHOLE = slice(None)


def graph_of(model, dtype=torch.float32):
    systems = batch(ZOO, dtype)
    return build_graph(systems, model.neighborhoods(systems))


def test_the_spline_goes_through_its_samples():
    points = torch.arange(-60, 61, dtype=torch.float64)
    samples = torch.stack((torch.sin(points), torch.cos(3.0 * points)), dim=1)
    found = spline.coefficients(samples)
    through = (found[:-2] + 4.0 * found[1:-1] + found[2:]) / 6.0
    inner = samples[spline.FILTER_REACH + 1 : -spline.FILTER_REACH - 1]
    assert (through - inner).abs().max() < 1e-12


def test_the_spline_is_exact_for_cubic_polynomials():
    points = torch.arange(-40, 41, dtype=torch.float64)
    found = spline.coefficients((points**3 - 2.0 * points).unsqueeze(1))
    first = points[spline.FILTER_REACH]
    at = torch.linspace(-10.0, 10.0, 77, dtype=torch.float64)
    start = at.floor() - 1.0
    rows = found[(start - first).long().unsqueeze(-1) + torch.arange(4)].squeeze(-1)
    values = (spline.weights(at - start - 1.0) * rows).sum(-1)
    assert (values - (at**3 - 2.0 * at)).abs().max() < 1e-9


@pytest.mark.parametrize("distance_function", ["gaussian", "sigmoid", "linearsigmoid", "silu"])
@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_a_table_is_the_function(kind, distance_function):
    """At any distance, for slots without a neighbour, and its slope is the derivative."""
    model = tiny_predictor(kind, dtype=torch.float64, distance_function=distance_function).backbone
    graph = graph_of(tiny_predictor(kind, dtype=torch.float64), torch.float64)
    distance = torch.rand(graph.distance_NK.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    distance = (distance * model.config.max_radius).masked_fill(~graph.edge_mask_NK, 0.0)
    distance[0, 0], distance[1, 0] = model.config.max_radius + 1e-6, 0.0
    results = []
    for use_tables in (False, True):
        leaf = distance.clone().requires_grad_(True)
        moved = copy.copy(graph)
        object.__setattr__(moved, "distance_NK", leaf)
        terms = tables.build(model).look_up(moved) if use_tables else BasisTerms(radial_NKG=model.radial(moved))
        for layer, reader in enumerate(tables.readers(model)):
            total = torch.zeros(*leaf.shape, model.config.hidden_size, dtype=torch.float64)
            term = terms.add_to(total, reader, layer, WHOLE)
            results.append(term.detach())
            if kind == "conservative":
                weights = torch.randn(term.shape, generator=torch.Generator().manual_seed(1), dtype=term.dtype)
                results.append(torch.autograd.grad((term * weights).sum(), leaf, retain_graph=True)[0])
    half = len(results) // 2
    for basis, table in zip(results[:half], results[half:], strict=True):
        assert relative_error(table, basis) < 1e-5
        assert float((table - basis).square().mean().sqrt() / basis.square().mean().sqrt()) < 2e-6


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["direct", "conservative", "equivariant rank-2"])
def test_tables_change_the_output_by_less_than_a_millionth(kind, seed, monkeypatch):
    """In float64, where nothing else differs."""
    model = tiny_predictor(kind, seed=seed, dtype=torch.float64, edge_distance_expansion_size=200)
    systems = batch(ZOO, torch.float64)
    with torch.no_grad():
        expected = model(systems)
        made = tables.build(model.backbone)
        monkeypatch.setattr(model.backbone, "distance_terms", lambda graph, _: made.look_up(graph))
        actual = model(systems)
    for name, reference in expected.items():
        difference = (actual[name] - reference).square().mean().sqrt()
        assert 0 < float(difference / reference.square().mean().sqrt()) < 1e-6, name


def count_builds(monkeypatch) -> list[int]:
    calls: list[int] = []
    original = tables.build

    def build(backbone):
        calls.append(1)
        return original(backbone)

    monkeypatch.setattr(tables, "build", build)
    return calls


def change_all(model):
    for parameter in model.parameters():
        parameter.data.mul_(1.001)


def change_one_number(model):
    with torch.no_grad():
        model.backbone.blocks[1].graph_attention.edge_linear.affine.weight[3, 2] += 1e-3


@pytest.mark.parametrize("change", [change_all, change_one_number])
def test_tables_follow_the_parameters(change, monkeypatch):
    calls = count_builds(monkeypatch)
    model = tiny_predictor("direct", dtype=torch.float32)
    plain = tiny_predictor("direct", dtype=torch.float32, execution="plain")
    systems = batch(ZOO, torch.float32)
    with torch.no_grad():
        model(systems), model(systems)
        assert len(calls) == 1
        change(model)
        plain.load_state_dict(model.state_dict())
        assert relative_error(model(systems)["forces"], plain(systems)["forces"]) < 1e-5
        assert len(calls) == 2
        model.load_state_dict(plain.state_dict())
        model(systems), copy.deepcopy(model)(systems)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("kind", "training", "gradients", "changes", "used"),
    [
        ("direct", False, False, {}, True),
        ("conservative", False, False, {}, True),
        ("direct", False, True, {}, False),
        ("conservative", False, True, {}, False),
        ("direct", True, False, {}, False),
        ("direct", False, False, {"distance_table": False}, False),
        ("direct", False, False, {"execution": "plain"}, False),
    ],
)
def test_where_tables_are_used(kind, training, gradients, changes, used, monkeypatch):
    calls = count_builds(monkeypatch)
    model = tiny_predictor(kind, dtype=torch.float32, **changes).train(training)
    with torch.set_grad_enabled(gradients):
        model(batch(ZOO, torch.float32))
    assert bool(calls) == used


def test_float64_is_left_alone(monkeypatch):
    calls = count_builds(monkeypatch)
    with torch.no_grad():
        tiny_predictor("direct", dtype=torch.float64)(batch(ZOO, torch.float64))
    assert not calls


def test_evaluation_with_gradients_reaches_the_radial_embedding():
    model = tiny_predictor("direct", dtype=torch.float32)
    model(batch(ZOO, torch.float32))["energy"].sum().backward()
    for reader in tables.readers(model.backbone):
        assert reader.edge_attributes.distance_embedding.affine.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("kind", "activation"), [("direct", "relu"), ("conservative", "star_relu")])
def test_functions_with_kinks_are_computed_and_said_so_once(kind, activation):
    model = tiny_predictor(kind, seed=0, dtype=torch.float32, activation=activation)
    plain = tiny_predictor(kind, seed=0, dtype=torch.float32, activation=activation, execution="plain")
    systems = batch(ZOO, torch.float32)
    with torch.no_grad():
        with pytest.warns(
            UserWarning, match=f"distance_table: not used, activation: {activation} is not smooth enough"
        ):
            found = model(systems)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(systems)
        assert relative_error(found["forces"], plain(systems)["forces"]) < 5e-5


def test_parameters_that_are_not_finite_get_no_table():
    model = tiny_predictor("direct", dtype=torch.float32)
    with torch.no_grad():
        model.backbone.blocks[0].graph_attention.edge_linear.affine.weight[0, 0] = float("nan")
        with pytest.warns(UserWarning, match="not used"):
            model(batch(ZOO, torch.float32))
