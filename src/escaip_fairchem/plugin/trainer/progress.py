"""What a person sees of a running training: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

_SHOWN_FIRST = ("epoch", "step", "lr", "loss")


def format_line(values: Mapping[str, float]) -> str:
    """One plain line: ``epoch: 0.5000, step: 10, lr: 1.00e-04, loss: 2.13e-01, …``, steps and epochs first."""
    order = [*(key for key in _SHOWN_FIRST if key in values), *(key for key in values if key not in _SHOWN_FIRST)]
    formats = {"epoch": "{:.4f}", "step": "{:d}", "samples_per_second": "{:.1f}"}
    return ", ".join(f"{key}: {formats.get(key, '{:.3e}').format(values[key])}" for key in order)


class Progress:
    """Shows the steps of one run. Use it as a context; nothing here waits for the device.

    Samples per second count from the previous report, without validations and saves in between.
    """

    def __init__(self, *, total_steps: int, first_step: int, visible: bool, terminal: bool | None = None) -> None:
        """Prepare.

        Args:
            total_steps: Steps of the whole run.
            first_step: Steps that were done before, in an earlier part of the run.
            visible: Whether this process shows anything: only one of several does.
            terminal: Whether to draw a bar; by default if standard error is a terminal.
        """
        self._visible = visible
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self.total_steps, self._first = total_steps, first_step
        self.seconds_per_step: float | None = None
        self._bar: tqdm[Any] | None = None
        self._stack = ExitStack()
        self._samples = self._steps = 0
        self._busy = 0.0
        self._since = time.perf_counter()

    def __enter__(self) -> Progress:
        if self._visible and self._terminal:
            self._bar = self._stack.enter_context(
                tqdm(total=self.total_steps, initial=self._first, desc="training", unit="step", dynamic_ncols=True)
            )
            # Log lines go above the bar instead of through it.
            self._stack.enter_context(logging_redirect_tqdm())
        self._since = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def step(self, samples: int) -> None:
        """Count a step.

        Args:
            samples: Structures in its batches, over all processes.
        """
        self._samples += samples
        self._steps += 1
        if self._bar is not None:
            self._bar.update(1)

    def pause(self) -> None:
        """Stop the clock: a validation or a save begins."""
        self._busy += time.perf_counter() - self._since

    def proceed(self) -> None:
        """Start the clock again."""
        self._since = time.perf_counter()

    def rate(self) -> float:
        """Samples per second since the last call."""
        self.pause()
        rate = self._samples / self._busy if self._busy > 0 else 0.0
        self.seconds_per_step = self._busy / self._steps if self._steps else None
        self._samples, self._steps, self._busy = 0, 0, 0.0
        self.proceed()
        return rate

    def report(self, values: Mapping[str, float]) -> None:
        """Show what was measured at a logging step."""
        if not self._visible:
            return
        if self._bar is None:
            logging.info(format_line(values))
        else:
            shown = {"loss": f"{values['loss']:.3e}", "samples/s": f"{values['samples_per_second']:.1f}"}
            self._bar.set_postfix(shown)
