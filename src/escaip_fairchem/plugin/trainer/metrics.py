"""fairchem's metrics, checked against the configuration, and exact where fairchem's are not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from fairchem.core.modules import evaluator as fairchem_metrics
from torch import Tensor

from escaip_fairchem.errors import ConfigError, nearest

Tensors = Mapping[str, Tensor]
Metric = Callable[[Tensors, Tensors, Any], dict[str, float]]
DEFAULT_METRICS = {
    "energy": ["mae"],
    "forces": ["mae", "cosine_similarity"],
    "stress": ["mae"],
}
ENERGY_THRESHOLD_EV = 0.02
FORCE_THRESHOLD_EV_PER_ANGSTROM = 0.03
_HIGHER_IS_BETTER = ("within_threshold", "cosine_similarity")
_NEEDS_BOTH = ("energy_forces_within_threshold",)


def metric_label(target: str, function: str) -> str:
    """Name under which fairchem reports a metric."""
    return function if target == "misc" or target in function else f"{target}_{function}"


def higher_is_better(metric: str) -> bool:
    """Direction in which a metric improves."""
    return any(part in metric for part in _HIGHER_IS_BETTER)


def _totals(errors: Tensor) -> dict[str, float]:
    total, count = errors.sum().item(), errors.numel()
    return {"metric": total / max(count, 1), "total": total, "numel": count}


def energy_forces_within_threshold(pred: Tensors, target: Tensors, key: Any = None) -> dict[str, float]:
    """Share of structures whose energy error is below 0.02 eV and every force component's below 0.03 eV/Å.

    fairchem's value, computed for all structures at once, and defined where a structure has no free atom.
    """
    natoms_B = target["natoms"]
    error_N = (target["forces"] - pred["forces"]).abs().amax(-1)
    rows_B = torch.arange(len(natoms_B), device=natoms_B.device)
    structure_N = torch.repeat_interleave(rows_B, natoms_B, output_size=len(error_N))
    worst_B = error_N.new_zeros(len(natoms_B)).scatter_reduce(0, structure_N, error_N, "amax")
    energy_B = (target["energy"] - pred["energy"]).abs().reshape(-1)
    return _totals(((energy_B < ENERGY_THRESHOLD_EV) & (worst_B < FORCE_THRESHOLD_EV_PER_ANGSTROM)).float())


def per_atom_mae(pred: Tensors, target: Tensors, key: Any) -> dict[str, float]:
    """Mean absolute error per atom of the structure, fixed atoms included."""
    return _totals((target[key] - pred[key]).abs() / target["natoms_all"].unsqueeze(1))


def per_atom_mse(pred: Tensors, target: Tensors, key: Any) -> dict[str, float]:
    """Mean square of the error per atom of the structure, fixed atoms included."""
    return _totals(((target[key] - pred[key]) / target["natoms_all"].unsqueeze(1)).square())


_OURS: dict[str, Metric] = {
    function.__name__: function for function in (energy_forces_within_threshold, per_atom_mae, per_atom_mse)
}


def known_metrics() -> dict[str, Metric]:
    """Every metric that a configuration may name."""
    theirs = {
        name: function
        for name, function in inspect.getmembers(fairchem_metrics, inspect.isfunction)
        if function.__module__ == fairchem_metrics.__name__ and name not in ("metrics_dict", "min_diff")
    }
    return {**theirs, **_OURS}


class CheckedEvaluator(fairchem_metrics.Evaluator):
    """fairchem's evaluator for metrics that were checked when it was built."""

    def __init__(self, task: str, eval_metrics: Mapping[str, Sequence[str]], targets: Mapping[str, Any]) -> None:
        """Check and hold metrics.

        Args:
            task: fairchem's name of the task.
            eval_metrics: Functions by output (``misc`` for those of several outputs).
            targets: The outputs.

        Raises:
            ConfigError: A metric is unknown, or belongs to something that is not an output.
        """
        super().__init__(task=task, eval_metrics=dict(eval_metrics))
        known = known_metrics()
        for target, functions in eval_metrics.items():
            place = f"evaluation_metrics.metrics.{target}"
            if target != "misc" and target not in targets:
                raise ConfigError(f"{place}: {target!r} is not among the outputs{nearest(target, targets)}")
            for function in functions:
                if function not in known:
                    raise ConfigError(f"{place}: unknown metric {function!r}{nearest(function, known)}")
                if function in _NEEDS_BOTH and not {"energy", "forces"} <= targets.keys():
                    raise ConfigError(f"{place}: {function} needs both energy and forces among the outputs")

    @property
    def labels(self) -> list[str]:
        """Names under which the metrics are reported."""
        return [metric_label(target, function) for target, names in self.target_metrics.items() for function in names]

    def eval(
        self, prediction: Tensors, target: Tensors, prev_metrics: dict[str, Any] | None = None
    ) -> dict[str, dict[str, float]]:
        """Add a batch to the metrics.

        Args:
            prediction: Predictions in physical units.
            target: Labels, ``natoms`` (evaluated atoms per structure) and ``natoms_all``.
            prev_metrics: What was accumulated so far; it is changed and returned.
        """
        metrics = prev_metrics or {}
        known = known_metrics()
        for name, functions in self.target_metrics.items():
            for function in functions:
                metrics = self.update(metric_label(name, function), known[function](prediction, target, name), metrics)
        return metrics

    def update(self, key: str, stat: Any, metrics: dict[str, Any]) -> dict[str, Any]:
        """Add one value, or the totals of a batch, which may be empty (no free atom in it)."""
        total, count = (stat["total"], stat["numel"]) if isinstance(stat, dict) else (stat, 1)
        entry = metrics.setdefault(key, {"metric": 0.0, "total": 0.0, "numel": 0})
        entry["total"] += total
        entry["numel"] += count
        entry["metric"] = entry["total"] / max(entry["numel"], 1)
        return metrics


def default_metrics(targets: Mapping[str, Any]) -> dict[str, list[str]]:
    """Metrics of a configuration that names none."""
    metrics = {name: list(functions) for name, functions in DEFAULT_METRICS.items() if name in targets}
    if {"energy", "forces"} <= targets.keys():
        metrics["misc"] = ["energy_forces_within_threshold"]
    return metrics


def choose_primary(configured: str | None, labels: Sequence[str]) -> str:
    """The metric that decides which checkpoint is the best.

    Args:
        configured: ``evaluation_metrics.primary_metric``, if given.
        labels: Metrics that are computed; ``loss`` always is.

    Returns:
        What is configured; otherwise the first of energy_forces_within_threshold, forces_mae, energy_mae and loss that
        is computed.

    Raises:
        ConfigError: The configured one is not computed.
    """
    if configured is None:
        wanted = ("energy_forces_within_threshold", "forces_mae", "energy_mae")
        return next((label for label in wanted if label in labels), "loss")
    if configured not in labels and configured != "loss":
        raise ConfigError(
            f"evaluation_metrics.primary_metric: {configured!r} is not computed{nearest(configured, [*labels, 'loss'])}"
        )
    return configured
