"""The models that are measured, by name, and the ways to run each."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from escaip_fairchem.bench.frames import FrameBatch
from escaip_fairchem.bench.machine import float32_products
from escaip_fairchem.errors import ConfigError, MissingDependencyError, nearest
from escaip_fairchem.nn import BackboneConfig
from escaip_fairchem.testing.predictors import TINY, Predictor

_PAPER: dict[str, Any] = {"max_radius": 12.0, "max_neighbors": 20, "mlp_dropout": 0.1, "atten_dropout": 0.1}

ESCAIP: dict[str, dict[str, Any]] = {
    "escaip-tiny": dict(TINY),
    "escaip-demo": {
        "hidden_size": 64, "num_layers": 2, "atten_num_heads": 4, "max_radius": 6.0, "max_neighbors": 16,
        "edge_distance_expansion_size": 64, "edge_distance_embedding_size": 64, "node_direction_expansion_size": 6,
        "node_direction_embedding_size": 32, "atom_embedding_size": 32,
    },
    "escaip-small": {"hidden_size": 512, "num_layers": 10, "atten_num_heads": 8, **_PAPER},
    "escaip-medium": {"hidden_size": 768, "num_layers": 8, "atten_num_heads": 12, **_PAPER},
    "escaip-large": {"hidden_size": 1024, "num_layers": 10, "atten_num_heads": 16, **_PAPER},
}  # fmt: skip
"""Backbone settings of this package's models: the paper's three sizes for OC20 with direct forces, the
demonstration's, and one that runs in milliseconds."""

PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to run a model.

    Attributes:
        settings: Backbone settings that choose the path; of this package's models only.
        precision: ``fp32``, ``tf32`` (float32 with the matrix units of a GPU) or ``bf16`` (autocast).
        frozen: Whether parameters are told that nobody wants their gradients, in inference.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    frozen: bool = False


VARIANTS: dict[str, Variant] = {
    "plain": Variant(settings={"execution": "plain", "distance_table": False}),
    "fast": Variant(),
    "fast-no-table": Variant(settings={"execution": "fast", "distance_table": False}),
    "tf32": Variant(precision="tf32"),
    "bf16": Variant(precision="bf16"),
    "triton": Variant(settings={"attention_kernel": "triton"}),
    "bf16-triton": Variant(settings={"attention_kernel": "triton"}, precision="bf16"),
    "compiled": Variant(settings={"compile": True}),
    "bf16-compiled": Variant(settings={"compile": True}, precision="bf16"),
    "plain-tf32": Variant(settings={"execution": "plain", "distance_table": False}, precision="tf32"),
    "plain-bf16": Variant(settings={"execution": "plain", "distance_table": False}, precision="bf16"),
}
"""``fast`` is what a user gets without asking; ``plain`` is the reference path that everything is compared with."""

BASELINE_VARIANTS: dict[str, Variant] = {
    "published": Variant(), "tf32": Variant(precision="tf32"), "bf16": Variant(precision="bf16"),
    "frozen": Variant(frozen=True), "frozen-tf32": Variant(frozen=True, precision="tf32"),
}  # fmt: skip
"""fairchem's EquiformerV2 and eSCN switch gradients on while they predict, whoever calls them, and keep what a backward
pass would need, unless their parameters are frozen."""

BASELINES = ("equiformer-v2-83m", "equiformer-v2-31m", "escn-l6", "gemnet-oc", "painn", "schnet")
"""fairchem's models, built by ``plugin.baselines``."""

SECOND_FAIRCHEM = "fairchem2-escaip"
"""EScAIP as fairchem v2 has it, measured by an interpreter of another environment."""


class NotAvailableError(MissingDependencyError):
    """A model or a way to run it does not exist here; the message is the reason that tables give."""


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """A model and the way to run it, written ``model`` or ``model:variant``.

    Attributes:
        model: Name of the model.
        variant: Name of the variant.
    """

    model: str
    variant: str

    def __str__(self) -> str:
        return f"{self.model}:{self.variant}"

    @property
    def precision(self) -> str:
        """Precision of the matrix products."""
        variants = VARIANTS if self.model in ESCAIP else BASELINE_VARIANTS
        return variants[self.variant].precision if self.variant in variants else "fp32"


