"""EquiformerV2 of degree 0 with bond-orientational order: invariant, and told directions by the order alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from fairchem.core.models.base import HydraModel
from model_cases import batch_of

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn.basis import bond_orientational_order
from escaip_fairchem.nn.graph import build_graph
from escaip_fairchem.nn.neighbors import find_neighbors
from escaip_fairchem.plugin.batches import systems_from_batch
from escaip_fairchem.plugin.invariant_equiformer_v2 import InvariantEquiformerV2Backbone
from escaip_fairchem.testing import relative_error, structures

SETTINGS: dict[str, Any] = {
    "max_radius": 5.0, "max_neighbors": 50, "num_layers": 2, "sphere_channels": 16, "attn_hidden_channels": 8,
    "num_heads": 2, "attn_alpha_channels": 8, "attn_value_channels": 4, "ffn_hidden_channels": 16,
    "norm_type": "layer_norm_sh", "grid_resolution": 18, "edge_channels": 16, "attn_activation": "silu",
    "ffn_activation": "silu", "use_grid_mlp": True, "alpha_drop": 0.0, "drop_path_rate": 0.0, "weight_init": "uniform",
}  # fmt: skip
PERIODIC = [structures.disordered(1), structures.disordered(5), structures.slab()]


def model(seed: int = 0, **changes: Any) -> HydraModel:
    torch.manual_seed(seed)
    built = HydraModel(
        backbone={"model": "escaip_fairchem.InvariantEquiformerV2Backbone", **SETTINGS, **changes},
        heads={
            "energy": {"module": "equiformerV2_scalar_head"},
            "forces": {"module": "escaip_fairchem.InvariantEquiformerV2ForceHead"},
        },
        pass_through_head_outputs=True,
    )
    return built.eval()


def batch(zoo: Any = PERIODIC) -> Any:
    """fairchem's neighbour search knows float32 alone."""
    return batch_of(zoo)


def turned(data: Any, rotation: torch.Tensor) -> Any:
    data = data.clone()
    data.pos, data.cell = data.pos @ rotation.T, data.cell @ rotation.T
    return data


def test_energies_stay_and_forces_turn_with_the_structures():
    network, data, rotation = model(), batch(), structures.rotation_matrix(3).float()
    with torch.no_grad():
        before, after = network(data), network(turned(data, rotation))
    assert relative_error(after["energy"], before["energy"]) < 1e-5
    assert relative_error(after["forces"], before["forces"] @ rotation.T) < 1e-4
    assert before["forces"].abs().max() > 1e-4


def test_orders_are_those_of_escaip():
    network, data = model(), batch()
    graph = network.backbone.generate_graph(data)
    found = network.backbone.sphere_embedding.order_NL
    systems = systems_from_batch(data, use_pbc=True, dtype=torch.float64)
    neighborhoods = find_neighbors(
        systems.positions_N3, systems.cell_B33, systems.pbc_B3, systems.structure_N, cutoff=5.0, max_neighbors=1000
    )
    ours = build_graph(systems, neighborhoods)
    assert len(graph.edge_distance) == int(ours.edge_mask_NK.sum()), "no neighbour is left out on either side"
    expected = bond_orientational_order(ours.direction_NK3, ours.mask_NK, 9)
    assert relative_error(found, expected) < 1e-6


def test_what_it_knows_of_directions_is_the_order():
    """Without the order, a chain that is bent and one that is not, of equal distances within reach, look the same."""
    network = model(max_radius=1.5)
    straight, bent = (chain(angle) for angle in (180.0, 100.0))
    with torch.no_grad():
        energies = [network(batch([chain]))["energy"] for chain in (straight, bent)]
        assert abs(float(energies[0] - energies[1])) > 1e-5
        for parameter in network.backbone.sphere_embedding.shape.parameters():
            parameter.zero_()
        energies = [network(batch([chain]))["energy"] for chain in (straight, bent)]
    assert abs(float(energies[0] - energies[1])) < 1e-7


def chain(angle: float) -> Any:
    """Three atoms in a large box; only neighbours along the chain are within 1.5 Å."""
    radians = torch.deg2rad(torch.tensor(angle, dtype=torch.float64))
    end = torch.stack([torch.cos(radians), torch.sin(radians), torch.zeros((), dtype=torch.float64)])
    positions = torch.stack([torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), torch.zeros(3).double(), end]) + 10.0
    return structures.Structure(
        numbers=torch.tensor([8, 6, 8]),
        positions=positions,
        cell=20.0 * torch.eye(3, dtype=torch.float64),
        pbc=torch.tensor([True, True, True]),
    )


def test_every_parameter_is_trained():
    network, data = model().train(), batch()
    outputs = network(data)
    (outputs["energy"].square().sum() + outputs["forces"].square().sum()).backward()
    idle = [
        name for name, parameter in network.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert not idle
    assert network.backbone.sphere_embedding.shape[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize("key", ["lmax_list", "mmax_list"])
def test_larger_degrees_are_refused(key):
    with pytest.raises(ConfigError, match=f"model.backbone.{key}: this model has degree 0 alone, got \\[2\\]"):
        InvariantEquiformerV2Backbone(**SETTINGS, **{key: [2]})


def test_weight_decay_leaves_out_biases_and_norms():
    backbone = model().backbone
    exempt = backbone.no_weight_decay()
    assert {"sphere_embedding.shape.0.bias", "sphere_embedding.shape.2.bias"} <= exempt
    assert not {"sphere_embedding.shape.0.weight", "sphere_embedding.shape.2.weight"} & exempt


def test_a_fresh_process_finds_it_by_its_names():
    """Where fairchem's models are imported, as before every training and by the calculator."""
    script = """
import escaip_fairchem
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
setup_imports()
for part in ("backbone", "force_head"):
    print(registry.get_model_class(f"escaip_invariant_equiformer_v2_{part}").__name__)
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert process.stdout.split() == ["InvariantEquiformerV2Backbone", "InvariantEquiformerV2ForceHead"], process.stderr
