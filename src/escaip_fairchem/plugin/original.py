"""Models of the original implementation (v1), brought over with their parameters."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from escaip_fairchem.errors import CheckpointError, ConfigError, nearest
from escaip_fairchem.plugin.models import EScAIP

# Modules of the original by the last part of their import path, and ours.
MODULES = {
    "EScAIPBackbone": "escaip_fairchem.EScAIPBackbone",
    "EScAIPEnergyHead": "escaip_fairchem.EScAIPEnergyHead",
    "EScAIPDirectForceHead": "escaip_fairchem.EScAIPDirectForceHead",
    "EScAIPGradientEnergyForceHead": "escaip_fairchem.EScAIPConservativeHead",
    "EScAIPRank2Head": "escaip_fairchem.EScAIPRank2Head",
}
# Heads that need what the backbone does for forces only.
_FORCE_HEADS = tuple(MODULES[name] for name in MODULES if name != "EScAIPEnergyHead" and name != "EScAIPBackbone")
# Keys of a hydra section that have nothing to do with the architecture.
_HYDRA_KEYS = ("pass_through_head_outputs", "otf_graph", "freeze_backbone")

# Parts of parameter names, in the order in which they are replaced.
_RENAMED = [
    (r"^backbone\.input_block\.input_layer\.edge_linear\.0\.", "backbone.network.input_block.edge_linear.0."),
    (r"^backbone\.input_block\.input_layer\.edge_ffn\.", "backbone.network.input_block.ffn."),
    (r"^backbone\.input_block\.input_layer\.norm\.", "backbone.network.input_block.ffn_norm."),
    (r"^backbone\.input_block\.input_layer\.", "backbone.network.input_block.edge_attributes."),
    (r"^backbone\.input_block\.norm\.", "backbone.network.input_block."),
    (r"^backbone\.transformer_blocks\.(\d+)\.norm_attn\.", r"backbone.network.blocks.\1.attention_norm."),
    (r"^backbone\.transformer_blocks\.(\d+)\.norm_ffn\.", r"backbone.network.blocks.\1."),
    (r"^backbone\.transformer_blocks\.(\d+)\.feedforward\.mlp_(node|edge)\.", r"backbone.network.blocks.\1.\2_ffn."),
    (
        r"^backbone\.transformer_blocks\.(\d+)\.graph_attention\.attn_scalar$",
        r"backbone.network.blocks.\1.graph_attention.attention.angle_scale",
    ),
    (
        r"^backbone\.transformer_blocks\.(\d+)\.graph_attention\.multi_head_attention\.in_proj_",
        r"backbone.network.blocks.\1.graph_attention.attention.in_projection.",
    ),
    (
        r"^backbone\.transformer_blocks\.(\d+)\.graph_attention\.multi_head_attention\.out_proj\.",
        r"backbone.network.blocks.\1.graph_attention.attention.out_projection.",
    ),
    (
        r"^backbone\.transformer_blocks\.(\d+)\.graph_attention\.(edge|node|message)_linear\.",
        r"backbone.network.blocks.\1.graph_attention.\2_linear.",
    ),
    (
        r"^backbone\.transformer_blocks\.(\d+)\.graph_attention\.",
        r"backbone.network.blocks.\1.graph_attention.edge_attributes.",
    ),
    (r"\.source_atomic_embedding\.", ".sender_element_embedding."),
    (r"\.target_atomic_embedding\.", ".receiver_element_embedding."),
    (r"\.source_direction_embedding\.", ".sender_orientation_embedding."),
    (r"\.target_direction_embedding\.", ".receiver_orientation_embedding."),
    (r"\.edge_distance_embedding\.", ".distance_embedding."),
    (r"^backbone\.readout_layers\.(\d+)\.energy_", r"backbone.network.readouts.\1.node."),
    (r"^backbone\.readout_layers\.(\d+)\.force_", r"backbone.network.readouts.\1.edge."),
    (r"^backbone\.output_projection\.(node|edge)_projection\.", r"backbone.network.\1_projection.linear."),
    (r"^backbone\.output_projection\.readout_norm\.(node|edge)_norm\.", r"backbone.network.\1_projection.in_norm."),
    (r"^backbone\.output_projection\.output_norm\.(node|edge)_norm\.", r"backbone.network.\1_projection.out_norm."),
    (r"^backbone\.(?:\w+\.)*fc1\.", "backbone.network.radial_basis.affine."),
    (r"^output_heads\.(\w+)\.energy_layer\.", r"output_heads.\1.head.layer."),
    (r"^output_heads\.(\w+)\.force_(direction|magnitude)_layer\.", r"output_heads.\1.head.\2_layer."),
    (r"^output_heads\.(\w+)\.scalar_layer\.", r"output_heads.\1.head.scalar_layer."),
    (r"^output_heads\.(\w+)\.irreps2_layer\.", r"output_heads.\1.head.quadrupole_layer."),
    (r"ffn\.1\.0\.", "ffn.1."),
    (r"\.final_output\.0\.", ".linear."),
]
# Tensors that follow from the settings.
_DERIVED = re.compile(r"(^|\.)offset$")


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What became of the original's parameters.

    Attributes:
        placed: Original names by our names.
        without_effect: Original names whose tensors cannot influence the predictions (the edge stream of conservative
            models, the scale of angles that are not used) or follow from the settings.
        unknown: Original names that have no place here.
        missing: Our names that found no tensor.
    """

    placed: dict[str, str] = field(default_factory=dict)
    without_effect: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def raise_if_incomplete(self) -> None:
        """Refuse an import that would leave a parameter at random or drop one.

        Raises:
            CheckpointError: Names every key.
        """
        problems = []
        if self.unknown:
            problems.append(f"no place for {', '.join(self.unknown)}")
        if self.missing:
            problems.append(f"no value for {', '.join(self.missing)}")
        if problems:
            raise CheckpointError(f"the parameters do not fit the model section: {'; '.join(problems)}")


