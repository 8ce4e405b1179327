"""Complete and check the parts of a configuration that the trainer reads: defaults instead of KeyErrors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from escaip_fairchem.errors import ConfigError, DataError, nearest

LEVELS = ("system", "atom")
KNOWN_LEVELS = {"energy": "system", "forces": "atom", "stress": "system"}
OPTIM_DEFAULTS = {"batch_size": 1, "num_workers": 0}
"""What is used where ``optim`` does not say."""
_POSITIVE = ("lr_initial", "max_epochs")
_WHOLE = ("batch_size", "eval_batch_size", "num_workers", "eval_every", "checkpoint_every")
_NUMBERS = ("lr_initial", "max_epochs", "clip_grad_norm", "ema_decay", "weight_decay", *_WHOLE)


def complete_settings(config: dict[str, Any], *, inference_only: bool) -> None:
    """Fill in what a configuration leaves out, and refuse what cannot work.

    Args:
        config: The trainer's own copy of the configuration; it is changed.
        inference_only: Whether only a model is wanted, so that nothing about training needs to be there.

    Raises:
        ConfigError: A value is missing, of the wrong kind, or unknown.
    """
    for section in ("task", "optim", "outputs", "evaluation_metrics"):
        config[section] = config.get(section) or {}
    for key, value in OPTIM_DEFAULTS.items():
        config["optim"].setdefault(key, value)
    for name, settings in config["outputs"].items():
        config["outputs"][name] = _complete_output(name, settings or {})
    check_prediction_types(config)
    if not inference_only:
        if not config["outputs"]:
            raise ConfigError("outputs: missing; for energies and forces write `outputs: {energy: {}, forces: {}}`")
        _check_optim(config["optim"], trains=bool(config.get("loss_functions")))


def _complete_output(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    level = settings.setdefault("level", KNOWN_LEVELS.get(name))
    if level is None:
        raise ConfigError(f"outputs.{name}.level: missing; write `system` (one value per structure) or `atom`")
    if level not in LEVELS:
        raise ConfigError(f"outputs.{name}.level: unknown value {level!r}{nearest(str(level), LEVELS)}")
    if level == "atom":
        for key in ("train_on_free_atoms", "eval_on_free_atoms"):
            settings.setdefault(key, True)
    for part, values in settings.get("decomposition", {}).items():
        if "irrep_dim" not in values:
            raise ConfigError(f"outputs.{name}.decomposition.{part}.irrep_dim: missing; write its degree l")
    return settings


def check_prediction_types(config: Mapping[str, Any]) -> None:
    """Refuse a ``prediction_dtype`` that numpy files cannot hold."""
    known = ("float16", "float32", "float64")
    places = {"task": config["task"], **{f"outputs.{name}": values for name, values in config["outputs"].items()}}
    for place, settings in places.items():
        value = settings.get("prediction_dtype", "float32")
        if value not in known:
            raise ConfigError(f"{place}.prediction_dtype: unknown value {value!r}{nearest(str(value), known)}")


def _check_optim(optim: Mapping[str, Any], *, trains: bool) -> None:
    if not trains:
        raise ConfigError("loss_functions: missing; say what to train on, e.g. `- energy: {fn: mae, coefficient: 1}`")
    for key in _POSITIVE:
        if key not in optim:
            raise ConfigError(f"optim.{key}: missing")
    for key in _NUMBERS:
        _check_number(key, optim.get(key))
    if not 0.0 <= (optim.get("ema_decay") or 0.0) <= 1.0:
        raise ConfigError(f"optim.ema_decay: {optim['ema_decay']} is outside 0 … 1")
    for key in ("batch_size", "eval_batch_size", "eval_every"):
        if optim.get(key) is not None and optim[key] < 1:
            raise ConfigError(f"optim.{key}: {optim[key]} is below 1")
    every = optim.get("checkpoint_every")
    if every is not None and every != -1 and every < 1:
        raise ConfigError(f"optim.checkpoint_every: {every} is neither a number of steps nor -1 (every epoch)")


def _check_number(key: str, value: Any) -> None:
    if value is None:
        return
    kinds = int if key in _WHOLE else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        hint = ""
        if isinstance(value, str):
            hint = "; YAML reads 1e-4 as text, write 1.0e-4"
        kind = "a whole number" if key in _WHOLE else "a number"
        raise ConfigError(f"optim.{key}: {value!r} is not {kind}{hint}")


def check_sources(config: Mapping[str, Any]) -> None:
    """Refuse data sets that do not exist, before fairchem stumbles over them.

    Raises:
        DataError: A file or folder is missing.
    """
    splits = {"train": "dataset", "val": "val_dataset", "test": "test_dataset", "relax": "relax_dataset"}
    for split, key in splits.items():
        source = (config.get(key) or {}).get("src") or []
        for path in [source] if isinstance(source, str) else source:
            is_plain = not any(character in str(path) for character in "*?[:")
            if is_plain and not Path(path).exists():
                raise DataError(
                    f"dataset.{split}.src: {path} does not exist (looked from {Path.cwd()}). Make a data set with "
                    "`escaip data demo` or `escaip data convert`, or set the right path."
                )
