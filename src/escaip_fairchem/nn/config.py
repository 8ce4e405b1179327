"""Settings of the network: frozen, typed, strict about keys. The one place where each default is stated.

The keys are those of the original's v1 YAML files, so that its ``model:`` sections keep their meaning.
"""

from __future__ import annotations

import math
import types
import typing
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from escaip_fairchem.errors import ConfigError, nearest
from escaip_fairchem.nn.activations import ACTIVATIONS
from escaip_fairchem.nn.attention import ATTENTION_FUNCTIONS, plain_attention
from escaip_fairchem.nn.basis import DISTANCE_FUNCTIONS
from escaip_fairchem.nn.heads import ENERGY_REDUCTIONS
from escaip_fairchem.nn.normalization import NORMALIZATIONS

ConfigT = TypeVar("ConfigT")

EXECUTIONS = ("fast", "plain")
ATTENTION_KERNELS = ("auto", "triton", "torch")

# Keys of the original that have no meaning here, each with the reason that a warning gives.
OBSOLETE_KEYS = {
    "batch_size": "any batch size runs",
    "max_num_nodes_per_batch": "any number of atoms runs",
    "use_compile": "the key compile switches compilation on",
    "use_padding": "batches are padded where the key compile or cuda_graphs needs it",
    "use_pbc_single": "every structure always uses its own periodicity",
    "enforce_max_neighbors_strictly": "a neighbourhood never holds more than max_neighbors",
}


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Settings of the backbone.

    Attributes:
        hidden_size: Width H of node and edge states, a multiple of ``atten_num_heads``.
        num_layers: Number of attention blocks L.
        atten_num_heads: Number of attention heads.
        max_radius: Cutoff of a neighbourhood in Å.
        max_neighbors: Largest number of neighbours M; the nearest are kept.
        max_num_elements: Rows of the element embeddings: atomic numbers 0 .. max_num_elements − 1.
        regress_forces: Whether forces are predicted at all.
        direct_force: Whether forces (and stress) come from heads that read edges; else they are derivatives.
        use_pbc: Whether periodicity is used; if not, every structure counts as a molecule.
        otf_graph: Whether neighbours are searched on the fly; else those stored in the data are used.
        activation: Non-linearity.
        normalization: Kind of normalisation.
        distance_function: Radial basis.
        edge_distance_expansion_size: Number of radial basis functions G.
        edge_distance_embedding_size: Width of an embedded distance.
        node_direction_expansion_size: Number of bond-orientational orders, l = 0 .. size − 1.
        node_direction_embedding_size: Width of embedded bond-orientational orders.
        atom_embedding_size: Width of an element embedding.
        use_angle_embedding: Whether attention is biased by the angles between edges.
        atten_name: Implementation of attention in PyTorch.
        energy_reduce: How atomic energies become an energy.
        ffn_hidden_layer_multiplier: Hidden width of the blocks' feed-forward layers, in units of H.
        readout_hidden_layer_multiplier: The same for readouts.
        output_hidden_layer_multiplier: The same for heads.
        mlp_dropout: Dropout in dense layers.
        atten_dropout: Dropout of attention weights.
        stochastic_depth_prob: Chance that a structure skips a residual branch in training.
        execution: ``fast`` computes with less work, ``plain`` as the equations are written; the same to rounding.
        distance_table: Whether the fast path reads what depends on distances alone from tables at inference.
        attention_kernel: What the fast path attends with: ``torch`` is what ``atten_name`` says, ``triton`` is a kernel
            for GPUs, ``auto`` the kernel wherever it can run. The kernel is never used where it cannot compute the
            same: in training on forces that are derivatives. It is tested by Triton's interpreter and becomes the
            default when it has been measured on GPUs.
        compile: Whether the fast path is compiled by torch.compile, once per size of batches (``nn.shapes``). Training
            of a conservative model, which needs second derivatives, runs uncompiled all the same.
        cuda_graphs: Whether inference without gradients replays recorded CUDA graphs, one per size of batches.
    """

    hidden_size: int
    num_layers: int
    atten_num_heads: int
    max_radius: float
    max_neighbors: int
    max_num_elements: int = 90
    regress_forces: bool = True
    direct_force: bool = True
    use_pbc: bool = True
    otf_graph: bool = True
    activation: str = "gelu"
    normalization: str = "rmsnorm"
    distance_function: str = "gaussian"
    edge_distance_expansion_size: int = 600
    edge_distance_embedding_size: int = 512
    node_direction_expansion_size: int = 10
    node_direction_embedding_size: int = 64
    atom_embedding_size: int = 128
    use_angle_embedding: bool = True
    atten_name: str = "math"
    energy_reduce: str = "mean"
    ffn_hidden_layer_multiplier: int = 2
    readout_hidden_layer_multiplier: int = 2
    output_hidden_layer_multiplier: int = 2
    mlp_dropout: float = 0.0
    atten_dropout: float = 0.0
    stochastic_depth_prob: float = 0.0
    execution: str = "fast"
    distance_table: bool = True
    attention_kernel: str = "torch"
    compile: bool = False
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        check_choices(
            self,
            activation=ACTIVATIONS,
            normalization=NORMALIZATIONS,
            distance_function=DISTANCE_FUNCTIONS,
            atten_name=ATTENTION_FUNCTIONS,
            energy_reduce=ENERGY_REDUCTIONS,
            execution=EXECUTIONS,
            attention_kernel=ATTENTION_KERNELS,
        )
        for name in ("compile", "cuda_graphs"):
            if getattr(self, name) and self.execution != "fast":
                raise ConfigError(f"{name}: true needs execution: fast, got {self.execution!r}")
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: must be positive, got {getattr(self, name)!r}")
        if not math.isfinite(self.max_radius):
            raise ConfigError(f"max_radius: must be a finite length in Å, got {self.max_radius!r}")
        if self.edge_distance_expansion_size < 2:
            raise ConfigError(
                f"edge_distance_expansion_size: must be at least 2, got {self.edge_distance_expansion_size!r}"
            )
        for name in ("mlp_dropout", "atten_dropout", "stochastic_depth_prob"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name}: must be in [0, 1), got {getattr(self, name)!r}")
        if self.hidden_size % self.atten_num_heads:
            raise ConfigError(
                f"hidden_size: {self.hidden_size} is not a multiple of atten_num_heads: {self.atten_num_heads}"
            )
        if not 1 <= self.node_direction_expansion_size <= 12:
            raise ConfigError(
                "node_direction_expansion_size: must be between 1 and 12 (l = 0 .. 11), "
                f"got {self.node_direction_expansion_size}"
            )
        if self.is_conservative and ATTENTION_FUNCTIONS[self.atten_name] is not plain_attention:
            raise ConfigError(
                f"atten_name: {self.atten_name!r} has no second derivative, which training on conservative forces "
                "needs; use 'math', or direct_force: true"
            )

    @property
    def is_conservative(self) -> bool:
        """Whether forces are derivatives of the energy."""
        return self.regress_forces and not self.direct_force


_POSITIVE = (
    "hidden_size", "num_layers", "atten_num_heads", "max_radius", "max_neighbors", "max_num_elements",
    "edge_distance_embedding_size", "node_direction_embedding_size", "atom_embedding_size",
    "ffn_hidden_layer_multiplier", "readout_hidden_layer_multiplier", "output_hidden_layer_multiplier",
)  # fmt: skip


def check_choices(config: object, **choices: typing.Iterable[str]) -> None:
    """Check that string settings are among their allowed values.

    Raises:
        ConfigError: Names the key, the value and the nearest allowed one.
    """
    for key, allowed in choices.items():
        value = getattr(config, key)
        if value not in allowed:
            raise ConfigError(f"{key}: {value!r} is unknown{nearest(str(value), allowed)}")


def parse_config(cls: type[ConfigT], section: Mapping[str, Any], where: str) -> ConfigT:
    """Build settings from a section of a YAML file.

    Args:
        cls: A frozen dataclass of settings.
        section: Keys and values as the file has them.
        where: What to call the section in messages, e.g. ``model.backbone``.

    Raises:
        ConfigError: A key is unknown (the nearest known one is named), missing, or of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in section.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, known)}")
        values[key] = _coerce(value, hints[key], f"{where}.{key}")
    missing = [name for name, field in known.items() if field.default is MISSING and name not in values]
    if missing:
        raise ConfigError(f"{where}: missing {', '.join(missing)}")
    return cls(**values)


