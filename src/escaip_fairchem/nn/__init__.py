"""EScAIP in pure PyTorch: neighbours → graph → features → attention → heads.

Nothing here knows fairchem, torch-geometric or ASE; structures come in as plain tensors (:class:`Systems`).
"""

from escaip_fairchem.nn.config import BackboneConfig, parse_config
from escaip_fairchem.nn.derivatives import energy_derivatives, make_differentiable, stress_from_virial
from escaip_fairchem.nn.graph import Graph, build_graph
from escaip_fairchem.nn.heads import DirectForceHead, EnergyHead, EquivariantRank2Head, OriginalRank2Head
from escaip_fairchem.nn.model import Backbone, Features
from escaip_fairchem.nn.neighbors import Neighborhoods, find_neighbors, neighborhoods_from_edges
from escaip_fairchem.nn.systems import Systems

__all__ = [
    "Backbone",
    "BackboneConfig",
    "DirectForceHead",
    "EnergyHead",
    "EquivariantRank2Head",
    "Features",
    "Graph",
    "Neighborhoods",
    "OriginalRank2Head",
    "Systems",
    "build_graph",
    "energy_derivatives",
    "find_neighbors",
    "make_differentiable",
    "neighborhoods_from_edges",
    "parse_config",
    "stress_from_virial",
]
