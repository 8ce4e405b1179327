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

if TYPE_CHECKING:
    from escaip_fairchem.plugin.trainer.trainer import EScAIPForcesTrainer


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
        self._saved_step: int | None = trainer.step if trainer.step else None
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
        with self.progress:
            # A checkpoint is written before the evaluation at the same step; make up for one that was interrupted.
            if trainer.evaluated_step is not None and trainer.evaluated_step != trainer.step:
                self._evaluate_if_due()
            for epoch in range(first_epoch, self.last_epoch):
                self._epoch(epoch)
            if self._saved_step != trainer.step:
                self._save()
            self._evaluate_last()

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
            self._evaluate_if_due()

    def _step(self, batch: Any, epoch: float) -> None:
        trainer = self.trainer
        step = trainer.step + 1
        names = SampleNames.of(batch)
        batch = to_device(batch, trainer.device)
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
        periods = (self.print_every, self.checkpoint_every, self.eval_every)
        last = step == self.last_epoch * self.steps_per_epoch
        due = last or any(step % period == 0 for period in periods) or self.trainer.guard.is_full
        return due or self.trainer.device.type == "cpu"

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
        if trainer.val_loader is not None:
            metrics = trainer.validate(split="val", disable_tqdm=self.hide_evaluation_progress)
            trainer.update_best(primary, metrics, disable_eval_tqdm=self.hide_evaluation_progress)
            if steps_schedule and trainer.scheduler.scheduler_type == "ReduceLROnPlateau":
                trainer.scheduler.step(metrics=metrics[primary]["metric"])
        if trainer.config["task"].get("eval_relaxations", False):
            self._relax()
        trainer.evaluated_step = trainer.step
        trainer.model.train()
        self.progress.proceed()

    def _relax(self) -> None:
        if getattr(self.trainer, "relax_dataset", None) is None:
            logging.warning("task.eval_relaxations: there is no dataset.relax, so nothing is relaxed")
        else:
            self.trainer.run_relaxations()
