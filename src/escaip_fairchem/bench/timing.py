"""Clocks, deadlines and what is said about repeated times."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


class Timer:
    """Times functions: the host's clock on the CPU, events on the device's own stream on a GPU.

    Args:
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"

    def measure(self, function: Callable[[], object]) -> float:
        """Run a function once.

        Returns:
            Seconds until all of its work was done.
        """
        if not self._on_gpu:
            begin = time.perf_counter()
            function()
            return time.perf_counter() - begin
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        first.record()
        function()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000.0


def synchronized_clock(device: str) -> float:
    """The host's clock (s) once the device has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Repeated measurements in brief. All NaN where there are none.

    Attributes:
        mean: Arithmetic mean.
        std: Standard deviation of the population.
        median: Median.
        count: Number of measurements.
    """

    mean: float
    std: float
    median: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise."""
        if not values:
            return cls(mean=math.nan, std=math.nan, median=math.nan, count=0)
        return cls(
            mean=statistics.fmean(values),
            std=statistics.pstdev(values),
            median=statistics.median(values),
            count=len(values),
        )


class Deadline:
    """The time limit of a command.

    Args:
        seconds: From now on; None for no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self._end = math.inf if seconds is None else time.monotonic() + seconds

    def within(self, share: float) -> Deadline:
        """A deadline at a share of the time that is left."""
        return Deadline(None if self._end == math.inf else share * self.remaining)

    @property
    def remaining(self) -> float:
        """Seconds left, infinite without a limit."""
        return max(self._end - time.monotonic(), 0.0)

    @property
    def has_passed(self) -> bool:
        """Whether nothing more may be started."""
        return self.remaining <= 0.0
