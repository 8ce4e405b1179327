"""The training loop: steps, reports, checkpoints, evaluations."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common import distutils
from torch import Tensor

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.plugin.prepared import to_device
from escaip_fairchem.plugin.samples import SampleNames
from escaip_fairchem.plugin.trainer.distributed import on_master
from escaip_fairchem.plugin.trainer.loaders import seed_loader
from escaip_fairchem.plugin.trainer.progress import Progress
from escaip_fairchem.plugin.trainer.resume import RandomState, deferred_signals
from escaip_fairchem.plugin.trainer.stops import StoppedFromOutsideError
from escaip_fairchem.plugin.trainer.summation_order import settle_summation_order
from escaip_fairchem.runs.records import EVALUATING, FINISHED, TRAINING

if TYPE_CHECKING:
    from escaip_fairchem.plugin.trainer.trainer import EScAIPForcesTrainer


STEPS_BETWEEN_AGREEMENTS = 32
"""At most, where several processes train: they have little time after a signal that ends their job."""


class TrainingLoop:
    """Runs a trainer from the step it stands at to its last epoch.

    It waits for the device at logging steps, before checkpoints and in evaluations only. This package's models do not
    wait either, for the loaders search their neighbours on the CPU (`plugin.prepared`). Float16's loss scaling does, in
    every step, because torch decides on the host whether a step is skipped.
    """

    def __init__(self, trainer: EScAIPForcesTrainer, *, hide_evaluation_progress: bool) -> None:
        """Read how often to do what.

        Raises:
            ConfigError: Something that is asked for lacks its data.
        """
        self.trainer = trainer
        self.hide_evaluation_progress = hide_evaluation_progress
        if trainer.train_loader is None:
            raise ConfigError("dataset.train.src: missing, there is nothing to train on")
        optim: dict[str, Any] = trainer.config["optim"]
        self.steps_per_epoch = len(trainer.train_loader)
        self.last_epoch = int(optim["max_epochs"])
        self.eval_every = optim.get("eval_every") or self.steps_per_epoch
        every = optim.get("checkpoint_every") or self.eval_every
        self.checkpoint_every = self.steps_per_epoch if every == -1 else every
        self.print_every = max(int(trainer.config["cmd"]["print_every"]), 1)
        self._saved_step: int | None = trainer.saved_step
        self._order_is_settled = False
        self._waits_after_every_step = trainer.device.type == "cpu"
        if trainer.scheduler.scheduler_type == "ReduceLROnPlateau" and trainer.val_loader is None:
            raise ConfigError("optim.scheduler: ReduceLROnPlateau needs validation data, dataset.val.src is missing")

    def run(self) -> None:
        """Train."""
        trainer = self.trainer
        first_epoch = trainer.step // self.steps_per_epoch
        self.progress = Progress(
            total_steps=self.last_epoch * self.steps_per_epoch,
            first_step=trainer.step,
            visible=distutils.is_master(),
        )
        self._tell(state=TRAINING, total_steps=self.progress.total_steps, total_epochs=self.last_epoch)
        with self.progress, trainer.stops.between_steps():
            # A checkpoint is written before the evaluation at the same step; make up for one that was interrupted.
            if trainer.evaluated_step is not None and trainer.evaluated_step != trainer.step:
                self._evaluate_if_due()
            for epoch in range(first_epoch, self.last_epoch):
                self._epoch(epoch)
            if self._saved_step != trainer.step:
                self._save()
            self._evaluate_last()
        self._tell(state=FINISHED)

    def _tell(self, **values: Any) -> None:
        """Tell at once where the training stands."""
        self.trainer.standing.change(step=self.trainer.step, epoch=float(self.trainer.epoch), **values)

    def _epoch(self, epoch: int) -> None:
        trainer = self.trainer
        done = trainer.step - epoch * self.steps_per_epoch
        trainer.train_sampler.set_epoch_and_start_iteration(epoch, done)
        seed_loader(trainer.train_loader, trainer.config["cmd"]["seed"], epoch)
        batches = iter(trainer.train_loader)
        trainer.model.train()
        trainer.restore_generators()
        for index in range(done, self.steps_per_epoch):
            self._step(next(batches), epoch + (index + 1) / self.steps_per_epoch)
            if trainer.step % self.checkpoint_every == 0:
                self._save()
            if self._stop_is_agreed():
                self._stop()
            self._evaluate_if_due()

    def _stop_is_agreed(self) -> bool:
        """Whether all processes stop here. One alone may do so after any step, several where they wait anyway."""
        step = self.trainer.step
        if distutils.get_world_size() > 1 and not self._waits_in_any_case(step):
            return False
        following = step + 1
        while not self._waits_in_any_case(following):
            following += 1
        return self.trainer.stops.agreed(step, next_step=following)

    def _stop(self) -> None:
        """Save, and leave the evaluation that may be due to whoever goes on. Collective.

        Raises:
            StoppedFromOutsideError: In any case.
        """
        trainer = self.trainer
        number = trainer.stops.number
        assert number is not None
        if self._saved_step != trainer.step:
            self._save()
        raise StoppedFromOutsideError(number)

    def _step(self, batch: Any, epoch: float) -> None:
        trainer = self.trainer
        step = trainer.step + 1
        names = SampleNames.of(batch)
        batch = to_device(batch, trainer.device)
        if not self._order_is_settled:
            settle_summation_order(trainer, batch)
            self._order_is_settled = True
        out = trainer._forward(batch)
        losses = trainer.objective(out, batch, trainer.normalize_label)
        trainer.guard.observe(
            step=step, epoch=epoch, names=names, bad=trainer.flag_structures(out, batch), loss=losses.total
        )
        norm = trainer.compute_gradients(losses.total)
        trainer.guard.observe_gradient(norm)
        if self._waits_anyway(step):
            trainer.guard.check()
            trainer.check_loss_scale(names)
        rate = trainer.scheduler.get_lr()
        with deferred_signals():
            trainer.update_weights()
            trainer.step, trainer.epoch = step, epoch
            trainer.window.add(losses)
            trainer.generators = RandomState.capture(trainer.device)
        self.progress.step(names.count * distutils.get_world_size())
        if step % self.print_every == 0:
            self._report(out, batch, norm, rate)

    def _waits_anyway(self, step: int) -> bool:
        """Whether the flags of `FiniteGuard` should be read now. On the CPU there is nothing to wait for."""
        return self._waits_in_any_case(step) or self.trainer.guard.is_full

    def _waits_in_any_case(self, step: int) -> bool:
        """Whether a step's number alone says that it is waited for; all processes know that of all steps."""
        periods = [self.print_every, self.checkpoint_every, self.eval_every]
        if distutils.get_world_size() > 1:
            periods.append(STEPS_BETWEEN_AGREEMENTS)
        last = step >= self.last_epoch * self.steps_per_epoch
        return last or self._waits_after_every_step or any(step % period == 0 for period in periods)

    @torch.no_grad()
    def _report(self, out: dict[str, Tensor], batch: Any, norm: Tensor, rate: float) -> None:
        """Show and log the losses since the last report and the metrics of this step's batch. Collective."""
        trainer = self.trainer
        metrics = trainer._aggregate_metrics(trainer._compute_metrics(out, batch, trainer.evaluator, {}))
        values: dict[str, float] = {
            **trainer.window.mean(trainer.objective),
            **{name: entry["metric"] for name, entry in metrics.items()},
            "grad_norm": norm.item(),
            "lr": rate,
            "epoch": trainer.epoch,
            "step": trainer.step,
            "samples_per_second": self.progress.rate(),
        }
        trainer.window.clear()
        self.progress.report(values)
        trainer.standing.progress(
            step=trainer.step,
            epoch=float(trainer.epoch),
            samples_per_second=values["samples_per_second"],
            seconds_per_step=self.progress.seconds_per_step,
        )
        if trainer.logger is not None:
            trainer.logger.log(values, step=trainer.step, split="train")

    def _save(self) -> None:
        self.progress.pause()
        trainer = self.trainer
        trainer.gather_resume_state()
        on_master(lambda: trainer.save(checkpoint_file="checkpoint.pt", training_state=True))
        self._saved_step = trainer.step
        self.progress.proceed()

    def _evaluate_last(self) -> None:
        """Evaluate the last weights, wherever the last evaluation was: a short run has a best checkpoint, too."""
        trainer = self.trainer
        if trainer.val_loader is None or trainer.step == 0 or trainer.evaluated_step == trainer.step:
            return
        best = trainer.best_val_metric
        self._evaluate(steps_schedule=False)  # a longer training, continued from here, would not have stepped it
        if trainer.best_val_metric != best:
            self._save()

    def _evaluate_if_due(self) -> None:
        if self.trainer.step != 0 and self.trainer.step % self.eval_every == 0:
            self._evaluate(steps_schedule=True)

    def _evaluate(self, *, steps_schedule: bool) -> None:
        trainer = self.trainer
        self.progress.pause()
        primary = trainer.primary_metric_wanted
        if trainer.stops.asked_anywhere():
            self._stop()
        self._tell(state=EVALUATING)
        # A stop now is acted on by the first process alone, which must know the generators of all.
        trainer.gather_resume_state()
        with trainer.stops.at_once():
            metrics = self._evaluate_now(primary)
            # At the very end: what is interrupted before is done again.
            with deferred_signals():
                if metrics and steps_schedule and trainer.scheduler.scheduler_type == "ReduceLROnPlateau":
                    trainer.scheduler.step(metrics=metrics[primary]["metric"])
                trainer.evaluated_step = trainer.step
        trainer.model.train()
        self._tell(state=TRAINING)
        self.progress.proceed()

    def _evaluate_now(self, primary: str) -> dict[str, dict[str, float]]:
        """Validate and relax; returns the metrics, if there are any."""
        trainer = self.trainer
        metrics: dict[str, dict[str, float]] = {}
        if trainer.val_loader is not None:
            metrics = trainer.validate(split="val", disable_tqdm=self.hide_evaluation_progress)
            trainer.update_best(primary, metrics, disable_eval_tqdm=self.hide_evaluation_progress)
            trainer.standing.change(
                metrics={name: float(entry["metric"]) for name, entry in metrics.items()},
                metrics_step=trainer.step,
                primary_metric=primary,
                best=trainer.best_val_metric,
            )
        if trainer.config["task"].get("eval_relaxations", False):
            self._relax()
        return metrics

    def _relax(self) -> None:
        if getattr(self.trainer, "relax_dataset", None) is None:
            logging.warning("task.eval_relaxations: there is no dataset.relax, so nothing is relaxed")
        else:
            self.trainer.run_relaxations()
