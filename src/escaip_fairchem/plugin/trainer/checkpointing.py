"""How the trainer saves and resumes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairchem.core.common import distutils
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from torch import Tensor

from escaip_fairchem.errors import CheckpointError
from escaip_fairchem.plugin.checkpoints import bring_best_checkpoint, read_checkpoint, save_atomically
from escaip_fairchem.plugin.trainer.distributed import from_master, gather_everywhere, on_master
from escaip_fairchem.plugin.trainer.ema import adopt_average, averaged_weights, check_average
from escaip_fairchem.plugin.trainer.finite import require_finite_weights
from escaip_fairchem.plugin.trainer.metrics import higher_is_better
from escaip_fairchem.plugin.trainer.resume import RandomState, deferred_signals, restore_random_state
from escaip_fairchem.plugin.trainer.retention import (
    KEPT_BY_DEFAULT,
    NEWEST,
    continuable,
    keep_another_name,
    prune,
    read_newest,
)
from escaip_fairchem.plugin.trainer.schedule import schedule_name
from escaip_fairchem.plugin.trainer.setup import TrainerSetup
from escaip_fairchem.plugin.trainer.state import RESUME_KEY, training_state, weights_state


class TrainerCheckpointing(TrainerSetup):
    """Checkpoints in fairchem's format, written atomically, from which training continues exactly."""

    def save(
        self,
        metrics: Mapping[str, Any] | None = None,
        checkpoint_file: str = "checkpoint.pt",
        training_state: bool = True,
    ) -> str | None:
        """Write a checkpoint, on the first process.

        May be called at any moment, also by a signal's handler: the state is that after the last complete step. A
        signal that arrives meanwhile is handled afterwards.

        Args:
            metrics: Validation metrics to keep with it.
            checkpoint_file: Name in the run's checkpoint folder.
            training_state: Whether training will continue from it; otherwise it holds the averaged weights alone.

        Returns:
            The path, or None where nothing is written.

        Raises:
            NonFiniteError: Some weight, loss or gradient is not finite.
            CheckpointError: The file cannot be written; or training has yet to refuse the state it was given.
        """
        if self.is_debug or not distutils.is_master():
            return None
        path = Path(self.config["cmd"]["checkpoint_dir"]) / checkpoint_file
        with deferred_signals():
            self._write(path, metrics, training_state=training_state)
        return str(path)

    def _write(self, path: Path, metrics: Mapping[str, Any] | None, *, training_state: bool) -> None:
        self.guard.check(collective=False)
        require_finite_weights(self.model.parameters(), step=self.step)
        with self.swap.training() if training_state else self.swap.averaged(self.ema):
            state = weights_state(self, metrics)
            if training_state:
                self._require_resumable()
                state.update(self._training_state())
            keep = int(self.config["optim"].get("keep_checkpoints") or KEPT_BY_DEFAULT)
            if path.name == NEWEST and keep > 1 and self.saved_step not in (None, self.step):
                keep_another_name(path, f"checkpoint_step_{self.saved_step}.pt")
            save_atomically(state, path)
        if path.name == NEWEST:
            prune(path.parent, keep=keep)
            self.saved_step = self.step
            self.standing.change(saved_step=self.step)

    def _training_state(self) -> dict[str, Any]:
        return training_state(self)

    def resume_states(self) -> list[dict[str, Any]]:
        """State of the generators and of the running means, per process as far as known here."""
        if self._rank_states is not None and self._rank_states[0] == self.step:
            return self._rank_states[1]
        return [self._own_resume_state()]

    def gather_resume_state(self) -> None:
        """Learn the other processes' states before a save. Collective."""
        self._rank_states = (self.step, gather_everywhere(self._own_resume_state()))

    def _own_resume_state(self) -> dict[str, Any]:
        loaded = self._loaded_generators  # not yet in force before the first batch
        generators = self.generators or RandomState.capture(self.device)
        return {"random": loaded or generators.to_plain(), "window": self.window.state()}

    def load_checkpoint(
        self, checkpoint_path: str, checkpoint: dict[str, Any] | None = None, inference_only: bool = False
    ) -> None:
        """Load a checkpoint of this trainer or of fairchem's.

        For inference the model gets the averaged weights, if there are any. A checkpoint without training state (such
        as ``best_checkpoint.pt``) starts a new training from its weights.

        Args:
            checkpoint_path: The file.
            checkpoint: Its contents, if they were read already.
            inference_only: Whether to leave alone everything that only training needs.

        Raises:
            CheckpointError: It cannot be read, or does not fit the model.
        """
        if checkpoint is None:
            checkpoint_path, checkpoint = self._read(checkpoint_path, inference_only=inference_only)
        average = averaged_weights(checkpoint)
        if average is not None:
            check_average(self.model.parameters(), average["shadow_params"], str(checkpoint_path))
            if not inference_only and self.ema is None:
                self.ema = ExponentialMovingAverage(self.model.parameters(), average["decay"])
        self._load_weights(checkpoint_path, checkpoint, inference_only)
        if inference_only:
            if average is not None:
                adopt_average(self.model.parameters(), average["shadow_params"])
                logging.info(f"{checkpoint_path}: the averaged weights (ema) are used")
            return
        if self.ema is None and self.ema_decay:
            logging.info(f"{checkpoint_path}: has no averaged weights (ema), the average starts from its weights")
            self.ema = self._new_average()
        self._load_training_state(checkpoint_path, checkpoint)
        self._loaded_from = str(checkpoint_path)
        if self._is_own(checkpoint_path):
            if Path(checkpoint_path).name == NEWEST:  # otherwise that one is damaged, and not worth keeping
                self.saved_step = self.step
            self.standing.change(saved_step=self.step, step=self.step, epoch=float(self.epoch))

    def _read(self, path: str, *, inference_only: bool) -> tuple[str, dict[str, Any]]:
        """Read a checkpoint, or where it is this run's own and damaged, the newest before it that is not."""
        trusted = bool(self.config["task"].get("trust_checkpoint", False))
        logging.info(f"Loading checkpoint from: {path}")
        if inference_only or not self._is_own(path):
            return path, read_checkpoint(path, trusted=trusted)
        # The first process decides for all: a file may be there for one, and not yet for another.
        read = on_master(lambda: read_newest(Path(path).parent, trusted=trusted))
        found = str(from_master(None if read is None else read[0]))
        return found, read_checkpoint(found, trusted=trusted) if read is None else read[1]

    def _is_own(self, path: str) -> bool:
        """Whether a file is one of those in this run's folder that it can go on from."""
        own = Path(self.config["cmd"]["checkpoint_dir"])
        return Path(path).resolve() in [file.resolve() for file in continuable(own)]

    @property
    def knows_all_states(self) -> bool:
        """Whether the generators of all processes are known for this step, so that one of them can save for all."""
        known = self._rank_states is not None and self._rank_states[0] == self.step
        return known or distutils.get_world_size() == 1

    def bring_best(self) -> None:
        """Have the best weights so far in this run's folder, where it continues a training of another folder."""
        loaded = self._loaded_from
        if loaded is not None and not self.is_debug:
            on_master(lambda: bring_best_checkpoint(loaded, self.config["cmd"]["checkpoint_dir"]))

    def _load_weights(self, path: str, checkpoint: dict[str, Any], inference_only: bool) -> None:
        """Leave model, scales, normalisers, references and averages to fairchem."""
        kept = {key: value for key, value in checkpoint.items() if key not in ("optimizer", "scheduler")}
        try:
            super().load_checkpoint(path, kept, inference_only)
        except RuntimeError as error:
            raise CheckpointError(
                f"{path}: does not fit the model of the configuration. {error}. Use the `model` section that it was "
                "trained with."
            ) from error

    def _load_training_state(self, path: str, checkpoint: dict[str, Any]) -> None:
        if "optimizer" not in checkpoint:
            self.epoch, self.step, self.best_val_metric, self.primary_metric = 0, 0, None, None
            logging.warning(
                f"{path}: holds weights but no optimizer or step, as best_checkpoint.pt does; training would start at "
                "step 0 from these weights (fine-tuning). To continue a run, load its checkpoint.pt"
            )
            return
        # Validation needs neither optimizer nor schedule, so only training refuses.
        try:
            self.optimizer.load_state_dict(checkpoint["optimizer"])
        except (ValueError, KeyError) as error:
            self._resume_problem = f"{path}: its optimizer state does not fit this configuration ({error})"
        self._load_schedule(path, checkpoint)
        same_losses = self._has_same_losses(checkpoint)
        if not same_losses:
            # What was best by other aims may be out of reach, and is no measure of what is wanted now.
            logging.info(
                f"{path}: was trained with other loss_functions; the best checkpoint is chosen anew from here on"
            )
            self.best_val_metric = None
        self._load_exact_state(path, checkpoint.get(RESUME_KEY), same_losses=same_losses)

    def _has_same_losses(self, checkpoint: Mapping[str, Any]) -> bool:
        saved = (checkpoint.get("config") or {}).get("loss_functions")
        return saved is None or saved == self.config["loss_functions"]

    def _load_schedule(self, path: str, checkpoint: Mapping[str, Any]) -> None:
        saved = (checkpoint.get("config") or {}).get("optim")
        new = schedule_name(self.config["optim"])
        old = new if saved is None else schedule_name(saved)
        if old != new:
            self._resume_problem = f"{path}: was saved with optim.scheduler {old}, the configuration has {new}"
            return
        schedule = getattr(self.scheduler, "scheduler", None)
        if schedule is None or checkpoint.get("scheduler") is None:
            return
        try:
            schedule.load_state_dict(checkpoint["scheduler"])
        except (ValueError, KeyError) as error:
            self._resume_problem = f"{path}: its schedule's state does not fit this configuration ({error!r})"
            return
        # fairchem's trainers save before they advance the schedule.
        if RESUME_KEY not in checkpoint and schedule.last_epoch < self.step and self._steps_schedule:
            self.scheduler.step()

    @property
    def _steps_schedule(self) -> bool:
        """Whether the schedule advances at every step."""
        return bool(self.scheduler.scheduler_type != "ReduceLROnPlateau")

    def _load_exact_state(self, path: str, state: Mapping[str, Any] | None, *, same_losses: bool) -> None:
        """Take over the generators of this process, and its running means of losses if these are still the same."""
        if state is None:
            logging.info(f"{path}: has no state of the random number generators, so dropout will differ from here on")
            return
        self.evaluated_step = state["evaluated_step"]
        ranks, rank = state["ranks"], distutils.get_rank()
        if len(ranks) != distutils.get_world_size():
            logging.warning(
                f"{path}: holds the generators of {len(ranks)} processes, there are {distutils.get_world_size()}; "
                "dropout will differ from the uninterrupted run"
            )
            return
        self._rank_states = (self.step, list(ranks))
        self._loaded_generators = ranks[rank]["random"]
        if same_losses:
            self.window.restore(ranks[rank]["window"], self._any_parameter())

    def _any_parameter(self) -> Tensor:
        parameter: Tensor = next(self.model.parameters())
        return parameter

    def restore_generators(self) -> None:
        """Continue the random numbers of the checkpoint, once: just before the first batch after loading."""
        if self._loaded_generators is not None:
            restore_random_state(self._loaded_generators, self.device)
            self._loaded_generators = None
        self.generators = RandomState.capture(self.device)

    def _require_resumable(self) -> None:
        """Refuse to train, or to replace a good checkpoint, after its training state could not be loaded.

        Raises:
            CheckpointError: That is so.
        """
        if self._resume_problem is not None:
            raise CheckpointError(
                f"{self._resume_problem}. Continue with the `optim` section that it was trained with, or start from "
                "its weights alone: load best_checkpoint.pt"
            )

    def update_best(self, primary_metric: str, val_metrics: Mapping[str, Any], disable_eval_tqdm: bool = True) -> None:
        """Keep the weights if they are the best so far, and predict the test set with them if there is one.

        Args:
            primary_metric: What to compare.
            val_metrics: From `validate`.
            disable_eval_tqdm: Whether to hide the progress of the predictions.
        """
        value = val_metrics[primary_metric]["metric"]
        best = self.best_val_metric
        if best is not None and not (value > best if higher_is_better(primary_metric) else value < best):
            return
        on_master(lambda: self.save(metrics=val_metrics, checkpoint_file="best_checkpoint.pt", training_state=False))
        if self.test_loader is not None:
            self.predict(self.test_loader, results_file="predictions", disable_tqdm=disable_eval_tqdm)
        self.best_val_metric = value  # now it is done: if it is interrupted, whoever goes on does it again
