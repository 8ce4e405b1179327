"""EScAIP as fairchem knows models: a backbone and heads for ``hydra``, and all in one as ``escaip``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import BackboneInterface, GraphModelMixin, HeadInterface, HydraModel
from torch import Tensor, nn

from escaip_fairchem.errors import ConfigError, nearest
from escaip_fairchem.nn import (
    Backbone,
    BackboneConfig,
    DirectForceHead,
    EnergyHead,
    EquivariantRank2Head,
    OriginalRank2Head,
    build_graph,
    energy_derivatives,
    make_differentiable,
    parse_config,
    stress_from_virial,
)
from escaip_fairchem.nn.config import OBSOLETE_KEYS, drop_obsolete_keys
from escaip_fairchem.nn.initialization import ENERGY_HEAD_GAIN, initialize, parameters_without_decay
from escaip_fairchem.nn.precision import full_precision
from escaip_fairchem.plugin.batches import errors_name_samples, neighborhoods_of_batch, systems_from_batch

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
        self.config = parse_config(BackboneConfig, drop_obsolete_keys(settings, "backbone"), "backbone")
        self.has_edge_stream = self.config.regress_forces and self.config.direct_force
        self.network = Backbone(self.config, has_edge_stream=self.has_edge_stream)
        self.otf_graph = self.config.otf_graph
        self.use_pbc = self.config.use_pbc
        self.cutoff = self.config.max_radius
        self.max_neighbors = self.config.max_neighbors

    def forward(self, data: Batch) -> Embedding:
        """Compute what the heads read.

        Returns:
            ``features`` (:class:`escaip_fairchem.nn.Features`), ``graph`` (:class:`escaip_fairchem.nn.Graph`), and for
            conservative models ``strained``, the leaves of the differentiation.
        """
        dtype = next(self.parameters()).dtype
        # A conservative model needs gradients also where fairchem has switched them off (validation, prediction).
        with (
            errors_name_samples(data),
            torch.set_grad_enabled(torch.is_grad_enabled() or self.config.is_conservative),
        ):
            with full_precision(data.pos.device):
                systems = systems_from_batch(data, use_pbc=self.config.use_pbc, dtype=dtype)
                systems.check_elements(self.config.max_num_elements)
                neighborhoods = neighborhoods_of_batch(
                    data, systems, cutoff=self.cutoff, max_neighbors=self.max_neighbors, on_the_fly=self.otf_graph
                )
                strained = make_differentiable(systems) if self.config.is_conservative else None
                graph = build_graph(systems if strained is None else strained.systems, neighborhoods)
            return {"features": self.network(graph), "graph": graph, "strained": strained}

    @torch.jit.ignore
    def no_weight_decay(self) -> list[str]:
        """Names of the parameters that the optimizer must not decay."""
        return parameters_without_decay(self)


@dataclass(frozen=True, kw_only=True)
class EnergyHeadOptions:
    """Keys of an energy head: ``output_name`` is the key of the prediction."""

    output_name: str = "energy"


@dataclass(frozen=True, kw_only=True)
class DirectForceHeadOptions:
    """Keys of a direct force head: ``output_name`` is the key of the prediction."""

    output_name: str = "forces"


@dataclass(frozen=True, kw_only=True)
class ConservativeHeadOptions:
    """Keys of a conservative head: ``regress_stress`` says whether stress is predicted, too."""

    regress_stress: bool = False


@dataclass(frozen=True, kw_only=True)
class Rank2HeadOptions:
    """Keys of a rank-2 head.

    Attributes:
        output_name: Name of the tensor; the predictions are ``<name>_isotropic`` and ``<name>_anisotropic``.
        equivariant: Whether the anisotropic part rotates with the structure. False is the original's head.
    """

    output_name: str = "stress"
    equivariant: bool = True


class _Head(nn.Module, HeadInterface):
    """What all heads share: the backbone's settings, and autocast exactly where the backbone has it."""

    reads_edges = False

    def __init__(self, backbone: EScAIPBackbone) -> None:
        super().__init__()
        if not isinstance(backbone, EScAIPBackbone):
            raise ConfigError(f"{type(self).__name__} reads an EScAIPBackbone, got {type(backbone).__name__}")
        self.config = backbone.config
        if self.reads_edges and not backbone.has_edge_stream:
            raise ConfigError(
                f"{type(self).__name__} reads edges, which the backbone keeps only with "
                "regress_forces: true and direct_force: true"
            )

    @property
    def use_amp(self) -> bool:
        """Whether ``hydra`` should run this head under autocast: if it runs the backbone so."""
        device = next(self.parameters()).device.type
        return bool(torch.is_autocast_enabled(device))

    @property
    def _shape(self) -> dict[str, Any]:
        return {"multiplier": self.config.output_hidden_layer_multiplier, "activation": self.config.activation}


