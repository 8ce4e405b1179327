"""The shortest time that a machine could need: operations over rate, bytes over bandwidth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from escaip_fairchem.bench.machine import Machine
from escaip_fairchem.bench.models import ESCAIP, ModelName, NotAvailableError, backbone_config
from escaip_fairchem.nn import BackboneConfig
from escaip_fairchem.nn.costs import meta_graph
from escaip_fairchem.testing.predictors import Predictor

WEIGHT_PASSES = {"inference": 1, "training": 9}
"""How often each weight's four bytes, or as many, have to move. Training: the weight is read forwards and backwards,
its gradient written and read, AdamW's two moments read and written, the weight written."""


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The fewest operations and bytes of a piece of work.

    Attributes:
        flops: Floating-point operations of the plain model's matrix products; a multiply-add counts as two.
        bytes: Bytes that have to be read or written at least once.
        precision: Of the matrix products.
    """

    flops: float
    bytes: float
    precision: str = "fp32"

    def seconds(self, machine: Machine) -> float:
        """The time that the slower of the two takes at the machine's measured rates."""
        return max(self.flops / machine.rate(self.precision), self.bytes / machine.copy_rate)

    def limit(self, machine: Machine) -> str:
        """Which of the two it is: ``FLOP`` or ``bytes``."""
        compute = self.flops / machine.rate(self.precision)
        return "FLOP" if compute >= self.bytes / machine.copy_rate else "bytes"


def plain_config(model: str) -> BackboneConfig:
    """Settings of a model's plain path."""
    try:
        return backbone_config(ModelName(model=model, variant="plain"))
    except NotAvailableError:
        return backbone_config(ModelName(model=model, variant="fast"))  # a version that has one path only


@cache
def escaip_flops_per_atom(model: str, mode: str) -> float:
    """Operations per atom of the plain model with heads for energy and forces, all neighbour slots in use.

    Counted on tensors without data.

    Args:
        model: Name of one of this package's models.
        mode: ``inference`` (forward) or ``training`` (forward and backward).
    """
    config = replace(plain_config(model), mlp_dropout=0.0, atten_dropout=0.0)
    with torch.device("meta"):
        predictor = Predictor(config, "direct")
    graph = meta_graph(config)
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(mode == "training"):
        features = predictor.backbone(graph)
        outputs = [predictor.energy(features.node_NH, graph)]
        if predictor.forces is not None:
            outputs.append(predictor.forces(features.node_NH, features.edge_NKH, graph))
        if mode == "training":
            total: Tensor = sum((output.sum() for output in outputs), start=torch.zeros((), device="meta"))
            total.backward()
    return counter.get_total_flops() / len(graph.numbers_N)


def count_flops(function: Any) -> float:
    """Operations of the matrix products that a call makes."""
    counter = FlopCounterMode(display=False)
    with counter:
        function()
    return float(counter.get_total_flops())


def model_bytes(module: nn.Module, mode: str) -> float:
    """Fewest bytes that a pass over a model moves: its weights. Inputs and outputs are nothing beside them."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    return float(weights) * WEIGHT_PASSES[mode]


def weightless(name: ModelName) -> Predictor:
    """One of this package's models without memory for its parameters, to be counted."""
    with torch.device("meta"):
        return Predictor(backbone_config(name), "direct")


def is_counted_by_hand(model: str) -> bool:
    """Whether a model's operations are those of this package's plain path, whatever runs in truth."""
    return model in ESCAIP
