"""``lin_ref``, fairchem's older way to give energies per element, which its LMDB data sets silently ignore."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from escaip_fairchem.errors import ConfigError

_IGNORING = ("lmdb", "single_point_lmdb", "trajectory_lmdb", "oc22_lmdb")


def translate_linear_references(config: dict[str, Any]) -> None:
    """Turn ``lin_ref`` into ``transforms.element_references``, where fairchem's data set would not apply it.

    Args:
        config: The configuration; it is changed.

    Raises:
        ConfigError: There is no output to apply it to, or there are two different references.
    """
    dataset = config["dataset"]
    if not isinstance(dataset, Mapping):
        return
    train = dataset.get("train") or {}
    given = {
        split: settings
        for split, settings in dataset.items()
        if isinstance(settings, dict)
        and settings.get("lin_ref")
        and settings.get("format", train.get("format", "lmdb")) in _IGNORING
    }
    files = {str(settings["lin_ref"]) for settings in given.values()}
    if not files:
        return
    place = f"dataset.{next(iter(given))}.lin_ref"
    transforms = train.get("transforms") or {}
    if len(files) > 1 or "train" not in given or transforms.get("element_references"):
        raise ConfigError(
            f"{place}: this format ignores it, and fairchem takes references from the training split alone; give them "
            "once, as dataset.train.transforms.element_references: {energy: {file: FILE.npz}}"
        )
    if "energy" not in (config.get("outputs") or {}):
        raise ConfigError(f"{place}: holds references of `energy`, which is not among the outputs")
    (file,) = files
    for settings in given.values():
        del settings["lin_ref"]
    train["transforms"] = {**transforms, "element_references": {"energy": {"file": file}}}
    logging.info(f"{place}: this format ignores it; {file} is applied as dataset.train.transforms.element_references")
