"""EScAIP's backbone as a part of fairchem's ``hydra``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import BackboneInterface, GraphModelMixin
from torch import nn

from escaip_fairchem.nn import (
    Backbone,
    BackboneConfig,
    Neighborhoods,
    build_graph,
    find_neighbors,
    make_differentiable,
    parse_config,
)
from escaip_fairchem.nn.config import drop_obsolete_keys, with_differentiable_attention
from escaip_fairchem.nn.initialization import parameters_without_decay
from escaip_fairchem.nn.precision import full_precision
from escaip_fairchem.plugin.batches import errors_name_samples
from escaip_fairchem.plugin.prepared import NeighborSearch

if TYPE_CHECKING:
    from torch_geometric.data import Batch

Embedding = dict[str, Any]


@registry.register_model("escaip_backbone")
class EScAIPBackbone(nn.Module, GraphModelMixin, BackboneInterface):
    """The backbone, for fairchem's ``hydra``.

    Args:
        settings: The keys of :class:`escaip_fairchem.nn.BackboneConfig`; the original's obsolete ones are
            accepted with a warning.

    Raises:
        ConfigError: A key is unknown or missing, or a value cannot be used.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        section = with_differentiable_attention(drop_obsolete_keys(settings, "backbone"))
        self.config = parse_config(BackboneConfig, section, "backbone")
        self.has_edge_stream = self.config.regress_forces and self.config.direct_force
        self.network = Backbone(self.config, has_edge_stream=self.has_edge_stream)
        self.otf_graph = self.config.otf_graph
        self.use_pbc = self.config.use_pbc
        self.cutoff = self.config.max_radius
        self.max_neighbors = self.config.max_neighbors
        self.search: Callable[..., Neighborhoods] = find_neighbors
        """What searches neighbours. A calculator replaces it by one that remembers."""

    def neighbor_search(self) -> NeighborSearch:
        """How neighbours are searched, for those who load data."""
        return NeighborSearch(
            cutoff=self.cutoff,
            max_neighbors=self.max_neighbors,
            max_num_elements=self.config.max_num_elements,
            use_pbc=self.config.use_pbc,
            on_the_fly=self.otf_graph,
            dtype=next(self.parameters()).dtype,
        )

    def forward(self, data: Batch) -> Embedding:
        """Compute what the heads read.

        Returns:
            ``features`` (:class:`escaip_fairchem.nn.Features`), ``graph`` (:class:`escaip_fairchem.nn.Graph`), and for
            conservative models ``strained``, the leaves of the differentiation.
        """
        search = self.neighbor_search()
        parameter_gradients = torch.is_grad_enabled()
        # A conservative model needs gradients also where fairchem has switched them off (validation, prediction).
        with (
            errors_name_samples(data),
            torch.set_grad_enabled(torch.is_grad_enabled() or self.config.is_conservative),
        ):
            with full_precision(data.pos.device):
                systems = search.systems(data)
                neighborhoods = search.neighborhoods(data, systems, find=self.search)
                strained = make_differentiable(systems) if self.config.is_conservative else None
                graph = build_graph(systems if strained is None else strained.systems, neighborhoods)
            features = self.network(graph, parameter_gradients=parameter_gradients)
            return {"features": features, "graph": graph, "strained": strained}

    @torch.jit.ignore
    def no_weight_decay(self) -> list[str]:
        """Names of the parameters that the optimizer must not decay."""
        return parameters_without_decay(self)
