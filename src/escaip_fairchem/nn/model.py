"""The backbone of EScAIP: from structures to the node and edge features that the heads read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call  # type: ignore[attr-defined]  # public, but not declared so

from escaip_fairchem.nn.attention import NeighborhoodAttention
from escaip_fairchem.nn.basis import angle_cosines, bond_orientational_order, build_radial_basis
from escaip_fairchem.nn.blocks import AttentionBlock, BlockSettings, InputBlock
from escaip_fairchem.nn.config import BackboneConfig
from escaip_fairchem.nn.cuda_graphs import CapturedPasses
from escaip_fairchem.nn.edge_attributes import EdgeAttributeSizes, EdgeFeatures
from escaip_fairchem.nn.fast.compiled import CompiledRegions, Compute, Pass
from escaip_fairchem.nn.fast.distances import BasisTerms, DistanceTerms, without_underflow
from escaip_fairchem.nn.fast.inference import infer
from escaip_fairchem.nn.fast.mixing import build_mixing
from escaip_fairchem.nn.fast.recorded import record
from escaip_fairchem.nn.fast.tables import TableKeeper
from escaip_fairchem.nn.fast.terms import Inputs
from escaip_fairchem.nn.graph import Graph
from escaip_fairchem.nn.initialization import initialize
from escaip_fairchem.nn.precision import full_precision
from escaip_fairchem.nn.readout import Projection, Readout
from escaip_fairchem.nn.shapes import pad_graph


@dataclass(frozen=True, kw_only=True)
class Features:
    """What the heads read.

    Attributes:
        node_NH: Projected readouts of the atoms, shape (N, H).
        edge_NKH: Projected readouts of the edges, shape (N, K, H), or None where no head reads edges.
    """

    node_NH: Tensor
    edge_NKH: Tensor | None


class Backbone(nn.Module):
    """EScAIP's backbone (Qu & Krishnapriyan, NeurIPS 2024, arXiv:2410.24169).

    Edges of each neighbourhood attend to each other; a readout of every depth is kept, and all of them are joined.

    Args:
        config: Settings.
        has_edge_stream: Whether edge features are kept for the heads. Without it, the layers that only feed
            them are not built.
    """

    def __init__(self, config: BackboneConfig, *, has_edge_stream: bool) -> None:
        super().__init__()
        self.config = config
        self.radial_basis = build_radial_basis(
            config.distance_function, config.max_radius, config.edge_distance_expansion_size
        )
        settings = _block_settings(config, has_edge_stream)
        self.input_block = InputBlock(settings)
        self.blocks = nn.ModuleList(_attention_block(config, settings) for _ in range(config.num_layers))
        self.readouts = nn.ModuleList(_readout(config, has_edge_stream) for _ in range(config.num_layers + 1))
        self.node_projection = _projection(config)
        self.edge_projection = _projection(config) if has_edge_stream else None
        self._table_keeper = TableKeeper()
        self._regions = CompiledRegions()
        self._captures = CapturedPasses()
        initialize(self)

    def forward(self, graph: Graph, *, parameter_gradients: bool | None = None) -> Features:
        """Compute the features of a batch, in the way that ``config.execution`` names.

        Args:
            graph: Neighbourhoods and their geometry; its dtype is that of the parameters outside autocast.
            parameter_gradients: Whether gradients of parameters may be asked for later; by default where gradients are
                recorded at all. Forces of a conservative model need gradients, but at inference none of parameters.
        """
        if parameter_gradients is None:
            parameter_gradients = torch.is_grad_enabled()
        if self.config.execution == "plain":
            return self.plain(graph)
        if torch.is_grad_enabled() and not parameter_gradients and any(p.requires_grad for p in self.parameters()):
            # Linear layers then need not keep their inputs, which is half of what is kept.
            frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
            features: Features = functional_call(self, frozen, (graph,), {"parameter_gradients": False})
            return features
        return self.fast(graph, parameter_gradients)

    def plain(self, graph: Graph) -> Features:
        """Compute the features as the equations have it: the reference."""
        features = self.edge_features(graph)
        state = self.input_block(graph, features)
        readouts = [self.readouts[0](state)]
        for block, readout in zip(self.blocks, self.readouts[1:], strict=True):
            state = block(state, graph, features)
            readouts.append(readout(state))
        edge_NKH = None
        if self.edge_projection is not None:
            edge_NKH = self.edge_projection([part.edge_NKH for part in readouts])
        return Features(node_NH=self.node_projection([part.node_NH for part in readouts]), edge_NKH=edge_NKH)

    def fast(self, graph: Graph, parameter_gradients: bool) -> Features:
        """Compute the same with less work, see :mod:`escaip_fairchem.nn.fast`."""
        config, is_recorded = self.config, torch.is_grad_enabled() or self.training
        # Compiled code has no second derivative, which training on forces that are derivatives needs.
        compiled = config.compile and not (config.is_conservative and parameter_gradients)
        captured = config.cuda_graphs and not is_recorded
        atoms, slots = graph.sender_NK.shape
        if compiled or captured:
            graph = pad_graph(graph, config.max_neighbors)
        inputs = self.fast_inputs(graph, parameter_gradients)
        compute: Compute = record if is_recorded else infer
        run: Pass = self._regions.compiled(compute) if compiled else compute
        node_NH, edge_NKH = self._captures(self, inputs, run) if captured else run(self, inputs)
        return Features(node_NH=node_NH[:atoms], edge_NKH=None if edge_NKH is None else edge_NKH[:atoms, :slots])

    def fast_inputs(self, graph: Graph, parameter_gradients: bool) -> Inputs:
        """What the fast path's layers read, in full precision also under autocast."""
        # Training on forces that are derivatives differentiates twice.
        twice = self.config.is_conservative and parameter_gradients
        with full_precision(graph.distance_NK.device):
            return Inputs(
                graph=graph,
                order_NL=self.bond_orientational_order(graph),
                mixing=build_mixing(self.config, graph, twice=twice),
                distances=self.distance_terms(graph, parameter_gradients),
            )

    def distance_terms(self, graph: Graph, parameter_gradients: bool) -> DistanceTerms:
        """How the fast path gets at what depends on distances alone: by tables where it may, else by the basis."""
        # Tables are as exact as float32; float64 is for those who want more.
        may_tabulate = not (parameter_gradients or self.training) and graph.distance_NK.dtype == torch.float32
        if self.config.distance_table and may_tabulate:
            tables = self._table_keeper.tables(self)
            if tables is not None:
                return tables.look_up(graph)
        return BasisTerms(radial_NKG=without_underflow(self.radial(graph)))

    def radial(self, graph: Graph) -> Tensor:
        """Radial basis of every slot, 0 without a neighbour; shape (N, K, G)."""
        radial_NKG: Tensor = self.radial_basis(graph.distance_NK)
        return radial_NKG.masked_fill(~graph.edge_mask_NK.unsqueeze(-1), 0.0)

    def bond_orientational_order(self, graph: Graph) -> Tensor:
        """Shape of every neighbourhood, shape (N, lmax + 1)."""
        lmax = self.config.node_direction_expansion_size - 1
        return bond_orientational_order(graph.direction_NK3, graph.mask_NK, lmax)

    def edge_features(self, graph: Graph) -> EdgeFeatures:
        """Describe edges and neighbourhoods by invariant numbers, in full precision also under autocast."""
        with full_precision(graph.distance_NK.device):
            return EdgeFeatures(
                radial_NKG=self.radial(graph),
                order_NL=self.bond_orientational_order(graph),
                cosines_NKK=angle_cosines(graph.direction_NK3),
            )


