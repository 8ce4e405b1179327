"""The trainer with a clock on the parts of its steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from fairchem.core.common.registry import registry
from torch import Tensor

from escaip_fairchem.plugin.trainer import EScAIPForcesTrainer

Mark = float | torch.cuda.Event


@dataclass
class StepClock:
    """Moments of a training: the host's clock on the CPU, events on the device's stream on a GPU.

    Attributes:
        on_gpu: Whether the device is a GPU.
        parts: Beginning and end of every forward, backward (with clipping) and update (optimizer, average, schedule).
        ends: End of every step.
    """

    on_gpu: bool
    parts: list[tuple[Mark, Mark]] = field(default_factory=list)
    ends: list[Mark] = field(default_factory=list)

    def now(self) -> Mark:
        """This moment."""
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def steps(self, *, skip: int) -> tuple[list[float], list[float]]:
        """Seconds of every step but the first ones: altogether, and inside forward, backward and update.

        A step lasts from the end of the one before to its own end, loading included.

        Args:
            skip: Steps at the start that do not count, at least 1.
        """
        if self.on_gpu:
            torch.cuda.synchronize()
        per_step = len(self.parts) // len(self.ends)
        whole, inside = [], []
        for step in range(skip, len(self.ends)):
            whole.append(_between(self.ends[step - 1], self.ends[step]))
            parts = self.parts[step * per_step : (step + 1) * per_step]
            inside.append(sum(_between(begin, end) for begin, end in parts))
        return whole, inside


def _between(begin: Mark, end: Mark) -> float:
    if isinstance(begin, float) and isinstance(end, float):
        return end - begin
    assert not isinstance(begin, float)
    return float(begin.elapsed_time(end)) / 1000.0


@registry.register_trainer("escaip_timed_forces")
class TimedForcesTrainer(EScAIPForcesTrainer):
    """``escaip_forces`` with a clock; it trains exactly as that one does."""

    @property
    def clock(self) -> StepClock:
        """The moments so far."""
        if not hasattr(self, "_clock"):
            self._clock = StepClock(on_gpu=self.device.type == "cuda")
        return self._clock

    def _forward(self, batch: Any) -> dict[str, Tensor]:
        begin = self.clock.now()
        outputs = super()._forward(batch)
        self.clock.parts.append((begin, self.clock.now()))
        return outputs

    def compute_gradients(self, loss: Tensor) -> Tensor:
        """Differentiate a loss, and clip."""
        begin = self.clock.now()
        norm = super().compute_gradients(loss)
        self.clock.parts.append((begin, self.clock.now()))
        return norm

    def update_weights(self) -> None:
        """Let the optimizer, the average and the schedule take their step."""
        begin = self.clock.now()
        super().update_weights()
        self.clock.parts.append((begin, self.clock.now()))
        self.clock.ends.append(self.clock.parts[-1][1])


def train_timed(settings: dict[str, Any], *, skip: int) -> tuple[Sequence[float], Sequence[float]]:
    """Train, and say how long the steps took.

    Args:
        settings: Keyword arguments of the trainer.
        skip: Steps at the start that do not count, at least 1.

    Returns:
        Seconds of every step altogether, and inside forward, backward and update.
    """
    trainer = TimedForcesTrainer(**settings)
    trainer.train(disable_eval_tqdm=True)
    return trainer.clock.steps(skip=skip)
