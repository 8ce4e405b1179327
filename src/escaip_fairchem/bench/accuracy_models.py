"""Small models for small sets, and how they are trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import yaml

from escaip_fairchem.errors import ConfigError, nearest

CUTOFF = 6.0
_EQUIFORMER_V2 = "fairchem.core.models.equiformer_v2"

_ESCAIP: dict[str, Any] = {
    "hidden_size": 32, "num_layers": 1, "atten_num_heads": 4, "max_radius": CUTOFF, "max_neighbors": 20,
    "edge_distance_expansion_size": 128, "edge_distance_embedding_size": 64, "node_direction_expansion_size": 10,
    "node_direction_embedding_size": 32, "atom_embedding_size": 32, "energy_reduce": "sum", "max_num_elements": 100,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SmallTraining:
    """How a model is trained.

    Attributes:
        rate: Initial learning rate.
        atoms: Atoms per step, about: so many structures as have that many on average, at least one.
        weight_decay: Of AdamW.
        clip: Largest norm of the gradients.
        ema: Decay of the averaged weights.
        energy: Weight of the energy's loss.
        forces: Weight of the forces' loss.
        rotations: Orientations in which every structure occurs in training; 1 leaves them as they are.
    """

    rate: float = 1e-3
    atoms: int = 64
    weight_decay: float = 1e-3
    clip: float = 10.0
    ema: float = 0.95
    energy: float = 1.0
    forces: float = 10.0
    rotations: int = 1


@dataclass(frozen=True, kw_only=True)
class SmallModel:
    """A model and how it is trained.

    Attributes:
        section: The ``model:`` section.
        parts: What predicts energies and forces, in words.
        training: How it is trained.
    """

    section: Mapping[str, Any]
    parts: str
    training: SmallTraining = SmallTraining()


_ESCAIP_TRAINING = SmallTraining(rate=3e-3)
_EQUIFORMER_V2_BACKBONE: dict[str, Any] = {
    "model": f"{_EQUIFORMER_V2}.equiformer_v2.EquiformerV2Backbone",
    "use_pbc": True, "regress_forces": True, "max_neighbors": 20, "max_radius": CUTOFF, "max_num_elements": 100,
    "num_layers": 1, "sphere_channels": 32, "attn_hidden_channels": 32, "num_heads": 4, "attn_alpha_channels": 16,
    "attn_value_channels": 8, "ffn_hidden_channels": 64, "norm_type": "layer_norm_sh", "lmax_list": [2],
    "mmax_list": [2], "grid_resolution": 14, "edge_channels": 64, "attn_activation": "silu", "ffn_activation": "silu",
    "use_grid_mlp": True, "use_attn_renorm": True, "alpha_drop": 0.0, "drop_path_rate": 0.0, "weight_init": "uniform",
}  # fmt: skip
_SCHNET: dict[str, Any] = {
    "name": "fairchem.core.models.schnet.SchNetWrap",
    "hidden_channels": 64, "num_filters": 64, "num_interactions": 3, "num_gaussians": 64, "cutoff": CUTOFF,
    "use_pbc": True, "regress_forces": True, "otf_graph": True,
}  # fmt: skip
_PAINN: dict[str, Any] = {
    "name": "fairchem.core.models.painn.painn.PaiNN",
    "hidden_channels": 64, "num_layers": 2, "num_rbf": 64, "cutoff": CUTOFF, "max_neighbors": 50,
    "regress_forces": True, "direct_forces": False, "use_pbc": True, "otf_graph": True,
}  # fmt: skip


MODELS: Mapping[str, SmallModel] = {
    "escaip": SmallModel(
        section={"name": "escaip_fairchem.EScAIP", "backbone": _ESCAIP, "heads": {"energy": {}, "forces": {}}},
        parts="direct forces",
        training=_ESCAIP_TRAINING,
    ),
    "escaip-conservative": SmallModel(
        section={
            "name": "escaip_fairchem.EScAIP",
            "backbone": {**_ESCAIP, "direct_force": False},
            "heads": {"energy_forces": {}},
        },
        parts="forces from the gradient",
        training=_ESCAIP_TRAINING,
    ),
    "schnet": SmallModel(section=_SCHNET, parts="forces from the gradient", training=SmallTraining(rate=3e-3)),
    "painn": SmallModel(section=_PAINN, parts="forces from the gradient"),
    "equiformer-v2": SmallModel(
        section={
            "name": "hydra",
            "otf_graph": True,
            "pass_through_head_outputs": True,
            "backbone": _EQUIFORMER_V2_BACKBONE,
            "heads": {
                "energy": {"module": f"{_EQUIFORMER_V2}.heads.scalar.EqV2ScalarHead"},
                "forces": {"module": f"{_EQUIFORMER_V2}.heads.vector.EqV2VectorHead"},
            },
        },
        parts="direct forces, degrees up to 2",
    ),
}
"""fairchem's models through its own classes, named by their places; all see neighbours within 6 Å."""


def small_model(name: str) -> SmallModel:
    """A model by its name, with changes: ``escaip:rate=0.003:hidden_size=128``.

    Args:
        name: Key of :data:`MODELS`, then changes. A change's key is one of :class:`SmallTraining`, or else one of the
            model's own settings.

    Raises:
        ConfigError: There is no such model, or a change has no value.
    """
    base, *changes = name.split(":")
    if base not in MODELS:
        raise ConfigError(f"model {base!r} is unknown{nearest(base, MODELS)}; known are {', '.join(MODELS)}")
    model = MODELS[base]
    section: dict[str, Any] = copy.deepcopy(dict(model.section))
    own = {field.name: type(getattr(model.training, field.name)) for field in fields(SmallTraining)}
    training: dict[str, Any] = {}
    for change in changes:
        key, is_given, text = change.partition("=")
        if not is_given or not text:
            raise ConfigError(f"model {name!r}: change {change!r} must read key=value")
        if key not in own:
            section.get("backbone", section)[key] = yaml.safe_load(text)
        else:
            try:
                training[key] = own[key](text)
            except ValueError:
                raise ConfigError(f"model {name!r}: {key} must be a number, got {text!r}") from None
    return replace(model, section=section, training=replace(model.training, **training))