def import_original(model: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> EScAIP:
    """Build a model from an original v1 model section and parameters under the original's names.

    Args:
        model: The section ``model:`` of an original YAML file or checkpoint, with ``backbone`` and ``heads``.
        state_dict: Tensors by the original's names, with or without a ``module.`` prefix.

    Returns:
        The model in evaluation mode. It maps a torch-geometric ``Batch`` to a dict of ``energy`` (B, 1), ``forces``
        (N, 3), …

    Raises:
        ConfigError: The section has a key or module that is unknown.
        CheckpointError: Tensors and section do not fit; every key concerned is named.
    """
    imported = EScAIP(**convert_section(model))
    load_original(imported, state_dict).raise_if_incomplete()
    imported.eval()
    return imported


def convert_section(model: Mapping[str, Any]) -> dict[str, Any]:
    """Turn an original ``model:`` section into the arguments of :class:`EScAIP`.

    The original's gradient head averages over atoms whatever ``energy_reduce`` says, and its rank-2 head is not
    equivariant; the result says so explicitly, so that it predicts the original's numbers. Features of edges that no
    head reads are not computed.

    Raises:
        ConfigError: A module or key is unknown.
    """
    section = copy.deepcopy(dict(model))
    section.pop("name", None)
    for part in ("backbone", "heads"):
        if not isinstance(section.get(part), dict):
            raise ConfigError(f"model: the original's sections have a mapping {part!r}, got {section.get(part)!r}")
    backbone, heads = section.pop("backbone"), section.pop("heads")
    converted = {key: section.pop(key) for key in _HYDRA_KEYS if key in section}
    for key in section:
        raise ConfigError(f"model: unknown key {key!r}{nearest(key, _HYDRA_KEYS)}")
    backbone["model"] = _our_module(backbone.get("model", "EScAIPBackbone"), "model.backbone.model")
    for name, head in heads.items():
        head["module"] = _our_module(head.get("module", ""), f"model.heads.{name}.module")
        if head["module"].endswith("EScAIPConservativeHead"):
            backbone["energy_reduce"] = "mean"
        if head["module"].endswith("EScAIPRank2Head"):
            head["equivariant"] = False
    if not any(head["module"] in _FORCE_HEADS for head in heads.values()):
        backbone["regress_forces"] = False
    return {**converted, "backbone": backbone, "heads": heads}


def _our_module(path: str, where: str) -> str:
    name = str(path).rpartition(".")[2]
    if name not in MODULES:
        raise ConfigError(f"{where}: {path!r} is no module of the original{nearest(name, MODULES)}")
    return MODULES[name]


def our_name(name: str) -> str:
    """Translate a parameter's name; one without a counterpart comes back changed in part or not at all."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def load_original(model: nn.Module, state_dict: Mapping[str, Tensor]) -> ImportReport:
    """Copy the original's tensors into a model built from :func:`convert_section`.

    Args:
        model: Changed in place, where a tensor of the right shape is found.
        state_dict: Tensors by the original's names.

    Returns:
        What was placed, left out, unknown and missing.

    Raises:
        CheckpointError: A tensor has the wrong shape.
    """
    own = model.state_dict()
    report = ImportReport()
    values = {}
    for original_name, tensor in state_dict.items():
        stripped = re.sub(r"^(module\.)+", "", original_name)
        name = our_name(stripped)
        if name in own:
            if own[name].shape != tensor.shape:
                raise CheckpointError(
                    f"{original_name}: shape {tuple(tensor.shape)}, but the section makes it {tuple(own[name].shape)}"
                )
            values[name] = tensor
            report.placed[name] = original_name
        elif _has_no_effect(name, stripped, model):
            report.without_effect.append(original_name)
        else:
            report.unknown.append(original_name)
    report.missing.extend(name for name in own if name not in values)
    model.load_state_dict(values, strict=False)
    return report


def is_derived(name: str) -> bool:
    """Whether a tensor of the original is no parameter, but follows from the settings."""
    return _DERIVED.search(name) is not None


def _has_no_effect(name: str, original_name: str, model: nn.Module) -> bool:
    """Whether a tensor follows from the settings, or belongs to an edge stream or to angles that the model lacks."""
    if is_derived(original_name):
        return True
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        return False
    if name.endswith(".attention.angle_scale") and not backbone.config.use_angle_embedding:
        return True
    if backbone.has_edge_stream:
        return False
    is_edge_part = re.search(
        r"^backbone\.network\.(edge_projection\.|input_block\.edge_norm\.|blocks\.\d+\.edge_(ffn|norm)\.|readouts\.\d+\.edge\.)",
        name,
    )
    return is_edge_part is not None
