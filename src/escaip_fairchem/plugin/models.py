"""EScAIP in one model, as the class that users name in ``model.name``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HydraModel
from torch import nn

from escaip_fairchem.errors import ConfigError, nearest
from escaip_fairchem.nn import BackboneConfig
from escaip_fairchem.nn.config import OBSOLETE_KEYS
from escaip_fairchem.nn.initialization import parameters_without_decay
from escaip_fairchem.plugin.backbone import EScAIPBackbone
from escaip_fairchem.plugin.heads import (
    EScAIPConservativeHead,
    EScAIPDirectForceHead,
    EScAIPEnergyHead,
    EScAIPGradientEnergyForceHead,
    EScAIPRank2Head,
)

__all__ = [
    "EScAIP",
    "EScAIPBackbone",
    "EScAIPConservativeHead",
    "EScAIPDirectForceHead",
    "EScAIPEnergyHead",
    "EScAIPGradientEnergyForceHead",
    "EScAIPRank2Head",
]

# The class behind a head that is given by its usual name alone.
HEADS_BY_NAME = {
    "energy": "escaip_fairchem.EScAIPEnergyHead",
    "forces": "escaip_fairchem.EScAIPDirectForceHead",
    "energy_forces": "escaip_fairchem.EScAIPConservativeHead",
    "stress": "escaip_fairchem.EScAIPRank2Head",
}
BACKBONE_CLASS = "escaip_fairchem.EScAIPBackbone"


@registry.register_model("escaip")
class EScAIP(HydraModel):
    """Backbone and heads in one model.

    Settings of the backbone stand either in a section ``backbone:`` or beside the other keys. Heads follow from
    ``regress_forces`` and ``direct_force`` where no section ``heads:`` says otherwise; a head called ``energy``,
    ``forces``, ``energy_forces`` or ``stress`` needs no ``module:``.

    Args:
        backbone: Settings of :class:`EScAIPBackbone`.
        heads: Settings of the heads by name.
        otf_graph: Overrides the backbone's key of that name.
        pass_through_head_outputs: Whether predictions are found under their own names (fairchem's key).
        finetune_config: fairchem's section for starting from another checkpoint.
        freeze_backbone: Whether the backbone's parameters stay as they are.
        settings: Settings of the backbone, flat.

    Raises:
        ConfigError: A key is unknown, missing or given twice; or edges are computed that no head reads.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any] | None = None,
        heads: Mapping[str, Any] | None = None,
        *,
        otf_graph: bool | None = None,
        pass_through_head_outputs: bool = True,
        finetune_config: dict[str, Any] | None = None,
        freeze_backbone: bool = False,
        **settings: Any,
    ) -> None:
        sections: dict[str, Any] = {"backbone": None, "heads": None}
        if finetune_config is None or backbone is not None or settings:
            sections["backbone"] = backbone_section(backbone or {}, settings, otf_graph)
        if heads is not None or sections["backbone"] is not None:
            sections["heads"] = heads_section(heads, sections["backbone"])
        super().__init__(
            **sections,
            finetune_config=finetune_config,
            otf_graph=True if sections["backbone"] is None else sections["backbone"].get("otf_graph", True),
            pass_through_head_outputs=pass_through_head_outputs,
            freeze_backbone=freeze_backbone,
        )
        if finetune_config is None:  # with it the backbone may be another model's; training checks it all the same
            check_edges_are_read(self)

    @torch.jit.ignore
    def no_weight_decay(self) -> list[str]:
        """Names of the parameters that the optimizer must not decay."""
        return parameters_without_decay(self)


def check_edges_are_read(model: nn.Module) -> None:
    """Refuse a backbone that computes features of edges which no head reads: nothing would train them.

    Args:
        model: Any ``hydra`` model; other backbones and frozen ones pass.

    Raises:
        ConfigError: That is so.
    """
    backbone, heads = getattr(model, "backbone", None), getattr(model, "output_heads", {})
    if not isinstance(backbone, EScAIPBackbone) or not backbone.has_edge_stream:
        return
    is_trained = any(parameter.requires_grad for parameter in backbone.parameters())
    if is_trained and not any(getattr(head, "reads_edges", False) for head in heads.values()):
        raise ConfigError(
            f"model.heads: none of {', '.join(heads)} reads edges, which the backbone computes for direct forces; add "
            "the head `forces`, or set the backbone's regress_forces: false"
        )


def backbone_section(nested: Mapping[str, Any], flat: Mapping[str, Any], otf_graph: bool | None) -> dict[str, Any]:
    """Join the two ways to give the backbone's settings into one section for ``hydra``.

    Raises:
        ConfigError: A key is given both ways, or is unknown.
    """
    for key in flat:
        if key in nested:
            raise ConfigError(f"model.{key}: given twice, also as model.backbone.{key}")
        if key not in BackboneConfig.__dataclass_fields__ and key not in OBSOLETE_KEYS:
            raise ConfigError(f"model: unknown key {key!r}{nearest(key, BackboneConfig.__dataclass_fields__)}")
    section = {"model": BACKBONE_CLASS, **copy.deepcopy(dict(nested)), **flat}
    if otf_graph is not None:
        section["otf_graph"] = otf_graph
    return section


def heads_section(heads: Mapping[str, Any] | None, backbone: Mapping[str, Any] | None) -> dict[str, Any]:
    """Complete the heads: the usual ones where none are given, the usual classes where they are not named.

    Raises:
        ConfigError: A head's class is neither named nor known by the head's name.
    """
    if heads is None:
        settings = backbone or {}
        names = ["energy"]
        if settings.get("regress_forces", BackboneConfig.regress_forces):
            is_direct = settings.get("direct_force", BackboneConfig.direct_force)
            names = ["energy", "forces"] if is_direct else ["energy_forces"]
        heads = dict.fromkeys(names)
    section = {}
    for name, options in heads.items():
        head = dict(options or {})
        if "module" not in head:
            if name not in HEADS_BY_NAME:
                raise ConfigError(f"model.heads.{name}: missing key 'module'{nearest(name, HEADS_BY_NAME)}")
            head["module"] = HEADS_BY_NAME[name]
        section[name] = head
    return section
