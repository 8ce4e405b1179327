"""fairchem's own models with their published OC20 settings, and its neighbour search, to be measured beside ours.

Settings are those of the configurations published with OC20's checkpoints (EquiformerV2's 83M: of the 2M subset), with
graphs made on the fly. None of them brings its scaling factors: those change numbers, not costs.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import radius_graph_pbc
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from escaip_fairchem.errors import ConfigError, nearest
from escaip_fairchem.nn import Systems

_EQUIFORMER_V2_CLASS = "fairchem.core.models.equiformer_v2.equiformer_v2_deprecated.EquiformerV2"
_EQUIFORMER_V2: dict[str, Any] = {
    "use_pbc": True, "regress_forces": True, "otf_graph": True, "max_neighbors": 20, "max_radius": 12.0,
    "max_num_elements": 90, "sphere_channels": 128, "attn_hidden_channels": 64, "num_heads": 8,
    "attn_alpha_channels": 64, "attn_value_channels": 16, "ffn_hidden_channels": 128, "norm_type": "layer_norm_sh",
    "mmax_list": [2], "grid_resolution": 18, "num_sphere_samples": 128, "edge_channels": 128,
    "use_atom_edge_embedding": True, "share_atom_edge_embedding": False, "distance_function": "gaussian",
    "num_distance_basis": 512, "attn_activation": "silu", "use_s2_act_attn": False, "use_attn_renorm": True,
    "ffn_activation": "silu", "use_gate_act": False, "use_grid_mlp": True, "use_sep_s2_act": True,
    "alpha_drop": 0.1, "drop_path_rate": 0.05, "proj_drop": 0.0, "weight_init": "uniform",
}  # fmt: skip

_GEMNET_OC: dict[str, Any] = {
    "num_spherical": 7, "num_radial": 128, "num_blocks": 4, "emb_size_atom": 256, "emb_size_edge": 512,
    "emb_size_trip_in": 64, "emb_size_trip_out": 64, "emb_size_quad_in": 32, "emb_size_quad_out": 32,
    "emb_size_aint_in": 64, "emb_size_aint_out": 64, "emb_size_rbf": 16, "emb_size_cbf": 16, "emb_size_sbf": 32,
    "num_before_skip": 2, "num_after_skip": 2, "num_concat": 1, "num_atom": 3, "num_output_afteratom": 3,
    "num_atom_emb_layers": 2, "num_global_out_layers": 2, "regress_forces": True, "direct_forces": True,
    "use_pbc": True, "cutoff": 12.0, "cutoff_qint": 12.0, "cutoff_aeaint": 12.0, "cutoff_aint": 12.0,
    "max_neighbors": 30, "max_neighbors_qint": 8, "max_neighbors_aeaint": 20, "max_neighbors_aint": 1000,
    "rbf": {"name": "gaussian"}, "envelope": {"name": "polynomial", "exponent": 5},
    "cbf": {"name": "spherical_harmonics"}, "sbf": {"name": "legendre_outer"}, "extensive": True,
    "forces_coupled": False, "output_init": "HeOrthogonal", "activation": "silu", "quad_interaction": True,
    "atom_edge_interaction": True, "edge_atom_interaction": True, "atom_interaction": True, "qint_tags": [1, 2],
    "otf_graph": True,
}  # fmt: skip

BASELINES: dict[str, tuple[str, dict[str, Any]]] = {
    "equiformer-v2-83m": (_EQUIFORMER_V2_CLASS, {**_EQUIFORMER_V2, "num_layers": 12, "lmax_list": [6]}),
    "equiformer-v2-31m": (
        _EQUIFORMER_V2_CLASS,
        {**_EQUIFORMER_V2, "num_layers": 8, "lmax_list": [4], "drop_path_rate": 0.1},
    ),
    "escn-l6": (
        "fairchem.core.models.escn.escn.eSCN",
        {
            "num_layers": 12, "max_neighbors": 20, "cutoff": 12.0, "sphere_channels": 128, "hidden_channels": 256,
            "lmax_list": [6], "mmax_list": [2], "num_sphere_samples": 128, "distance_function": "gaussian",
            "regress_forces": True, "use_pbc": True, "basis_width_scalar": 2.0, "otf_graph": True,
        },
    ),
    "gemnet-oc": ("fairchem.core.models.gemnet_oc.gemnet_oc.GemNetOC", _GEMNET_OC),
    "painn": (
        "fairchem.core.models.painn.painn.PaiNN",
        {
            "hidden_channels": 512, "num_layers": 6, "num_rbf": 128, "cutoff": 12.0, "max_neighbors": 50,
            "regress_forces": True, "direct_forces": True, "use_pbc": True, "otf_graph": True,
        },
    ),
    "schnet": (
        "fairchem.core.models.schnet.SchNetWrap",
        {
            "hidden_channels": 1024, "num_filters": 256, "num_interactions": 5, "num_gaussians": 200, "cutoff": 6.0,
            "use_pbc": True, "regress_forces": True, "otf_graph": True,
        },
    ),
}  # fmt: skip
"""Each model's class and settings. The class is named by its place, so that no other model has to be importable."""


def build_baseline(name: str) -> nn.Module:
    """Build a model with random parameters.

    Args:
        name: One of :data:`BASELINES`.

    Raises:
        ConfigError: There is no such model.
    """
    if name not in BASELINES:
        raise ConfigError(f"baseline {name!r} is unknown{nearest(name, BASELINES)}")
    class_name, settings = BASELINES[name]
    with quiet():
        model: nn.Module = registry.get_model_class(class_name)(**copy.deepcopy(settings))
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Keep remarks of models and trainers, on scaling factors and deprecated names, out of a benchmark's output."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def to_fairchem(systems: Systems, tags_N: Tensor) -> Batch:
    """The same structures as fairchem's batch, on the same device.

    Args:
        systems: Structures.
        tags_N: 0 below the surface, 1 at the surface, 2 adsorbate; shape (N,), int64.
    """
    counts = torch.bincount(systems.structure_N, minlength=systems.num_structures).tolist()
    parts = zip(systems.positions_N3.split(counts), systems.numbers_N.split(counts), tags_N.split(counts), strict=True)
    samples = [
        Data(
            pos=positions,
            atomic_numbers=numbers,
            tags=tags,
            natoms=len(positions),
            fixed=torch.zeros(len(positions), device=positions.device),
            cell=systems.cell_B33[row : row + 1],
            pbc=systems.pbc_B3[row : row + 1],
            sid=str(row),
        )
        for row, (positions, numbers, tags) in enumerate(parts)
    ]
    return Batch.from_data_list(samples)


def predict(model: nn.Module, data: Batch) -> dict[str, Tensor]:
    """Energies and forces of a batch."""
    # Some models write into the batch; the next pass has to start from the same.
    outputs: dict[str, Tensor] = model(copy.copy(data))
    return {"energy": outputs["energy"], "forces": outputs["forces"]}


def search(data: Batch, *, cutoff: float, max_neighbors: int) -> tuple[Tensor, Tensor, Tensor]:
    """Search neighbours the way fairchem does.

    Args:
        data: Structures that all have the same periodicity; fairchem knows no other batches.
        cutoff: Å.
        max_neighbors: Most neighbours of an atom; more stay where several are equally far.

    Returns:
        Edges (2, E), periodic images (E, 3), and edges per structure (B,).
    """
    edges, images, counts = radius_graph_pbc(data, cutoff, max_neighbors, enforce_max_neighbors_strictly=False)
    return edges, images, counts
