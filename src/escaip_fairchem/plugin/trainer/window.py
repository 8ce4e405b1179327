"""Losses since the last logging step, summed on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from escaip_fairchem.plugin.trainer.distributed import sum_over_ranks
from escaip_fairchem.plugin.trainer.objective import LossValues, Objective


class LossWindow:
    """Adds up losses without waiting for the device, and reports their exact mean when asked."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._counts: Tensor | None = None

    def add(self, values: LossValues) -> None:
        """Add the losses of a batch."""
        if self._sums is None or self._counts is None:
            self._sums, self._counts = values.sums.double(), values.counts.double()
        else:
            self._sums, self._counts = self._sums + values.sums, self._counts + values.counts

    def add_nothing(self, terms: int, device: torch.device) -> None:
        """Take part in a mean over all processes without having had a batch."""
        if self._sums is None or self._counts is None:
            self._sums = torch.zeros(terms, dtype=torch.float64, device=device)
            self._counts = torch.zeros_like(self._sums)

    def mean(self, objective: Objective) -> dict[str, float]:
        """Mean over everything added, on all processes together. Collective; waits for the device."""
        if self._sums is None or self._counts is None:
            return {}
        return objective.mean(sum_over_ranks(self._sums), sum_over_ranks(self._counts))

    def clear(self) -> None:
        """Begin anew."""
        self._sums = self._counts = None

    def state(self) -> dict[str, Any]:
        """For a checkpoint: a run interrupted between two logging steps reports the same mean as one that was not.

        On the CPU, because processes exchange it as a pickled object: tensors of one GPU would come to life on the same
        GPU in all of them.
        """
        both = {"sums": self._sums, "counts": self._counts}
        return {name: None if tensor is None else tensor.cpu() for name, tensor in both.items()}

    def restore(self, state: dict[str, Any], like: Tensor) -> None:
        """Continue from `state`, on the device of ``like``."""
        both = state["sums"] is not None and state["counts"] is not None
        self._sums = state["sums"].to(like.device) if both else None
        self._counts = state["counts"].to(like.device) if both else None
