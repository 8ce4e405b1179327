"""The trainer under a budget of seconds: its schedule follows the clock, and it stops when the time is spent."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from fairchem.core.common.registry import registry
from torch import Tensor

from escaip_fairchem.plugin.trainer import EScAIPForcesTrainer

WARM_UP = 0.02
"""Share of the budget over which the rate rises."""
LAST_RATE = 0.01
"""The rate at the end, in units of the initial one."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """Errors at a moment of a training.

    Attributes:
        seconds: Time spent training, evaluations left out.
        step: Steps taken.
        metrics: By fairchem's names, eV and eV/Å.
    """

    seconds: float
    step: int
    metrics: dict[str, float]


@dataclass(kw_only=True)
class Budget:
    """A budget and what has been used of it.

    Attributes:
        seconds: For steps; loading and logging count, evaluations do not.
        moments: Shares of the budget at which to evaluate, ascending, the last one 1.
        spent: Seconds used so far.
        points: Evaluations so far.
    """

    seconds: float
    moments: Sequence[float]
    spent: float = 0.0
    points: list[Point] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share that is spent, 1 at most."""
        return min(self.spent / self.seconds, 1.0)

    @property
    def evaluation_is_due(self) -> bool:
        """Whether the next moment has come."""
        return len(self.points) < len(self.moments) and self.share >= self.moments[len(self.points)]


def rate_factor(share: float) -> float:
    """Learning rate at a share of the budget, in units of the initial one: a rise, then half a cosine."""
    if share < WARM_UP:
        return max(share / WARM_UP, LAST_RATE)
    progress = (share - WARM_UP) / (1.0 - WARM_UP)
    return LAST_RATE + (1.0 - LAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * progress))


class _SpentError(Exception):
    """Ends the training loop."""


@registry.register_trainer("escaip_budget_forces")
class BudgetForcesTrainer(EScAIPForcesTrainer):
    """``escaip_forces`` that trains for so many seconds; set :attr:`budget` before training."""

    budget: Budget
    _began: float

    def train(self, disable_eval_tqdm: bool = False) -> None:
        """Train until the budget is spent, evaluating on ``val`` at its moments."""
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._began = time.perf_counter()
        try:
            super().train(disable_eval_tqdm)
        except _SpentError:
            return
        raise AssertionError("max_epochs ended before the budget")

    def compute_gradients(self, loss: Tensor) -> Tensor:
        """Differentiate a loss, and clip."""
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * rate_factor(self.budget.share)
        return super().compute_gradients(loss)

    def update_weights(self) -> None:
        """Let optimizer and average take their step; then look at the clock."""
        super().update_weights()
        budget = self.budget
        if self.device.type == "cuda":
            self.parameters_are_ready()
        now = time.perf_counter()
        budget.spent, self._began = budget.spent + now - self._began, now
        while budget.evaluation_is_due:
            metrics = self.validate(split="val", disable_tqdm=True)
            values = {name: float(entry["metric"]) for name, entry in metrics.items()}
            budget.points.append(Point(seconds=budget.spent, step=self.step + 1, metrics=values))
            self.model.train()
            self._began = time.perf_counter()
        if budget.share >= 1.0:
            raise _SpentError

    def parameters_are_ready(self) -> None:
        """Wait for the device, whose clock is the host's here."""
        next(iter(self.model.parameters())).sum().item()

    def errors_of_zeros(self) -> dict[str, float]:
        """Errors on ``test``, by fairchem's names, of predicting 0 throughout: what labels alone amount to."""
        energies, forces = [], []
        for batch in self.test_loader:
            energies.append((batch.energy.view(-1) / batch.natoms).abs())
            forces.append(batch.forces.abs().flatten())
        return {"energy_per_atom_mae": float(torch.cat(energies).mean()), "forces_mae": float(torch.cat(forces).mean())}


def train_within(settings: dict[str, Any], *, seconds: float, moments: Sequence[float]) -> dict[str, Any]:
    """Train for some seconds.

    Args:
        settings: Keyword arguments of the trainer.
        seconds: The budget.
        moments: Shares of it at which to evaluate on ``val``; the last one is 1.

    Returns:
        ``points`` on the validation set as dictionaries, ``test`` metrics at the end, ``zeros`` (see
        :meth:`BudgetForcesTrainer.errors_of_zeros`), ``steps``, ``parameters``.
    """
    trainer = BudgetForcesTrainer(**settings)
    trainer.budget = Budget(seconds=seconds, moments=moments)
    trainer.train(disable_eval_tqdm=True)
    test = trainer.validate(split="test", disable_tqdm=True)
    return {
        "points": [vars(point) for point in trainer.budget.points],
        "test": {name: float(entry["metric"]) for name, entry in test.items()},
        "zeros": trainer.errors_of_zeros(),
        "steps": trainer.budget.points[-1].step,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
    }