def _block_settings(config: BackboneConfig, has_edge_stream: bool) -> BlockSettings:
    return BlockSettings(
        hidden_size=config.hidden_size,
        sizes=EdgeAttributeSizes(
            radial=config.edge_distance_expansion_size,
            distance=config.edge_distance_embedding_size,
            orders=config.node_direction_expansion_size,
            orientation=config.node_direction_embedding_size,
            elements=config.max_num_elements,
            element=config.atom_embedding_size,
        ),
        activation=config.activation,
        normalization=config.normalization,
        dropout=config.mlp_dropout,
        has_edge_stream=has_edge_stream,
    )


def _attention_block(config: BackboneConfig, settings: BlockSettings) -> AttentionBlock:
    attention = NeighborhoodAttention(
        config.hidden_size,
        config.atten_num_heads,
        use_angles=config.use_angle_embedding,
        dropout=config.atten_dropout,
        implementation=config.atten_name,
    )
    return AttentionBlock(
        settings,
        attention,
        ffn_multiplier=config.ffn_hidden_layer_multiplier,
        stochastic_depth=config.stochastic_depth_prob,
    )


def _readout(config: BackboneConfig, has_edge_stream: bool) -> Readout:
    return Readout(
        config.hidden_size,
        multiplier=config.readout_hidden_layer_multiplier,
        activation=config.activation,
        normalization=config.normalization,
        dropout=config.mlp_dropout,
        has_edge_stream=has_edge_stream,
    )


def _projection(config: BackboneConfig) -> Projection:
    return Projection(
        config.hidden_size,
        config.num_layers + 1,
        activation=config.activation,
        normalization=config.normalization,
        dropout=config.mlp_dropout,
    )