@registry.register_model("escaip_energy_head")
class EScAIPEnergyHead(_Head):
    """Energy per structure.

    Args:
        backbone: The backbone that it reads.
        settings: Keys of :class:`EnergyHeadOptions`.
    """

    def __init__(self, backbone: EScAIPBackbone, **settings: Any) -> None:
        super().__init__(backbone)
        self.options = parse_config(EnergyHeadOptions, settings, "energy head")
        self.head = EnergyHead(self.config.hidden_size, reduce=self.config.energy_reduce, **self._shape)
        initialize(self.head, ENERGY_HEAD_GAIN)

    def forward(self, data: Batch, emb: Embedding) -> dict[str, Tensor]:
        """Predict ``energy``, shape (B, 1)."""
        return {self.options.output_name: self.head(emb["features"].node_NH, emb["graph"])}


@registry.register_model("escaip_direct_force_head")
class EScAIPDirectForceHead(_Head):
    """Forces read directly from atoms and edges.

    Args:
        backbone: The backbone that it reads.
        settings: Keys of :class:`DirectForceHeadOptions`.
    """

    reads_edges = True

    def __init__(self, backbone: EScAIPBackbone, **settings: Any) -> None:
        super().__init__(backbone)
        self.options = parse_config(DirectForceHeadOptions, settings, "direct force head")
        self.head = DirectForceHead(self.config.hidden_size, **self._shape)
        initialize(self.head)

    def forward(self, data: Batch, emb: Embedding) -> dict[str, Tensor]:
        """Predict ``forces``, shape (N, 3)."""
        features = emb["features"]
        return {self.options.output_name: self.head(features.node_NH, features.edge_NKH, emb["graph"])}


@registry.register_model("escaip_conservative_head")
class EScAIPConservativeHead(_Head):
    """Energy, and forces and stress as its derivatives.

    The derivatives are those of the normalised energy, so a normaliser must scale energy, forces and stress
    by the same number.

    Args:
        backbone: The backbone that it reads, with ``direct_force: false``.
        settings: Keys of :class:`ConservativeHeadOptions`.
    """

    def __init__(self, backbone: EScAIPBackbone, **settings: Any) -> None:
        super().__init__(backbone)
        if not self.config.is_conservative:
            raise ConfigError(
                f"{type(self).__name__} differentiates the energy: set the backbone's regress_forces: true and "
                "direct_force: false"
            )
        self.options = parse_config(ConservativeHeadOptions, settings, "conservative head")
        self.head = EnergyHead(self.config.hidden_size, reduce=self.config.energy_reduce, **self._shape)
        initialize(self.head, ENERGY_HEAD_GAIN)

    def forward(self, data: Batch, emb: Embedding) -> dict[str, Tensor]:
        """Predict ``energy`` (B, 1), ``forces`` (N, 3) and, if asked for, ``stress`` (B, 3, 3)."""
        create_graph = torch.is_grad_enabled()
        strained = emb["strained"]
        with torch.enable_grad():
            energy_B1 = self.head(emb["features"].node_NH, emb["graph"])
            forces_N3, virial_B33 = energy_derivatives(energy_B1, strained, create_graph=create_graph)
        outputs = {"energy": energy_B1 if create_graph else energy_B1.detach(), "forces": forces_N3}
        if self.options.regress_stress:
            systems = strained.systems
            outputs["stress"] = stress_from_virial(virial_B33, systems.cell_B33.detach(), systems.pbc_B3)
        return outputs


@registry.register_model("escaip_rank2_head")
class EScAIPRank2Head(_Head):
    """Stress by its irreducible parts, for fairchem's ``decomposition`` targets.

    Args:
        backbone: The backbone that it reads.
        settings: Keys of :class:`Rank2HeadOptions`.
    """

    reads_edges = True

    def __init__(self, backbone: EScAIPBackbone, **settings: Any) -> None:
        super().__init__(backbone)
        self.options = parse_config(Rank2HeadOptions, settings, "rank-2 head")
        head_class = EquivariantRank2Head if self.options.equivariant else OriginalRank2Head
        self.head = head_class(self.config.hidden_size, **self._shape)
        initialize(self.head)

    def forward(self, data: Batch, emb: Embedding) -> dict[str, Tensor]:
        """Predict the isotropic part (B, 1) and the anisotropic part (B, 5)."""
        features = emb["features"]
        isotropic_B1, anisotropic_B5 = self.head(features.node_NH, features.edge_NKH, emb["graph"])
        return {
            f"{self.options.output_name}_isotropic": isotropic_B1,
            f"{self.options.output_name}_anisotropic": anisotropic_B5,
        }


# The original's name for the conservative head, so that its YAML sections need no more than a new module path.
EScAIPGradientEnergyForceHead = EScAIPConservativeHead

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
        ConfigError: A key is unknown, missing or given twice.
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

    @torch.jit.ignore
    def no_weight_decay(self) -> list[str]:
        """Names of the parameters that the optimizer must not decay."""
        return parameters_without_decay(self)


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
