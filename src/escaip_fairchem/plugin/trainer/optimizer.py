"""Optimizer, and which parameters it decays."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from escaip_fairchem.errors import ConfigError, nearest
from escaip_fairchem.nn.initialization import parameters_without_decay


@dataclass(frozen=True, kw_only=True)
class DecayGroups:
    """Names of the trained parameters, by whether weight decay applies to them."""

    decayed: tuple[str, ...]
    exempt: tuple[str, ...]


def decay_groups(model: nn.Module) -> DecayGroups:
    """Exempt norms, embeddings and biases from weight decay.

    Exempt is what `parameters_without_decay` finds in any model, and every parameter that a module names in
    ``no_weight_decay()``, where names count from the module that says them. Names are compared whole: a ``weight`` in
    one place does not exempt another.

    Args:
        model: The model, not wrapped for distributed training.
    """
    named = dict(model.named_parameters())
    declared = _declared_names(model)
    for name in sorted(declared - named.keys()):
        logging.warning(
            f"no_weight_decay() names {name!r}, which is not a parameter of the model{nearest(name, named)}"
        )
    exempt = declared | set(parameters_without_decay(model))
    trained = [name for name, parameter in named.items() if parameter.requires_grad]
    return DecayGroups(
        decayed=tuple(name for name in trained if name not in exempt),
        exempt=tuple(name for name in trained if name in exempt),
    )


def _declared_names(model: nn.Module) -> set[str]:
    """Full names of what the model and its parts exempt."""
    names: set[str] = set()
    for path, module in model.named_modules():
        declare = getattr(module, "no_weight_decay", None)
        if callable(declare):
            own: Iterable[str] = declare()
            names.update(f"{path}.{name}" if path else name for name in own)
    return names


def build_optimizer(model: nn.Module, optim: Mapping[str, Any]) -> Optimizer:
    """Build the optimizer that ``optim`` describes.

    The groups have fairchem's order (exempt, decayed), so that either trainer reads the other's checkpoints where the
    groups agree; without weight decay there is one group, as in fairchem.

    Args:
        model: The model, not wrapped.
        optim: ``optimizer`` (default AdamW), ``lr_initial``, ``optimizer_params``, and fairchem's older
            ``weight_decay``.

    Raises:
        ConfigError: An unknown optimizer, or parameters that it does not take.
    """
    name = optim.get("optimizer", "AdamW")
    kind = getattr(torch.optim, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        known = [key for key, value in vars(torch.optim).items() if isinstance(value, type) and key != "Optimizer"]
        raise ConfigError(f"optim.optimizer: torch has no optimizer {name!r}{nearest(str(name), known)}")
    settings = dict(optim.get("optimizer_params") or {})
    decay = optim.get("weight_decay", settings.get("weight_decay", 0))
    if decay:
        settings["weight_decay"] = decay
    try:
        build: Any = kind
        optimizer: Optimizer = build(_parameters(model, decay), lr=optim["lr_initial"], **settings)
    except TypeError as error:
        raise ConfigError(f"optim.optimizer_params: {error}") from error
    return optimizer


def _parameters(model: nn.Module, decay: float) -> list[Any]:
    if not decay:
        return list(model.parameters())
    groups = decay_groups(model)
    parameters = dict(model.named_parameters())
    logging.info(f"No weight decay on {len(groups.exempt)} of {len(groups.exempt) + len(groups.decayed)} parameters")
    return [
        {"params": [parameters[name] for name in groups.exempt], "weight_decay": 0.0},
        {"params": [parameters[name] for name in groups.decayed], "weight_decay": decay},
    ]
