"""EquiformerV2 without directions: degree L = 0, and bond-orientational order in their place (the paper's figure 2).

The paper says that its ablation's model with L = 0 sees invariant features only, and directions by bond-orientational
order; it leaves open how. Here it is fairchem's EquiformerV2 with ``lmax_list: [0]`` and ``mmax_list: [0]``, and two
additions, the least that such a model needs:

- **Input.** The embedding of an atom, which EquiformerV2 takes from its element alone, gets
  ``W₂ silu(W₁ BOO(i) + b₁)`` added, with the orders l = 0 … 9 over the atom's edges, as EScAIP has them.
- **Forces.** EquiformerV2 reads them from features of degree 1, which do not exist. Here they are sums of the edges'
  directions with invariant weights, ``F_i = Σ_j w_ij u_ij`` with ``w_ij = v · silu(W_t x_i + W_s x_j + W_d rbf(d_ij))``
  of the last layer's features: they turn with the structure, as EquiformerV2's do.
"""

from __future__ import annotations

from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import GraphData, HeadInterface
from fairchem.core.models.equiformer_v2.equiformer_v2 import EquiformerV2Backbone
from torch import Tensor, nn
from torch_geometric.data import Batch

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn.basis import harmonics_up_to, orders_of


class ElementAndOrderEmbedding(nn.Module):
    """Embedding of an atom's element and of the shape of its neighbourhood.

    Args:
        elements: What embeds the elements.
        orders: Number of orders.
        hidden_size: Width in between.
    """

    def __init__(self, elements: nn.Embedding, *, orders: int, hidden_size: int) -> None:
        super().__init__()
        self.elements = elements
        self.shape = nn.Sequential(
            nn.Linear(orders, hidden_size), nn.SiLU(), nn.Linear(hidden_size, elements.embedding_dim)
        )
        self.order_NL: Tensor | None = None
        """Of the atoms that come next: fairchem's forward pass hands over the elements alone."""

    def forward(self, numbers_N: Tensor) -> Tensor:
        """Embed atoms, shape (N, D); their orders must have been set."""
        assert self.order_NL is not None
        order_NL, self.order_NL = self.order_NL, None
        embedded: Tensor = self.elements(numbers_N) + self.shape(order_NL)
        return embedded


@registry.register_model("escaip_invariant_equiformer_v2_backbone")
class InvariantEquiformerV2Backbone(EquiformerV2Backbone):
    """EquiformerV2 of degree 0 whose atoms know the shape of their neighbourhood.

    Args:
        node_direction_expansion_size: Number of bond-orientational orders, l = 0 … size − 1.
        node_direction_embedding_size: Width of their embedding.
        settings: EquiformerV2's own; ``lmax_list`` and ``mmax_list`` can only be [0].

    Raises:
        ConfigError: A larger degree is asked for.
    """

    sphere_embedding: Any  # fairchem's, then in it this module's

    def __init__(
        self, *, node_direction_expansion_size: int = 10, node_direction_embedding_size: int = 64, **settings: Any
    ) -> None:
        for key in ("lmax_list", "mmax_list"):
            if list(settings.setdefault(key, [0])) != [0]:
                raise ConfigError(
                    f"model.backbone.{key}: this model has degree 0 alone, got {settings[key]!r}; write [0]"
                )
        super().__init__(**settings)
        self.highest_order = node_direction_expansion_size - 1
        self.sphere_embedding = ElementAndOrderEmbedding(
            self.sphere_embedding, orders=node_direction_expansion_size, hidden_size=node_direction_embedding_size
        )
        for parameter in self.parameters():
            # Weights of degrees that are not there: no gradient ever reaches them, for which training would stop.
            if parameter.numel() == 0:
                parameter.requires_grad_(False)

    def generate_graph(self, data: Batch, *args: Any, **settings: Any) -> GraphData:
        """Make fairchem's graph; the orders of its neighbourhoods go to the embedding."""
        graph = super().generate_graph(data, *args, **settings)
        self.sphere_embedding.order_NL = self.orders(graph, len(data.pos)).to(data.pos.dtype)
        return graph

    def orders(self, graph: GraphData, num_atoms: int) -> Tensor:
        """Bond-orientational orders over the edges of every atom, 0 for an atom without any; shape (N, L)."""
        receiver_E = graph.edge_index[1]
        harmonics_EY = harmonics_up_to(self.highest_order, directions(graph))
        sum_NY = harmonics_EY.new_zeros(num_atoms, harmonics_EY.shape[1]).index_add(0, receiver_E, harmonics_EY)
        count_N = torch.bincount(receiver_E, minlength=num_atoms).clamp(min=1)
        return orders_of(sum_NY / count_N.unsqueeze(1), self.highest_order)


@registry.register_model("escaip_invariant_equiformer_v2_force_head")
class InvariantEquiformerV2ForceHead(nn.Module, HeadInterface):
    """Forces as sums of the edges' directions, weighted by invariant features.

    Args:
        backbone: An :class:`InvariantEquiformerV2Backbone`.
        output_name: Name of the prediction.
    """

    def __init__(self, backbone: EquiformerV2Backbone, output_name: str = "forces") -> None:
        super().__init__()
        self.output_name = output_name
        width, hidden = backbone.sphere_channels, backbone.ffn_hidden_channels
        self.from_receiver = nn.Linear(width, hidden)
        self.from_sender = nn.Linear(width, hidden, bias=False)
        self.from_distance = nn.Linear(backbone.edge_channels_list[0], hidden, bias=False)
        self.weight = nn.Linear(hidden, 1, bias=False)

    def forward(self, data: Batch, emb: dict[str, Any]) -> dict[str, Tensor]:
        """Predict forces, shape (N, 3)."""
        graph = emb["graph"]
        node_NH = emb["node_embedding"].embedding[:, 0]
        sender_E, receiver_E = graph.edge_index
        hidden_EH = (
            self.from_receiver(node_NH)[receiver_E]
            + self.from_sender(node_NH)[sender_E]
            + self.from_distance(graph.edge_distance)  # by now its radial basis
        )
        weight_E1 = self.weight(nn.functional.silu(hidden_EH))
        forces_N3 = node_NH.new_zeros(len(node_NH), 3).index_add(
            0, receiver_E, (weight_E1 * directions(graph)).to(node_NH.dtype)
        )
        return {self.output_name: forces_N3}


def directions(graph: GraphData) -> Tensor:
    """Unit vectors of the edges, from sender to receiver; shape (E, 3)."""
    # fairchem's vectors point the other way.
    return -torch.nn.functional.normalize(graph.edge_distance_vec, dim=-1)
