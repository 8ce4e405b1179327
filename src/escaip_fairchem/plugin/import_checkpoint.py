"""Whole checkpoints of the original implementation, turned into checkpoints of this package."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from escaip_fairchem.errors import CheckpointError
from escaip_fairchem.plugin.checkpoints import as_plain, read_checkpoint, save_atomically
from escaip_fairchem.plugin.models import EScAIP
from escaip_fairchem.plugin.original import ImportReport, convert_section, is_derived, load_original
from escaip_fairchem.plugin.trainer import EScAIPForcesTrainer

TRAINER = EScAIPForcesTrainer.import_path
# What describes the training run and means the same here. The optimizer's state does not: it is in the order of the
# original's parameters, some of which are not built here.
_KEPT = ("epoch", "step", "normalizers", "elementrefs", "best_val_metric", "primary_metric", "val_metrics")


@dataclass(frozen=True, kw_only=True)
class CheckpointImport:
    """Outcome of an import.

    Attributes:
        report: What became of the parameters.
        has_average: Whether averaged weights (EMA) came along.
        dropped: Sections of the old file that the new one does not have.
    """

    report: ImportReport
    has_average: bool
    dropped: list[str]


def import_checkpoint(source: Path, target: Path, *, trusted: bool = False) -> CheckpointImport:
    """Convert a checkpoint of the original (fairchem v1 format) into one of this package.

    Settings, normalisers, references and averaged weights come along. Training goes on from the weights with a
    fresh optimizer.

    Args:
        source: The original's checkpoint.
        target: The new file; written atomically.
        trusted: Whether ``source`` may hold pickled objects other than tensors and plain values.

    Raises:
        CheckpointError: The file cannot be read, or a parameter has no place or no value; every key is named.
        ConfigError: The model section cannot be used.
    """
    old = read_checkpoint(source, trusted=trusted, how_to_trust="add --trust (or `trusted=True` in Python)")
    section = _model_section(old, source)
    arguments = convert_section(section)
    model = EScAIP(**copy.deepcopy(arguments))
    report = load_original(model, old["state_dict"])
    report.raise_if_incomplete()
    new = {key: as_plain(old[key]) for key in _KEPT if key in old}
    new["state_dict"] = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    new["config"] = _converted_config(old["config"], arguments)
    new["ema"] = _converted_average(old, model, report)
    new.setdefault("normalizers", {})
    new.setdefault("elementrefs", {})
    new["amp"] = None
    save_atomically(new, target)
    dropped = sorted(key for key in old if key not in new)
    return CheckpointImport(report=report, has_average=new["ema"] is not None, dropped=dropped)


def _model_section(checkpoint: Mapping[str, Any], source: Path) -> Mapping[str, Any]:
    """The model section of a checkpoint's configuration, which older files call ``model_attributes``."""
    config = checkpoint.get("config")
    section = None if not isinstance(config, Mapping) else config.get("model_attributes") or config.get("model")
    if not isinstance(section, Mapping):
        raise CheckpointError(f"{source}: has no configuration with a model section; is it a fairchem v1 checkpoint?")
    return section


def _converted_config(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The run's configuration, with this package's model and trainer."""
    converted: dict[str, Any] = as_plain(copy.deepcopy(dict(config)))
    converted.pop("model_attributes", None)
    converted["model"] = {"name": "escaip_fairchem.EScAIP", **as_plain(arguments)}
    converted["trainer"] = TRAINER
    return converted


def _converted_average(old: Mapping[str, Any], model: EScAIP, report: ImportReport) -> dict[str, Any] | None:
    """Averaged weights in the order of the new model's parameters.

    fairchem keeps them as a bare list in the order of the old model's parameters, which is that of its state dict.
    """
    average = old.get("ema")
    if not average or not average.get("shadow_params"):
        return None
    names = [name for name in old["state_dict"] if not is_derived(name)]
    shadows: list[Tensor] = average["shadow_params"]
    if len(names) != len(shadows):
        raise CheckpointError(
            f"ema: holds {len(shadows)} averaged tensors for {len(names)} parameters; the order cannot be told"
        )
    by_name = dict(zip(names, shadows, strict=True))
    for name, shadow in by_name.items():
        if old["state_dict"][name].shape != shadow.shape:
            raise CheckpointError(f"ema: {name} has shape {tuple(shadow.shape)} there, another in state_dict")
    ordered = [by_name[report.placed[name]] for name, _ in model.named_parameters()]
    return {
        "decay": average["decay"],
        "num_updates": average.get("num_updates"),
        "shadow_params": [tensor.detach().clone().to(torch.float32) for tensor in ordered],
        "collected_params": [],
    }
