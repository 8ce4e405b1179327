"""What a checkpoint holds: fairchem's keys, and one more for exact continuation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from escaip_fairchem.plugin.checkpoints import as_plain

if TYPE_CHECKING:
    from escaip_fairchem.plugin.trainer.trainer import EScAIPForcesTrainer

RESUME_KEY = "escaip_training"
"""Key of ours in a checkpoint; fairchem ignores it."""


def weights_state(trainer: EScAIPForcesTrainer, metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    """The model as it stands, how to build it, and how to turn its results into physical units."""
    return {
        "state_dict": trainer.model.state_dict(),
        "normalizers": {key: module.state_dict() for key, module in trainer.normalizers.items()},
        "elementrefs": {key: module.state_dict() for key, module in trainer.elementrefs.items()},
        "config": as_plain(trainer.config),
        "val_metrics": as_plain(metrics),
        "amp": trainer.scaler.state_dict() if trainer.scaler else None,
    }


def training_state(trainer: EScAIPForcesTrainer) -> dict[str, Any]:
    """Everything else that the next step depends on."""
    schedule = getattr(trainer.scheduler, "scheduler", None)
    ema = trainer.ema or trainer.hidden_ema
    return {
        "epoch": trainer.epoch,
        "step": trainer.step,
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": None if schedule is None else as_plain(schedule.state_dict()),
        # The training weights are in state_dict; fairchem would keep a second copy of them here.
        "ema": {**ema.state_dict(), "collected_params": []} if ema else None,
        "best_val_metric": as_plain(trainer.best_val_metric),
        "primary_metric": trainer.primary_metric,
        RESUME_KEY: {
            "format": 1,
            "evaluated_step": trainer.evaluated_step or 0,
            "ranks": trainer.resume_states(),
            "structures": trainer.training_structures,
        },
    }
