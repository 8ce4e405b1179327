"""Stops from outside: noted when a signal arrives, agreed on by all processes, acted on between two steps.

A preemption's signal reaches the processes of a run at different moments, in the middle of different steps. If each
acted at once, some would wait for others in a collective operation, and nobody would know the random numbers of all at
one step. So the first process names a step, and all of them stop after it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed
from fairchem.core.common import distutils

from escaip_fairchem.plugin.trainer.distributed import gather_everywhere


class StoppedFromOutsideError(Exception):
    """Training has stopped between two steps, with its checkpoint written, because a signal asked for it.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Stops:
    """Whether somebody asked this run to stop, and when all of its processes do.

    Attributes:
        run: Name of the run, the same for all of its processes.
        number: The signal that asked this process, and once it is agreed, the run; None if none did.
        wait_for_step: Whether a stop has to wait for the end of the step: true while the training loop takes steps.
    """

    def __init__(self) -> None:
        self.run = ""
        self.number: int | None = None
        self.wait_for_step = False
        self._store: Any = None
        self._last_step: int | None = None

    def ask(self, number: int) -> None:
        """Note a signal; safe in its handler. The first one counts."""
        if self.number is None:
            self.number = int(number)  # before Python 3.11 the text of a member of `Signals` is its name

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Within this block stops wait for :meth:`agreed`."""
        self.wait_for_step = True
        try:
            yield
        finally:
            self.wait_for_step = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this block, where nothing is agreed on for long, stops do not wait."""
        before, self.wait_for_step = self.wait_for_step, False
        if self.number is not None and callable(signal.getsignal(self.number)):
            signal.raise_signal(self.number)  # what was noted a moment ago would be looked at after hours
        try:
            yield
        finally:
            self.wait_for_step = before

    def agreed(self, step: int, *, next_step: int) -> bool:
        """Whether all processes stop after this step; to be called by all of them, at steps that all wait for.

        Such a step has a collective operation whose result each process reads. So nobody can be done with it before the
        first process has begun it, and what that one has announced after an earlier such step is known to all by then.
        It costs a message to the first process's store (some 0.1 ms).

        Args:
            step: The step that has just ended.
            next_step: The next one after which this will be called.
        """
        if distutils.get_world_size() == 1:
            return self.number is not None
        if self._store is None:
            self._store = torch.distributed.distributed_c10d._get_default_store()
        if self._last_step is None:
            if distutils.is_master():
                self._announce(next_step)
            else:
                self._listen()
        return self._last_step is not None and step >= self._last_step

    def asked_anywhere(self) -> bool:
        """Whether any process was asked to stop. Collective, for moments at which all wait for each other anyway."""
        asked = [number for number in gather_everywhere(self.number) if number is not None]
        if asked:
            self.number = asked[0]
        return bool(asked)

    def _announce(self, last_step: int) -> None:
        """On the first process: say when to stop and why, if any process was asked to."""
        if self.number is None and self._store.check([self._key("asked")]):
            self.number = int(self._store.get(self._key("asked")))
        if self.number is not None:
            self._last_step = last_step
            self._store.set(self._key("last_step"), f"{last_step} {self.number}")

    def _listen(self) -> None:
        """On the others: pass on what this process was asked, and hear what the first one says."""
        if self.number is not None:
            self._store.set(self._key("asked"), str(self.number))
        if self._store.check([self._key("last_step")]):
            # All end for the same reason, whichever signals they got: how a process ends depends on it.
            self._last_step, self.number = map(int, self._store.get(self._key("last_step")).split())

    def _key(self, name: str) -> str:
        return f"escaip_stop/{self.run}/{name}"
