"""Errors of a model on a data set, by fairchem's metrics, as sums that can be put together exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from escaip_fairchem.errors import DataError
from escaip_fairchem.plugin.evaluation_sets import GROUP, EvaluationSet, load_set
from escaip_fairchem.plugin.inference import Inference
from escaip_fairchem.plugin.prepared import to_device
from escaip_fairchem.plugin.samples import SampleNames
from escaip_fairchem.plugin.trainer.compared import compared
from escaip_fairchem.plugin.trainer.finite import unfinished_structures
from escaip_fairchem.plugin.trainer.metrics import CheckedEvaluator
from escaip_fairchem.plugin.trainer.predict import structure_rows

METRICS = {
    "energy": ["mae", "per_atom_mae"],
    "forces": ["mae", "cosine_similarity"],
    "stress": ["mae"],
}
"""Functions of fairchem's evaluator by output."""
OF_BOTH = "energy_forces_within_threshold"
EVERYTHING = ""
"""Name of the group where a set is not divided."""


@dataclass(frozen=True, kw_only=True)
class ErrorTotals:
    """Sums of errors over some structures, in eV and Å.

    Attributes:
        structures: Their number.
        atoms: Atoms in them, fixed ones included.
        totals: Sum of every metric over what it is a mean of: structures, atoms or components.
        counts: Number of these.
    """

    structures: int
    atoms: int
    totals: Mapping[str, float]
    counts: Mapping[str, int]

    def mean(self, metric: str) -> float | None:
        """A metric's mean; None where it is not defined, as for forces without a free atom."""
        count = self.counts.get(metric, 0)
        return self.totals[metric] / count if count else None

    def __add__(self, other: ErrorTotals) -> ErrorTotals:
        names = {**self.totals, **other.totals}
        return ErrorTotals(
            structures=self.structures + other.structures,
            atoms=self.atoms + other.atoms,
            totals={name: self.totals.get(name, 0.0) + other.totals.get(name, 0.0) for name in names},
            counts={name: self.counts.get(name, 0) + other.counts.get(name, 0) for name in names},
        )

    @classmethod
    def sum(cls, parts: Iterable[ErrorTotals]) -> ErrorTotals:
        """Put several together."""
        total = cls(structures=0, atoms=0, totals={}, counts={})
        for part in parts:
            total = total + part
        return total


def measurable(inference: Inference) -> list[str]:
    """Outputs of a model that there are metrics for."""
    return [name for name in METRICS if name in inference.outputs]


@torch.no_grad()
def measure(inference: Inference, dataset: EvaluationSet) -> dict[str, ErrorTotals]:
    """Compute the errors of a model on a whole data set, as ``fairchem --mode validate`` does.

    Args:
        inference: The model.
        dataset: Opened with its labels, and with the key to group by, if any.

    Returns:
        By group, in the order of their first structures; `EVERYTHING` alone where there is no grouping.

    Raises:
        DataError: A label is missing or not finite.
        NonFiniteError: A prediction is not finite.
    """
    trainer = inference.trainer
    targets = {name: inference.outputs[name] for name in measurable(inference)}
    functions = {name: METRICS[name] for name in targets}
    if {"energy", "forces"} <= targets.keys():
        functions["misc"] = [OF_BOTH]
    evaluator = CheckedEvaluator(trainer.name, functions, targets)
    is_divided = dataset.reading.group_by is not None
    groups: dict[str, ErrorTotals] = {}
    trainer._before_evaluation()
    for batch in trainer._shown(load_set(dataset, inference), False):
        names = SampleNames.of(batch)
        of_structures = list(batch[GROUP]) if is_divided else [EVERYTHING] * names.count
        batch = to_device(batch, trainer.device)
        predictions = trainer._predict_batch(batch, names)
        predicted, labelled = compared(predictions, batch, targets)
        _require_finite_labels(batch, names, targets, dataset)
        for group, rows in _rows_by_group(of_structures, batch, targets).items():
            found = _errors_of(evaluator, _take(predicted, rows), _take(labelled, rows))
            groups[group] = groups[group] + found if group in groups else found
    return groups


def _rows_by_group(groups: list[str], batch: Any, targets: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Which rows of the compared tensors belong to which group, by the tensors' names."""
    distinct = list(dict.fromkeys(groups))
    number_B = torch.tensor([distinct.index(group) for group in groups], device=batch.batch.device)
    free_N = batch.fixed == 0
    rows: dict[str, dict[str, Tensor]] = {}
    for number, group in enumerate(distinct):
        chosen_B = number_B == number
        chosen_N = chosen_B[batch.batch]
        rows[group] = {"natoms": chosen_B, "natoms_all": chosen_B}
        for name, settings in targets.items():
            of_atoms = chosen_N[free_N] if settings.get("eval_on_free_atoms", True) else chosen_N
            rows[group][name] = of_atoms if settings["level"] == "atom" else chosen_B
    return rows


def _take(tensors: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[name][chosen] for name, chosen in rows.items()}


def _errors_of(
    evaluator: CheckedEvaluator, predicted: Mapping[str, Tensor], labelled: Mapping[str, Tensor]
) -> ErrorTotals:
    metrics = evaluator.eval(predicted, labelled)
    natoms_B = labelled["natoms_all"]
    return ErrorTotals(
        structures=len(natoms_B),
        atoms=int(natoms_B.sum()),
        totals={name: entry["total"] for name, entry in metrics.items()},
        counts={name: int(entry["numel"]) for name, entry in metrics.items()},
    )


def _require_finite_labels(
    batch: Any, names: SampleNames, targets: Mapping[str, Mapping[str, Any]], dataset: EvaluationSet
) -> None:
    for name, settings in targets.items():
        if batch[name].isfinite().all():
            continue
        rows = structure_rows(batch[name], batch, names.count, settings["level"])
        label = batch[name].reshape(len(rows), -1)
        bad_B = unfinished_structures(label, rows, names.count)
        raise DataError(
            f"{dataset.source}: the label {name!r} is not finite for "
            f"{names.listed(bad_B.nonzero().flatten().tolist())}; remove these structures from the set"
        )