def parse_name(text: str) -> ModelName:
    """Read ``model`` or ``model:variant``.

    Raises:
        ConfigError: There is no such model or variant.
    """
    model, _, variant = text.strip().partition(":")
    if model == SECOND_FAIRCHEM:
        return ModelName(model=model, variant=variant or "published")
    known = (*ESCAIP, *BASELINES, SECOND_FAIRCHEM)
    if model not in known:
        raise ConfigError(f"--models {text}: unknown model {model!r}{nearest(model, known)}")
    variants = VARIANTS if model in ESCAIP else BASELINE_VARIANTS
    variant = variant or ("fast" if model in ESCAIP else "published")
    if variant not in variants:
        raise ConfigError(f"--models {text}: unknown variant {variant!r}{nearest(variant, variants)}")
    return ModelName(model=model, variant=variant)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model that is ready to be measured.

    Attributes:
        module: Its parameters.
        prepare: From a batch on the device to the model's own input; not timed.
        predict: From that input to ``energy`` and ``forces``.
        device: Where it runs.
        precision: See :class:`Variant`.
        is_compiled: Whether it is compiled anew for every size of batches.
    """

    module: nn.Module
    prepare: Callable[[FrameBatch], Any]
    predict: Callable[[Any], dict[str, Tensor]]
    device: str
    precision: str = "fp32"
    is_compiled: bool = False

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def weight_bytes(self) -> int:
        """Size of the parameters."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.module.parameters())

    def numerics(self) -> AbstractContextManager[Any]:
        """The scope in which its matrix products have its precision."""
        stack = ExitStack()
        stack.enter_context(float32_products("high" if self.precision == "tf32" else "highest"))
        if self.precision == "bf16":
            stack.enter_context(torch.autocast(self.device, dtype=torch.bfloat16))
        return stack


def backbone_config(name: ModelName) -> BackboneConfig:
    """Settings of one of this package's models.

    Raises:
        NotAvailableError: The variant needs a setting or value that this version does not have.
    """
    known = {field.name for field in fields(BackboneConfig)}
    # What does not exist need not be switched off.
    settings = {
        key: value for key, value in VARIANTS[name.variant].settings.items() if key in known or value is not False
    }
    missing = [key for key in settings if key not in known]
    if missing:
        raise NotAvailableError(f"this version has no setting {', '.join(missing)}")
    try:
        return BackboneConfig(**{**ESCAIP[name.model], **settings})
    except ConfigError as error:
        raise NotAvailableError(str(error)) from error


def build(name: ModelName, *, seed: int, device: str) -> Contender:
    """Build a model with random parameters; the same for the same seed, whatever the variant.

    Raises:
        NotAvailableError: It cannot be built here.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name.model in ESCAIP:
            return _build_escaip(name, device)
        return _build_baseline(name, device)


def _build_escaip(name: ModelName, device: str) -> Contender:
    predictor = Predictor(backbone_config(name), "direct").to(device).eval()
    return Contender(
        module=predictor,
        prepare=lambda batch: batch.systems,
        predict=predictor,
        device=device,
        precision=VARIANTS[name.variant].precision,
        is_compiled=predictor.config.compile,
    )


def _build_baseline(name: ModelName, device: str) -> Contender:
    if name.model == SECOND_FAIRCHEM:
        raise NotAvailableError("needs a second environment, named with --fairchem2")
    baselines = import_baselines()
    variant = BASELINE_VARIANTS[name.variant]
    baseline = baselines.build_baseline(name.model).to(device).eval()
    baseline.requires_grad_(not variant.frozen)
    return Contender(
        module=baseline,
        prepare=lambda batch: baselines.to_fairchem(batch.systems, batch.tags_N),
        predict=lambda data: baselines.predict(baseline, data),
        device=device,
        precision=variant.precision,
    )


def import_baselines() -> Any:
    """Import fairchem's models.

    Raises:
        NotAvailableError: fairchem or something that it needs is not installed.
    """
    try:
        return importlib.import_module("escaip_fairchem.plugin.baselines")
    except ImportError as error:
        raise NotAvailableError(f"fairchem-core cannot be imported: {error}") from error
