"""EScAIP's heads as parts of fairchem's ``hydra``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import HeadInterface
from torch import Tensor, nn

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn import (
    DirectForceHead,
    EnergyHead,
    EquivariantRank2Head,
    OriginalRank2Head,
    energy_derivatives,
    parse_config,
    stress_from_virial,
)
from escaip_fairchem.nn.initialization import ENERGY_HEAD_GAIN, initialize
from escaip_fairchem.plugin.backbone import Embedding, EScAIPBackbone

if TYPE_CHECKING:
    from torch_geometric.data import Batch


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
        return {
            "multiplier": self.config.output_hidden_layer_multiplier,
            "activation": self.config.activation,
            "fast": self.config.execution == "fast",
        }


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
