"""fairchem's trainer for energies, forces and stresses, without its traps."""

from __future__ import annotations

import logging
from typing import Any

import torch
from fairchem.core.common.registry import registry
from fairchem.core.modules.scaling.util import ensure_fitted
from torch import Tensor

from escaip_fairchem.plugin.samples import SampleNames
from escaip_fairchem.plugin.trainer.conservative import check_common_scale
from escaip_fairchem.plugin.trainer.evaluation import TrainerEvaluation
from escaip_fairchem.plugin.trainer.finite import require_usable_scale
from escaip_fairchem.plugin.trainer.trained_heads import check_heads_are_trained
from escaip_fairchem.plugin.trainer.training import TrainingLoop
from escaip_fairchem.plugin.trainer.training_set import RotatedDataset


@registry.register_trainer("escaip_forces")
class EScAIPForcesTrainer(TrainerEvaluation):
    """fairchem's ``OCPTrainer`` with exact resume, atomic checkpoints, bf16, and stops that name samples.

    It trains any of fairchem's models. Its configuration is fairchem's; what it adds:

    ============================== ==========================================================================
    ``optim.amp_dtype``            ``fp32`` (default), ``bf16`` or ``fp16``; ``--amp`` alone means fp16
    ``optim.tf32``                 TF32 for what float32's matrix products remain; false by default
    ``optim.scheduler_params``     EquiformerV2's schedules, settings in epochs: ``lambda_type: cosine``, …
    ``task.prediction_dtype``      ``float32`` (default), ``float16`` or ``float64``
    ``task.predict_free_atoms_only`` leave fixed atoms out of the predictions (EvalAI's format)
    ``task.trust_checkpoint``      load checkpoints that hold arbitrary Python objects
    ``logger: null``               write no log files
    ============================== ==========================================================================

    Left out, these are: ``optim.num_workers`` 0, ``optim.batch_size`` 1, ``eval_on_free_atoms`` and
    ``train_on_free_atoms`` true, metrics and primary metric by the outputs, no scheduler a constant learning rate.
    """

    def train(self, disable_eval_tqdm: bool = False) -> None:
        """Train from the current step to the last epoch, saving and evaluating on the way.

        Args:
            disable_eval_tqdm: Whether to hide the progress of validations.

        Raises:
            ConfigError: A conservative model's targets are normalised by different scales, some head has no loss, or
                labels cannot be turned around with the structures.
            DataError: A label has another shape than rotations need.
            NonFiniteError: A loss, prediction, label or gradient is not finite.
            CheckpointError: The loaded checkpoint's optimizer state does not fit, or a checkpoint cannot be written.
        """
        self._require_resumable()
        ensure_fitted(self._unwrapped_model, warn=True)
        self.finish_normalizers()
        check_common_scale(self._unwrapped_model, self.normalizers)
        if isinstance(self.train_dataset, RotatedDataset):
            self.train_dataset.check_outputs(self.output_targets)
        trained = {term.target for term in self.objective.terms}
        check_heads_are_trained(self._unwrapped_model, trained, self.output_targets)
        if self.ema is not None and not self.ema_decay:
            logging.info("optim.ema_decay is not set: the checkpoint's averaged weights are not carried on")
            self.ema = None
        if self.primary_metric != self.primary_metric_wanted:
            self.primary_metric, self.best_val_metric = self.primary_metric_wanted, None
        if self.best_val_metric is not None:
            self.bring_best()
        self.shorten_validation()
        TrainingLoop(self, hide_evaluation_progress=disable_eval_tqdm).run()

    def _compute_loss(self, out: dict[str, Tensor], batch: Any) -> Tensor:
        """The total loss of a batch, for code that knows fairchem's trainers."""
        return self.objective(out, batch, self.normalize_label).total

    def compute_gradients(self, loss: Tensor) -> Tensor:
        """Differentiate a loss, and clip.

        Returns:
            Norm of all gradients before clipping, (), on the device.
        """
        self.differentiate(loss)
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        limit = float(self.clip_grad_norm) if self.clip_grad_norm else float("inf")
        norm: Tensor = torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=limit)
        return norm

    def differentiate(self, loss: Tensor) -> None:
        """Give every parameter its gradient, which is that of the scaled loss with loss scaling."""
        self.optimizer.zero_grad()
        scaled = self.scaler.scale(loss) if self.scaler else loss
        with self.precision.backward():
            scaled.backward()

    def update_weights(self) -> None:
        """Let the optimizer, the average and the schedule take their step, unless loss scaling skips it."""
        if not self._step_optimizer():
            return
        if self.ema:
            self.ema.update()
        if self._steps_schedule:
            self.scheduler.step()

    def _step_optimizer(self) -> bool:
        """Whether the optimizer took its step; with loss scaling it does not where a gradient overflows."""
        if not self.scaler:
            self.optimizer.step()
            return True
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return bool(self.scaler.get_scale() >= scale)

    def check_loss_scale(self, names: SampleNames) -> None:
        """Stop where loss scaling would skip every step from here on.

        Args:
            names: Ids of the batch whose gradients the model holds.

        Raises:
            NonFiniteError: That is so.
        """
        if self.scaler:
            require_usable_scale(self.scaler.get_scale(), step=self.step + 1, names=names, model=self.model)

    def _backward(self, loss: Tensor) -> None:
        """One optimization step, for code that knows fairchem's trainers."""
        self.compute_gradients(loss)
        self.update_weights()
