"""Batches as fairchem makes them and tiny models, shared by the tests of the plugin's models."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import torch
from ase import Atoms
from fairchem.core.datasets import data_list_collater
from fairchem.core.preprocessing import AtomsToGraphs
from torch_geometric.data import Batch

from escaip_fairchem.nn.config import OBSOLETE_KEYS
from escaip_fairchem.plugin.models import EScAIP
from escaip_fairchem.testing import TINY, Structure, randomize, structures

ZOO = [
    structures.disordered(1),
    structures.molecule(),
    structures.slab(),
    structures.isolated(8),
    structures.disordered(2, 4, (True, False, True)),
]
HEADS_OF_KIND = {
    "direct": {"energy": None, "forces": None},
    "conservative": {"energy_forces": {"regress_stress": True}},
    "energy": {"energy": None},
    "original rank-2": {"energy": None, "forces": None, "stress": {"equivariant": False}},
    "equivariant rank-2": {"energy": None, "forces": None, "stress": None},
}
FLAGS_OF_KIND = {
    kind: {"regress_forces": kind != "energy", "direct_force": kind != "conservative"} for kind in HEADS_OF_KIND
}


def atoms_of(structure: Structure) -> Atoms:
    return Atoms(
        structure.numbers.numpy(),
        positions=structure.positions.numpy(),
        cell=structure.cell.numpy(),
        pbc=structure.pbc.numpy(),
    )


def batch_of(zoo: list[Structure], *, edges: bool = False, cutoff: float = 5.0, max_neigh: int = 20) -> Batch:
    """Make a batch with fairchem's own converter and collater, with sample ids s0, s1, …"""
    convert = AtomsToGraphs(
        r_energy=False, r_forces=False, r_distances=False, r_pbc=True, r_edges=edges, radius=cutoff, max_neigh=max_neigh
    )
    graphs = [convert.convert(atoms_of(structure)) for structure in zoo]
    for index, graph in enumerate(graphs):
        graph.sid = f"s{index}"
        graph.fid = index + 10
    return data_list_collater(graphs, otf_graph=not edges)


def model_of(kind: str = "direct", *, seed: int = 0, **settings: Any) -> EScAIP:
    """A tiny model of one of testing.KINDS with random parameters, in evaluation mode."""
    model = EScAIP(heads=HEADS_OF_KIND[kind], **{**TINY, **FLAGS_OF_KIND[kind], **settings})
    randomize(model, seed)
    return model.eval()


# Under these names the original and fairchem's own configurations know the parameters of a layer that ours calls so.
_ATTRIBUTES = {
    "sender_element_embedding": "source_atomic_embedding",
    "receiver_element_embedding": "target_atomic_embedding",
    "sender_orientation_embedding": "source_direction_embedding",
    "receiver_orientation_embedding": "target_direction_embedding",
    "distance_embedding": "edge_distance_embedding",
}


def original_names(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Write parameters under the original's names, independently of the importer, after the parity data."""
    return {_original_name(name): value for name, value in state_dict.items()}


def _original_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "output_heads":
        parts.remove("head")
        layer = parts[2]
        renamed = {"layer": "energy_layer", "direction_layer": "force_direction_layer",
                   "magnitude_layer": "force_magnitude_layer", "quadrupole_layer": "irreps2_layer"}  # fmt: skip
        parts[2] = renamed.get(layer, layer)
        return ".".join(_output_layer(parts))
    parts.remove("network")
    for ours, theirs in _ATTRIBUTES.items():
        parts = [theirs if part == ours else part for part in parts]
    parts = [part for part in parts if part != "edge_attributes"]
    return ".".join(_BLOCKS[parts[1]](parts))


def _output_layer(parts: list[str]) -> list[str]:
    """``ffn`` of an output layer is a block of two linear layers; its last linear layer is wrapped."""
    if parts[3] == "linear":
        return [*parts[:3], "final_output", "0", *parts[4:]]
    return [*parts[:3], *_feed_forward(parts[3:])]


def _feed_forward(parts: list[str]) -> list[str]:
    """``ffn.1`` is ``ffn.1.0`` there: both linear layers come with a possible dropout."""
    return [parts[0], "1", "0", *parts[2:]] if parts[1] == "1" else parts


def _input_block(parts: list[str]) -> list[str]:
    if parts[2] in ("node_norm", "edge_norm"):
        return [*parts[:2], "norm", *parts[2:]]
    if parts[2] == "ffn":
        return [*parts[:2], "input_layer", *_feed_forward(["edge_ffn", *parts[3:]])]
    return [*parts[:2], "input_layer", *("norm" if part == "ffn_norm" else part for part in parts[2:])]


def _block(parts: list[str]) -> list[str]:
    start, rest = ["backbone", "transformer_blocks", parts[2]], parts[3:]
    if rest[0] == "attention_norm":
        return [*start, "norm_attn", *rest[1:]]
    if rest[0] in ("node_norm", "edge_norm"):
        return [*start, "norm_ffn", *rest]
    if rest[0] in ("node_ffn", "edge_ffn"):
        return [*start, "feedforward", *_feed_forward([f"mlp_{rest[0][:4]}", *rest[1:]])]
    if rest[1:2] == ["attention"]:
        if rest[2] == "angle_scale":
            return [*start, "graph_attention", "attn_scalar"]
        if rest[2] == "in_projection":
            return [*start, "graph_attention", "multi_head_attention", f"in_proj_{rest[3]}"]
        return [*start, "graph_attention", "multi_head_attention", "out_proj", rest[3]]
    return [*start, *rest]


def _readout(parts: list[str]) -> list[str]:
    kind = {"node": "energy", "edge": "force"}[parts[3]]
    start = ["backbone", "readout_layers", parts[2]]
    if parts[4] == "norm":
        return [*start, f"{kind}_norm", *parts[5:]]
    return [*start, *_feed_forward([f"{kind}_ffn", *parts[5:]])]


def _projection(parts: list[str]) -> list[str]:
    kind = parts[1].removesuffix("_projection")
    start = ["backbone", "output_projection"]
    norms = {"in_norm": "readout_norm", "out_norm": "output_norm"}
    if parts[2] in norms:
        return [*start, norms[parts[2]], f"{kind}_norm", *parts[3:]]
    return [*start, f"{kind}_projection", *parts[3:]]


_BLOCKS = {
    "input_block": _input_block,
    "blocks": _block,
    "readouts": _readout,
    "node_projection": _projection,
    "edge_projection": _projection,
    "radial_basis": lambda parts: ["backbone", "distance_expansion", "fc1", *parts[3:]],
}


def quietly_imported(model: dict[str, Any], state_dict: dict[str, torch.Tensor]) -> EScAIP:
    """Import without the warnings about the original's obsolete keys."""
    from escaip_fairchem import import_original

    with warnings.catch_warnings():
        for key in OBSOLETE_KEYS:
            warnings.filterwarnings("ignore", message=f".*{key}: ignored")
        return import_original(model, state_dict)


def names_by_prefix(names: list[str], depth: int) -> dict[str, int]:
    """Count names by their first parts, for messages."""
    ordered = sorted(".".join(name.split(".")[:depth]) for name in names)
    return {prefix: len(list(group)) for prefix, group in itertools.groupby(ordered)}
