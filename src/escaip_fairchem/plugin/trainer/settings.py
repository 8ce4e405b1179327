"""Complete and check the parts of a configuration that the trainer reads: defaults instead of KeyErrors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from escaip_fairchem.errors import ConfigError, nearest
from escaip_fairchem.plugin.sources import check_source

_HOW_TO_WRITE = "; YAML reads 1e-4 as text, write 1.0e-4"
LEVELS = ("system", "atom")
KNOWN_LEVELS = {"energy": "system", "forces": "atom", "stress": "system"}
OPTIM_DEFAULTS = {"batch_size": 1, "num_workers": 0}
"""What is used where ``optim`` does not say."""
_NEEDED = ("lr_initial", "max_epochs")
_FROM_ONE = ("max_epochs", "batch_size", "eval_batch_size", "eval_every", "keep_checkpoints")
_WHOLE = (*_FROM_ONE, "num_workers", "checkpoint_every")
_SMALLEST = {
    **dict.fromkeys(_FROM_ONE, 1),
    **dict.fromkeys(("lr_initial", "num_workers", "clip_grad_norm", "ema_decay", "weight_decay"), 0),
}


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
        _check_losses(config.get("loss_functions"))
        _check_optim(config["optim"])


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


def _check_losses(entries: Any) -> None:
    """Refuse losses whose form cannot be read; what they name is checked where it is known."""
    if not entries:
        raise ConfigError("loss_functions: missing; say what to train on, e.g. `- energy: {fn: mae, coefficient: 1}`")
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, Mapping):
            raise ConfigError(f"loss_functions: {entry!r} is no `output: {{fn: mae, coefficient: 1}}`")
        for target, settings in entry.items():
            place = f"loss_functions.{target}"
            if not isinstance(settings, Mapping):
                raise ConfigError(f"{place}: {settings!r} is no loss; write {{fn: mae, coefficient: 1}}")
            _check_number(f"{place}.coefficient", settings.get("coefficient", 1), smallest=0)


def _check_optim(optim: Mapping[str, Any]) -> None:
    for key in _NEEDED:
        if optim.get(key) is None:
            raise ConfigError(f"optim.{key}: missing")
    for key in {*_WHOLE, *_SMALLEST}:
        if optim.get(key) is not None:
            _check_number(f"optim.{key}", optim[key], smallest=_SMALLEST.get(key), whole=key in _WHOLE)
    if (optim.get("ema_decay") or 0.0) > 1.0:
        raise ConfigError(f"optim.ema_decay: {optim['ema_decay']} is outside 0 … 1")
    every = optim.get("checkpoint_every")
    if every is not None and every != -1 and every < 1:
        raise ConfigError(f"optim.checkpoint_every: {every} is neither a number of steps nor -1 (every epoch)")
    _refuse_numbers_as_text("optim", optim)


def _check_number(place: str, value: Any, *, smallest: float | None = None, whole: bool = False) -> None:
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        hint = _HOW_TO_WRITE if isinstance(value, str) else ""
        raise ConfigError(f"{place}: {value!r} is not {'a whole number' if whole else 'a number'}{hint}")
    if smallest is not None and value < smallest:
        raise ConfigError(f"{place}: {value} is below {smallest}")


def _refuse_numbers_as_text(place: str, value: Any) -> None:
    """Refuse, at any depth, texts that were meant as numbers: whoever computes with them fails later."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_numbers_as_text(f"{place}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _refuse_numbers_as_text(f"{place}.{index}", item)
    elif isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return  # a name
        raise ConfigError(f"{place}: {value!r} is not a number{_HOW_TO_WRITE}")


def check_sources(config: Mapping[str, Any]) -> None:
    """Refuse data sets that do not exist, before fairchem stumbles over them.

    Raises:
        DataError: A file or folder is missing.
    """
    splits = {"train": "dataset", "val": "val_dataset", "test": "test_dataset", "relax": "relax_dataset"}
    train = config.get("dataset") or {}
    for split, key in splits.items():
        settings = config.get(key) or {}
        kind = settings.get("format") or train.get("format") or "lmdb"
        check_source(f"dataset.{split}.src", settings.get("src"), kind)
