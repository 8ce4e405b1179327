"""What a model costs per atom, counted on tensors without data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from escaip_fairchem.nn.config import BackboneConfig
from escaip_fairchem.nn.graph import Graph
from escaip_fairchem.nn.model import Backbone

# Atoms of the counted batch: costs are proportional to it.
_ATOMS = 8


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of one atom with all neighbour slots in use, by the plain model in float32.

    Attributes:
        forward_flops: Floating-point operations of a forward pass's matrix products; a multiply-add counts as two.
        saved_bytes: Memory that the backward pass keeps from the forward pass.
        readout_bytes: Size of the readouts of all depths, the largest tensors of inference.
    """

    forward_flops: float
    saved_bytes: float
    readout_bytes: float


def meta_graph(config: BackboneConfig) -> Graph:
    """A graph of full neighbourhoods without data, on the ``meta`` device."""
    slots = config.max_neighbors
    numbers_N = torch.zeros(_ATOMS, dtype=torch.int64, device="meta")
    sender_NK = torch.zeros(_ATOMS, slots, dtype=torch.int64, device="meta")
    return Graph(
        numbers_N=numbers_N,
        structure_N=numbers_N,
        num_structures=1,
        sender_NK=sender_NK,
        mask_NK=sender_NK == 0,
        edge_mask_NK=sender_NK == 0,
        distance_NK=torch.empty(_ATOMS, slots, device="meta"),
        direction_NK3=torch.empty(_ATOMS, slots, 3, device="meta"),
    )


def count_costs(backbone: Backbone, config: BackboneConfig) -> Costs:
    """Run a backbone without data and count.

    Args:
        backbone: It lives on the ``meta`` device.
        config: Its settings.
    """
    saved: dict[int, int] = {}
    parameters = {id(parameter) for parameter in backbone.parameters()}

    def remember(tensor: Tensor) -> Tensor:
        if id(tensor) not in parameters and not isinstance(tensor, nn.Parameter):
            saved[id(tensor)] = tensor.numel() * tensor.element_size()
            kept.append(tensor)
        return tensor

    kept: list[Tensor] = []  # Keeps the ids of the tensors apart.
    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        features = backbone.plain(meta_graph(config))
    depths = config.num_layers + 1
    rows = 1 + (config.max_neighbors if features.edge_NKH is not None else 0)
    return Costs(
        forward_flops=counter.get_total_flops() / _ATOMS,
        saved_bytes=sum(saved.values()) / _ATOMS,
        readout_bytes=4.0 * rows * depths * config.hidden_size,
    )
