"""What ``escaip info`` tells about a configuration, without building a run."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import load_config, setup_imports
from torch import nn

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn.costs import Costs, count_costs
from escaip_fairchem.plugin.models import EScAIP, EScAIPBackbone


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A configuration's model.

    Attributes:
        config: The configuration with its includes resolved.
        parameters: Number of parameters by part.
        costs: Costs per atom of the backbone; None for models of others.
    """

    config: dict[str, Any]
    parameters: dict[str, int]
    costs: Costs | None

    @property
    def total(self) -> int:
        """Number of parameters."""
        return sum(self.parameters.values())


def resolve_includes(path: Path) -> dict[str, Any]:
    """Read a YAML file with its ``includes``, whether it is a configuration or a part of one.

    Raises:
        ConfigError: The file is missing or unreadable, or its includes contradict each other.
    """
    try:
        config, _, conflicts = load_config(str(path))
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: cannot be read as a configuration: {error}") from error
    if conflicts:
        raise ConfigError(f"{path}: included files contradict each other in {conflicts}")
    return dict(config)


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration with its ``includes``.

    Raises:
        ConfigError: The file is missing or unreadable, its includes contradict each other, or it describes no model.
    """
    config = resolve_includes(path)
    if "name" not in (config.get("model") or {}):
        raise ConfigError(f"{path}: has no section 'model:' with a 'name:'")
    return config


def is_complete(config: Mapping[str, Any]) -> bool:
    """Whether the content of a file describes a training by itself; other files are parts of such."""
    has_data = "src" in ((config.get("dataset") or {}).get("train") or {})
    return has_data and "name" in (config.get("model") or {}) and "max_epochs" in (config.get("optim") or {})


def inspect_config(path: Path) -> ModelInfo:
    """Build a configuration's model without data, and count.

    Raises:
        ConfigError: The configuration or its model section cannot be used.
    """
    config = read_config(path)
    model = build_model(config["model"], path)
    backbone = getattr(model, "backbone", None)
    costs = count_costs(backbone.network.to("meta"), backbone.config) if isinstance(backbone, EScAIPBackbone) else None
    return ModelInfo(config=config, parameters=parameters_by_part(model), costs=costs)


def build_model(section: Mapping[str, Any], path: Path) -> nn.Module:
    """Build the model of a ``model:`` section: this package's without memory for its parameters, others as they are.

    Raises:
        ConfigError: No model has that name, or its settings cannot be used. The message names the file.
    """
    settings = copy.deepcopy(dict(section))
    name = str(settings.pop("name"))
    setup_imports()  # registers fairchem's own models
    try:
        model_class = registry.get_model_class(name)
    except RuntimeError as error:
        raise ConfigError(f"{path}: model.name: {error}") from error
    device = "meta" if issubclass(model_class, EScAIP) else "cpu"
    try:
        with torch.device(device), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: nn.Module = model_class(**settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AssertionError, RuntimeError) as error:  # how others refuse settings
        raise ConfigError(
            f"{path}: no {name} can be made of its section 'model:' ({error!r}); a key is missing, unknown or out of "
            "range, or the file is only a part of others"
        ) from error
    return model


class ModelSizes:
    """Numbers of parameters; many configurations share a model, which is built once."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, section: Mapping[str, Any], path: Path) -> int:
        """Count the parameters of a ``model:`` section's model.

        Args:
            section: The section.
            path: Where it is from, for messages.

        Raises:
            ConfigError: No model can be made of it.
        """
        key = json.dumps(section, sort_keys=True, default=str)
        if key not in self._known:
            self._known[key] = sum(parameters_by_part(build_model(section, path)).values())
        return self._known[key]


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Count parameters by the parts a reader of the paper knows."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = _part(name)
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def _part(name: str) -> str:
    pieces = name.split(".")
    if pieces[0] == "output_heads":
        return f"head {pieces[1]}"
    if pieces[:2] == ["backbone", "network"]:
        names = {"input_block": "input block", "blocks": "attention blocks", "readouts": "readouts"}
        return names.get(pieces[2], "output projection")
    return pieces[0]