def drop_obsolete_keys(section: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Leave out the original's keys that have no meaning here, with one warning each."""
    kept = {}
    for key, value in section.items():
        if key in OBSOLETE_KEYS:
            warnings.warn(f"{where}.{key}: ignored, {OBSOLETE_KEYS[key]}", stacklevel=2)
        else:
            kept[key] = value
    return kept


def with_differentiable_attention(section: Mapping[str, Any]) -> dict[str, Any]:
    """Let a conservative model attend in the plain way, with a warning where its section names a fused one.

    The fused implementations compute the same, but have no second derivative; the original's sections name them for
    conservative models too.
    """
    regress = section.get("regress_forces", BackboneConfig.regress_forces)
    is_conservative = regress and not section.get("direct_force", BackboneConfig.direct_force)
    name = section.get("atten_name", BackboneConfig.atten_name)
    if not is_conservative or name not in ATTENTION_FUNCTIONS or ATTENTION_FUNCTIONS[name] is plain_attention:
        return dict(section)
    warnings.warn(f"atten_name: {name!r} has no second derivative; a conservative model uses 'math'", stacklevel=2)
    return {**section, "atten_name": "math"}


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Accept a value of the hinted type; whole numbers also as floats, as YAML writes them."""
    accepted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in accepted and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    is_bool_as_number = isinstance(value, bool) and bool not in accepted
    if is_bool_as_number or not isinstance(value, accepted):
        names = " or ".join(part.__name__ for part in accepted)
        raise ConfigError(f"{where}: expected {names}, got {value!r}")
    return value
