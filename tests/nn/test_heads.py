"""Heads, atom by atom and edge by edge, from the equations of DESIGN §2."""

from __future__ import annotations

import pytest
import torch

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn import DirectForceHead, EnergyHead, EquivariantRank2Head, OriginalRank2Head, build_graph
from escaip_fairchem.nn.heads import quadrupole_harmonics
from escaip_fairchem.testing import batch, randomize, structures, tiny_predictor
from escaip_fairchem.testing.tolerances import assert_close

ZOO = [structures.disordered(1, 3), structures.isolated(8), structures.molecule(2, 4)]
SHAPE = {"multiplier": 2, "activation": "silu"}
WIDTH = 8


@pytest.fixture
def inputs():
    predictor, systems = tiny_predictor("direct", max_neighbors=6), batch(ZOO)
    graph = build_graph(systems, predictor.neighborhoods(systems))
    atoms, slots = graph.sender_NK.shape
    return graph, torch.randn(atoms, WIDTH).double(), torch.randn(atoms, slots, WIDTH).double()


def ready(head):
    randomize(head)
    return head.double()


def read(layer, features):
    return layer.linear.weight @ (features + layer.ffn(features))


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_energy(inputs, reduce):
    graph, node, _ = inputs
    head = ready(EnergyHead(WIDTH, reduce=reduce, **SHAPE))
    atomic = torch.stack([read(head.layer, features) for features in node])
    expected = torch.stack([getattr(atomic[graph.structure_N == row], reduce)(0) for row in range(3)])
    assert_close(head(node, graph), expected, "same numbers")
    assert head(node, graph).shape == (3, 1)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ConfigError, match=r"energy_reduce: 'avg' is unknown \(known: mean, sum\)"):
        EnergyHead(WIDTH, reduce="avg", **SHAPE)


def test_direct_forces(inputs):
    graph, node, edge = inputs
    head = ready(DirectForceHead(WIDTH, **SHAPE))
    actual = head(node, edge, graph)
    for atom in range(len(node)):
        total = torch.zeros(3, dtype=torch.float64)
        for slot in graph.edge_mask_NK[atom].nonzero().flatten():
            total += read(head.direction_layer, edge[atom, slot]) * graph.direction_NK3[atom, slot]
        assert_close(actual[atom], total * read(head.magnitude_layer, node[atom]), "same numbers")
    assert not actual[3].any(), "the isolated atom"


def test_quadrupole_harmonics_by_hand():
    """Orthonormal on the sphere (Σ_m Y² = 5/4π); e3nn's order: xz, xy, y² − …, yz, z² − x²."""
    x, y, z = 0.36, 0.48, 0.8
    actual = quadrupole_harmonics(torch.tensor([[[x, y, z]]], dtype=torch.float64))[0, 0]
    unit = (15 / (4 * torch.pi)) ** 0.5
    expected = [unit * x * z, unit * x * y, unit * (y**2 - (x**2 + z**2) / 2) / 3**0.5, unit * y * z,
                unit * (z**2 - x**2) / 2]  # fmt: skip
    assert actual.tolist() == pytest.approx(expected, rel=1e-6)
    assert actual.square().sum().item() == pytest.approx(5 / (4 * torch.pi), rel=1e-6)


def test_original_rank_2(inputs):
    graph, node, edge = inputs
    head = ready(OriginalRank2Head(WIDTH, **SHAPE))
    isotropic, anisotropic = head(node, edge, graph)
    harmonics = quadrupole_harmonics(graph.direction_NK3)
    atomic = torch.zeros(len(node), 5, dtype=torch.float64)
    for atom in range(len(node)):
        used = graph.mask_NK[atom].nonzero().flatten()
        for component in range(5):
            mean = sum(harmonics[atom, slot, component] * edge[atom, slot] for slot in used) / len(used)
            atomic[atom, component] = read(head.quadrupole_layer, mean)
    scalars = torch.stack([read(head.scalar_layer, features) for features in node])
    rows = [graph.structure_N == row for row in range(3)]
    assert_close(isotropic, torch.stack([scalars[row].mean(0) for row in rows]), "same numbers")
    assert_close(anisotropic, torch.stack([atomic[row].mean(0) for row in rows]), "same numbers")


def test_equivariant_rank_2(inputs):
    graph, node, edge = inputs
    head = ready(EquivariantRank2Head(WIDTH, **SHAPE))
    isotropic, anisotropic = head(node, edge, graph)
    harmonics = quadrupole_harmonics(graph.direction_NK3)
    atomic = torch.zeros(len(node), 5, dtype=torch.float64)
    for atom in range(len(node)):
        gate = torch.sigmoid(head.gate(node[atom]))
        used = graph.edge_mask_NK[atom].nonzero().flatten()
        for slot in used:
            weights = edge[atom, slot] + head.edge_ffn(edge[atom, slot])
            atomic[atom] += harmonics[atom, slot] * (head.mix.weight[0] * gate * weights).sum() / len(used)
    scalars = torch.stack([read(head.scalar_layer, features) for features in node])
    rows = [graph.structure_N == row for row in range(3)]
    assert_close(isotropic, torch.stack([scalars[row].mean(0) for row in rows]), "same numbers")
    assert_close(anisotropic, torch.stack([atomic[row].mean(0) for row in rows]), "same numbers")
    assert not anisotropic[1].any(), "the isolated atom"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_outputs_are_at_least_float32(inputs, dtype):
    graph, node, _ = inputs
    head = EnergyHead(WIDTH, reduce="mean", **SHAPE).to(dtype)
    assert head(node.to(dtype), graph).dtype == torch.float32


def test_the_equivariant_head_s_quadrupole_is_float32_at_least(inputs):
    graph, node, edge = inputs
    head = EquivariantRank2Head(WIDTH, **SHAPE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = head(node.float(), edge.float(), graph)
    assert {output.dtype for output in outputs} == {torch.float32}
