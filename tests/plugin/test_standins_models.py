"""fairchem's stock models that need the stand-ins most: alone = batched, and every parameter gets a gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ase.build import add_adsorbate, fcc111
from torch import nn
from torch_geometric.data import Batch, Data

import escaip_fairchem.plugin  # noqa: F401

GEMNET_OC = {
    **{"num_spherical": 4, "num_radial": 8, "num_blocks": 2, "emb_size_atom": 16, "emb_size_edge": 16},
    **{"emb_size_trip_in": 8, "emb_size_trip_out": 8, "emb_size_quad_in": 4, "emb_size_quad_out": 4},
    **{"emb_size_aint_in": 8, "emb_size_aint_out": 8, "emb_size_rbf": 8, "emb_size_cbf": 8, "emb_size_sbf": 8},
    **{"num_before_skip": 1, "num_after_skip": 1, "num_concat": 1, "num_atom": 1, "num_output_afteratom": 1},
    **{"cutoff": 4.5, "cutoff_qint": 3.5, "cutoff_aeaint": 4.5, "cutoff_aint": 4.5},
    **{"max_neighbors": 100, "max_neighbors_qint": 100, "max_neighbors_aeaint": 100, "max_neighbors_aint": 200},
    **{
        "quad_interaction": True,
        "atom_edge_interaction": True,
        "edge_atom_interaction": True,
        "atom_interaction": True,
    },
    **{"rbf": {"name": "gaussian"}, "envelope": {"name": "polynomial", "exponent": 5}, "extensive": True},
    **{"cbf": {"name": "spherical_harmonics"}, "sbf": {"name": "legendre_outer"}, "num_atom_emb_layers": 1},
    **{"num_global_out_layers": 1, "qint_tags": [1, 2], "otf_graph": True, "use_pbc": True},
    **{"direct_forces": True, "regress_forces": True, "forces_coupled": False, "activation": "silu"},
}
DIMENET = {
    **{
        "hidden_channels": 16,
        "out_emb_channels": 16,
        "num_blocks": 2,
        "cutoff": 4.0,
        "num_radial": 4,
        "num_spherical": 3,
    },
    **{"num_before_skip": 1, "num_after_skip": 1, "num_output_layers": 1, "regress_forces": True, "use_pbc": True},
    **{"otf_graph": True},
}
PAINN = {
    **{"hidden_channels": 16, "num_layers": 2, "num_rbf": 8, "cutoff": 5.0, "max_neighbors": 100, "use_pbc": True},
    **{"regress_forces": True, "direct_forces": True, "otf_graph": True},
}
MODELS = {"gemnet_oc": GEMNET_OC, "dimenetplusplus": DIMENET, "painn": PAINN}


def build(name: str, settings: dict[str, Any]) -> nn.Module:
    from fairchem.core.common.registry import registry
    from fairchem.core.common.utils import setup_imports

    setup_imports()
    torch.manual_seed(0)
    return registry.get_model_class(name)(**settings).eval()


def slab(metal: str, layers: int) -> Data:
    atoms = fcc111(metal, (2, 2, layers), vacuum=5.0)
    add_adsorbate(atoms, "O", 1.5, "ontop")
    positions = atoms.positions + np.random.default_rng(layers).normal(0, 0.1, atoms.positions.shape)
    return Data(
        pos=torch.tensor(positions, dtype=torch.float32),
        cell=torch.tensor(np.array(atoms.cell), dtype=torch.float32)[None],
        atomic_numbers=torch.tensor(atoms.numbers, dtype=torch.float32),
        pbc=torch.tensor([True, True, True]),
        natoms=len(atoms),
        tags=torch.tensor(atoms.get_tags()),
    )


@pytest.mark.parametrize("name", list(MODELS))
def test_alone_is_batched_and_gradients_reach_every_parameter(name: str):
    model = build(name, MODELS[name])
    structures = [slab("Cu", 2), slab("Pt", 3)]
    together = model(Batch.from_data_list([item.clone() for item in structures]))
    alone = [model(Batch.from_data_list([item.clone()])) for item in structures]
    for key in ("energy", "forces"):
        joined = torch.cat([output[key] for output in alone])
        scale = joined.detach().square().mean().sqrt().item()
        torch.testing.assert_close(together[key].view_as(joined), joined, rtol=0, atol=1e-4 * scale)
    (together["energy"].sum() + together["forces"].square().sum()).backward()
    trained = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert [key for key, gradient in trained.items() if gradient is None or not gradient.isfinite().all()] == []


def test_conservative_forces_are_minus_the_gradient():
    model = build("dimenetplusplus", DIMENET)
    batch = Batch.from_data_list([slab("Cu", 2)])
    forces = model(batch.clone())["forces"].detach()
    energies = []
    for step in (-0.01, 0.01):
        moved = batch.clone()
        moved.pos = moved.pos.clone()
        moved.pos[-1, 2] += step
        energies.append(model(moved)["energy"].sum().item())
    assert forces[-1, 2].item() == pytest.approx(-(energies[1] - energies[0]) / 0.02, rel=0.05, abs=1e-4)
