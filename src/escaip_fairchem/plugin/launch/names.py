"""Names of classes in a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports

from escaip_fairchem.errors import ConfigError, nearest


def check_names(config: Mapping[str, Any]) -> None:
    """Refuse names that neither fairchem's registry nor an import resolves.

    Args:
        config: The configuration.

    Raises:
        ConfigError: There is no such trainer, model, part of a hydra model, logger or data format.
    """
    setup_imports(config)  # what fairchem does before it looks names up
    for key, kind, name in _names(config):
        _check_name(key, kind, name)


def _names(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    logger = config["logger"]
    yield "logger", "logger", logger.get("name") if isinstance(logger, Mapping) else logger
    yield "trainer", "trainer", config.get("trainer", "ocp")
    model = config["model"]
    if "name" not in model:
        raise ConfigError("model.name: missing; for this package's model write escaip_fairchem.EScAIP")
    yield "model.name", "model", model["name"]
    if model["name"] == "hydra":
        if (model.get("backbone") or {}).get("model"):
            yield "model.backbone.model", "model", model["backbone"]["model"]
        for name, head in (model.get("heads") or {}).items():
            yield f"model.heads.{name}.module", "model", head.get("module")
    for split, settings in config["dataset"].items() if isinstance(config["dataset"], Mapping) else ():
        if isinstance(settings, Mapping) and "format" in settings:
            yield f"dataset.{split}.format", "dataset", settings["format"]


def _check_name(key: str, kind: str, name: Any) -> None:
    known = set(registry.mapping[f"{kind}_name_mapping"])
    if kind == "logger":
        known.add("wandb_singleton")
    if name in known:
        return
    if "." not in str(name):
        raise ConfigError(f"{key}: there is no {kind} {name!r}{nearest(str(name), known)}")
    try:
        registry.get_class(name, f"{kind}_name_mapping")
    except RuntimeError as error:
        reason = error.__cause__.__cause__ or error.__cause__ if error.__cause__ is not None else error
        raise ConfigError(f"{key}: {name!r} cannot be imported ({reason})") from error
