"""How the trainer validates and predicts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.modules.scaling.util import ensure_fitted
from torch import Tensor
from torch_geometric.data import Batch
from tqdm import tqdm

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.plugin.prepared import to_device
from escaip_fairchem.plugin.samples import SampleNames
from escaip_fairchem.plugin.trainer.checkpointing import TrainerCheckpointing
from escaip_fairchem.plugin.trainer.compared import compared
from escaip_fairchem.plugin.trainer.distributed import gather_everywhere, on_master, sum_over_ranks
from escaip_fairchem.plugin.trainer.finite import FiniteGuard, unfinished_structures
from escaip_fairchem.plugin.trainer.loaders import loaded_rows, original_order, seed_loader
from escaip_fairchem.plugin.trainer.objective import shaped_label
from escaip_fairchem.plugin.trainer.predict import (
    Predictions,
    PredictionSettings,
    as_arrays,
    merge_processes,
    require_finite_predictions,
    structure_rows,
    write_arrays,
)
from escaip_fairchem.plugin.trainer.progress import format_line
from escaip_fairchem.plugin.trainer.window import LossWindow

Metrics = dict[str, dict[str, float]]


class TrainerEvaluation(TrainerCheckpointing):
    """Evaluation with averaged weights, exact means, and predictions for every atom."""

    @torch.no_grad()
    def validate(self, split: str = "val", disable_tqdm: bool = False) -> Metrics:
        """Compute the losses and metrics of a whole data set.

        Means are over all structures or atoms, however they were batched and divided among processes. One that has no
        structure takes part with nothing.

        Args:
            split: ``val`` or ``test``.
            disable_tqdm: Whether to hide the progress bar.

        Returns:
            By metric: ``metric``, ``total`` and ``numel``. Among them ``loss`` and every term of it.

        Raises:
            ConfigError: There is no such data set.
            NonFiniteError: A prediction, label or loss is not finite.
        """
        loader = self.val_loader if split == "val" else self.test_loader
        if loader is None:
            raise ConfigError(f"dataset.{split}.src: missing, there is nothing to evaluate on")
        self._before_evaluation()
        if distutils.is_master():
            logging.info(f"Evaluating on {split}.")
        metrics: Metrics = {}
        window = LossWindow()
        guard = FiniteGuard(self.model, gradients_may_overflow=True)
        seed_loader(loader, self.config["cmd"]["seed"], 0)
        with self.swap.averaged(self.ema):
            for batch in self._shown(loader, disable_tqdm):
                metrics = self._evaluate_batch(batch, metrics, window, guard)
                # Nothing within this loop is collective: processes may have different numbers of batches.
                if guard.is_full and guard.settle():
                    break
        guard.check()
        metrics = self._aggregate_metrics(metrics, sorted(set().union(*gather_everywhere(sorted(metrics)))))
        if distutils.get_world_size() > 1:
            window.add_nothing(len(self.objective.terms), self.device)
        losses = window.mean(self.objective)
        metrics.update({name: {"metric": loss, "total": loss, "numel": 1} for name, loss in losses.items()})
        self._log_evaluation({name: values["metric"] for name, values in metrics.items()}, split)
        return metrics

    def _before_evaluation(self) -> None:
        self.finish_normalizers()
        ensure_fitted(self._unwrapped_model, warn=True)
        self.model.eval()

    def _shown(self, loader: Any, disable_tqdm: bool) -> Any:
        """The loader with a bar, where somebody looks at one: on the first process, if it has a terminal."""
        hidden = disable_tqdm or not distutils.is_master() or not sys.stderr.isatty()
        return tqdm(loader, total=len(loader), desc="evaluating", disable=hidden)

    def _evaluate_batch(self, batch: Any, metrics: Metrics, window: LossWindow, guard: FiniteGuard) -> Metrics:
        names = SampleNames.of(batch)
        batch = to_device(batch, self.device)
        out = self._forward(batch)
        losses = self.objective(out, batch, self.normalize_label, collective=False)
        bad = self.flag_structures(out, batch)
        guard.observe(step=self.step, epoch=self.epoch, names=names, bad=bad, loss=losses.total)
        window.add(losses)
        return self._compute_metrics(out, batch, self.evaluator, metrics)

    def _log_evaluation(self, values: dict[str, float], split: str) -> None:
        values["epoch"] = self.epoch
        if distutils.is_master():
            logging.info(f"{split}: {format_line(values)}")
        if self.logger is not None:
            self.logger.log(values, step=self.step, split=split)

    def flag_structures(self, out: Mapping[str, Tensor], batch: Any) -> dict[str, Tensor]:
        """Flag the structures (B,) with predictions, or labels of the loss, that are not finite."""
        flags = {}
        trained = {term.target for term in self.objective.terms}
        count = batch.natoms.numel()
        for name, values in out.items():
            rows = structure_rows(values, batch, count, self.output_targets[name]["level"])
            flags[f"prediction {name!r}"] = unfinished_structures(values, rows, count)
            if name in trained:
                label = shaped_label(batch, name, values)
                flags[f"label {name!r}"] = unfinished_structures(label, rows, count)
        return flags

    def _compute_metrics(
        self, out: Mapping[str, Tensor], batch: Any, evaluator: Any, metrics: Metrics | None = None
    ) -> Metrics:
        """Add a batch to the metrics, in physical units and float32.

        Args:
            out: From `_forward`.
            batch: The labelled batch, on the device.
            evaluator: What to compute.
            metrics: What was accumulated so far.
        """
        predictions = {name: self._denorm_preds(name, out[name], batch) for name in self.output_targets}
        predicted, labelled = compared(predictions, batch, self.output_targets)
        result: Metrics = evaluator.eval(predicted, labelled, prev_metrics=metrics or {})
        return result

    def _aggregate_metrics(self, metrics: Metrics, names: Sequence[str] | None = None) -> Metrics:
        """Join the metrics of all processes, in one message and in float64. Collective.

        Args:
            metrics: Of this process.
            names: Those of all processes; left out where each has the same.
        """
        names = sorted(metrics) if names is None else names
        nothing = {"total": 0.0, "numel": 0}
        both = [[metrics.get(name, nothing)[key] for name in names] for key in ("total", "numel")]
        summed = sum_over_ranks(torch.tensor(both, dtype=torch.float64, device=self.device))
        totals, counts = summed.tolist()
        return {
            name: {"metric": total / max(count, 1), "total": total, "numel": int(count)}
            for name, total, count in zip(names, totals, counts, strict=True)
        }

    @torch.no_grad()
    def predict(
        self,
        data_loader: Any,
        per_image: bool = True,
        results_file: str | None = None,
        disable_tqdm: bool = False,
    ) -> dict[str, Any]:
        """Predict, with the averaged weights.

        Args:
            data_loader: A loader, or one batch.
            per_image: Whether to cut the results into structures; otherwise one tensor per output is returned, for the
                (first) batch as a whole, on the device.
            results_file: Name of the file in the run's results folder, or None for none.
            disable_tqdm: Whether to hide the progress bar.

        Returns:
            By output a tensor, or (``per_image``) one array per structure of this process, with ``ids`` and atom
            counts.

        Raises:
            NonFiniteError: A prediction is not finite.
        """
        self._before_evaluation()
        batches = [data_loader] if isinstance(data_loader, Batch) else data_loader
        settings = PredictionSettings(self.config["task"], self.config["outputs"])
        collected = Predictions()
        with self.swap.averaged(self.ema):
            for batch in self._shown(batches, disable_tqdm):
                names = SampleNames.of(batch)
                predictions = self._predict_batch(batch, names)
                if not per_image:
                    return predictions
                collected.add(settings.split(predictions, batch), names)
        rows = loaded_rows(data_loader)
        places = None if rows is None else original_order(data_loader.dataset, [row for part in rows for row in part])
        self._write_results(dict(collected.rows), places, results_file)
        return dict(collected.rows)

    def _predict_batch(self, batch: Any, names: SampleNames) -> dict[str, Tensor]:
        """Predictions of one batch in physical units, checked."""
        batch = to_device(batch, self.device)
        out = self._forward(batch)
        predictions = {name: self._denorm_preds(name, out[name], batch).detach() for name in self.config["outputs"]}
        require_finite_predictions(predictions, batch, names, self.output_targets)
        return predictions

    def save_results(
        self, predictions: Mapping[str, list[Any]], results_file: str | None, keys: Sequence[str] | None = None
    ) -> None:
        """Write predictions in the order in which they come, process by process.

        Args:
            predictions: As from `predict`.
            results_file: Name of the file, or None to write nothing.
            keys: What to write; by default everything.
        """
        wanted = predictions if keys is None else {key: predictions[key] for key in keys}
        self._write_results(wanted, None, results_file)

    def _write_results(
        self, predictions: Mapping[str, list[Any]], places: Sequence[int] | None, results_file: str | None
    ) -> None:
        """Write predictions of all processes in the order of the data set. Collective."""
        if results_file is None:
            return
        parts = distutils.gather_objects((dict(predictions), places))

        def write() -> None:
            rows = merge_processes([part for part, _ in parts], [own for _, own in parts], list(predictions))
            path = Path(self.config["cmd"]["results_dir"]) / f"{self.name}_{results_file}.npz"
            logging.info(f"Writing results to {path}")
            write_arrays(as_arrays(rows), path)

        if not self.is_debug:
            on_master(write)

    def run_relaxations(self) -> None:
        """Relax the structures of ``dataset.relax`` with the averaged weights, as fairchem does."""
        self.finish_normalizers()
        with self.swap.averaged(self.ema):
            # fairchem would swap weights once more, and for good.
            self.hidden_ema, self.ema = self.ema, None
            try:
                super().run_relaxations()
            finally:
                self.ema, self.hidden_ema = self.hidden_ema, None
