"""A trainer that only predicts, from a checkpoint alone or with another configuration."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairchem.core.common.utils import setup_imports, update_config

from escaip_fairchem.errors import CheckpointError, ConfigError
from escaip_fairchem.plugin.calculator import global_state_untouched
from escaip_fairchem.plugin.checkpoints import read_checkpoint
from escaip_fairchem.plugin.info import read_config
from escaip_fairchem.plugin.trainer import EScAIPForcesTrainer

_OTHER_SPLITS = ("val", "test", "relax")


@dataclass(frozen=True, kw_only=True)
class Inference:
    """A trained model, ready to predict.

    Attributes:
        trainer: Holds the model with its averaged weights if there are any, its normalisers and references.
        dataset: Keys of data sets: those of training, overridden by those of validation.
        checkpoint: Where it comes from, for messages.
    """

    trainer: EScAIPForcesTrainer
    dataset: dict[str, Any]
    checkpoint: Path

    @property
    def outputs(self) -> dict[str, Any]:
        """Settings of what the model predicts, by name."""
        outputs: dict[str, Any] = self.trainer.config["outputs"]
        return outputs

    def require_outputs(self, *names: str) -> None:
        """Stop where the model predicts too little.

        Raises:
            ConfigError: Names the outputs that are missing.
        """
        missing = [name for name in names if name not in self.outputs]
        if missing:
            raise ConfigError(
                f"{self.checkpoint}: outputs: the model does not predict {' and '.join(missing)} "
                f"(it predicts {', '.join(self.outputs) or 'nothing'}); use a checkpoint that was trained on them"
            )


def open_checkpoint(path: Path, *, config: Path | None = None, cpu: bool = False, trusted: bool = False) -> Inference:
    """Build a model with the weights of a checkpoint, in the precision that it was trained in.

    Args:
        path: File written by training, by fairchem's trainers or by ``escaip import-checkpoint``.
        config: A configuration to use in place of the checkpoint's own.
        cpu: Whether to run on the CPU although there is a GPU.
        trusted: Whether the checkpoint may hold other objects than tensors and plain values.

    Raises:
        CheckpointError: The file cannot be read, holds no configuration, or does not fit the model.
        ConfigError: The configuration cannot be used.
    """
    checkpoint = read_checkpoint(path, trusted=trusted, how_to_trust="add --trust")
    settings = _settings_of(checkpoint, path) if config is None else read_config(config)
    train, validation = data_sections(settings)
    with global_state_untouched():  # fairchem logs the whole configuration while it starts
        setup_imports()  # registers fairchem's own models
        settings = update_config({**settings, "dataset": train})
        trainer = EScAIPForcesTrainer(
            task=settings.get("task") or {},
            model=settings["model"],
            outputs=settings.get("outputs") or {},
            dataset=[settings["dataset"]],
            optimizer=settings.get("optim") or {},
            loss_functions=settings.get("loss_functions") or [],
            evaluation_metrics={},  # what is measured is not the training's to decide
            identifier="",
            local_rank=0,
            logger=None,
            amp=bool(settings.get("amp", False)),
            cpu=cpu,
            inference_only=True,
        )
        trainer.load_checkpoint(str(path), checkpoint, inference_only=True)
    keeps = validation.get("use_train_settings", True)
    return Inference(trainer=trainer, dataset={**(settings["dataset"] if keeps else {}), **validation}, checkpoint=path)


def _settings_of(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The configuration that a checkpoint holds, in the form of today."""
    found = checkpoint.get("config")
    if not isinstance(found, Mapping) or not (found.get("model") or found.get("model_attributes")):
        raise CheckpointError(
            f"{path}: holds no configuration with a model section; give the one that it was trained with: --config FILE"
        )
    settings = copy.deepcopy(dict(found))
    if "model_attributes" in settings:  # fairchem before 2.0
        settings["model"] = {**settings.pop("model_attributes"), "name": settings["model"]}
    return settings


def data_sections(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys of the training and of the validation set, however a configuration holds them.

    Args:
        settings: A configuration file's, or those that a checkpoint holds.

    Raises:
        ConfigError: The section ``dataset`` has another form.
    """
    section = settings.get("dataset") or {}
    if isinstance(section, list):
        train, validation = ([*section, {}, {}])[:2]
        return dict(train or {}), dict(validation or {})
    if not isinstance(section, Mapping):
        raise ConfigError(f"dataset: {section!r} is neither a section with keys nor a list of such")
    if "train" in section or any(isinstance(section.get(split), Mapping) for split in _OTHER_SPLITS):
        return dict(section.get("train") or {}), dict(section.get("val") or {})
    return dict(section), dict(settings.get("val_dataset") or {})
