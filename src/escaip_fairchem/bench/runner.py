"""Has cases measured by processes of their own, within a time limit."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from escaip_fairchem.bench.cases import DROPPED, FAILED, Case, Outcome, outcome_from
from escaip_fairchem.bench.timing import Deadline

TIME_LIMIT = "the time limit of the command"
LONGEST_TAIL = 300


class Runner:
    """Measures cases one after the other. Every case gets an outcome, also where time runs out.

    Args:
        deadline: When to stop.
        show: Called with a line about each case.
    """

    def __init__(self, deadline: Deadline, show: Callable[[str], None] = print) -> None:
        self.deadline = deadline
        self._show = show
        self.outcomes: list[Outcome] = []

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        """Measure cases.

        On the CPU each has a process of its own. On a GPU, whose allocator counts memory by itself and where starting
        takes long, cases that come together share one. What was asked before is answered from memory.
        """
        new = [case for case in cases if self._known(case) is None]
        for group in _groups(new):
            self.outcomes += self._run_group(group)
        return [outcome for outcome in map(self._known, cases) if outcome is not None]

    def one(self, case: Case) -> Outcome:
        """Measure one case."""
        return self.run([case])[0]

    def drop(self, case: Case, reason: str) -> Outcome:
        """Give a case up."""
        outcome = Outcome(case=case, status=DROPPED, reason=reason)
        self._say(outcome)
        self.outcomes.append(outcome)
        return outcome

    def _known(self, case: Case) -> Outcome | None:
        return next((outcome for outcome in self.outcomes if outcome.case == case), None)

    def _run_group(self, cases: Sequence[Case]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        while len(outcomes) < len(cases) and not self.deadline.has_passed:
            for outcome in _in_a_process(cases[len(outcomes) :], self.deadline):
                self._say(outcome)
                outcomes.append(outcome)
        for case in cases[len(outcomes) :]:
            outcomes.append(Outcome(case=case, status=DROPPED, reason=TIME_LIMIT))
            self._say(outcomes[-1])
        return outcomes

    def _say(self, outcome: Outcome) -> None:
        text = outcome.remark
        if outcome.is_measured and outcome.seconds:
            text = f"{min(outcome.seconds):.4g} s at best of {len(outcome.seconds)}"
        self._show(f"  {outcome.case.title}: {text or 'done'}")


def _groups(cases: Sequence[Case]) -> Iterator[Sequence[Case]]:
    if cases and all(case.device == "cuda" for case in cases):
        yield cases
    else:
        yield from ([case] for case in cases)


def _in_a_process(cases: Sequence[Case], deadline: Deadline) -> Iterator[Outcome]:
    """Outcomes of cases until all are done, the process has died over one of them, or time is up."""
    command = [sys.executable, "-m", "escaip_fairchem.bench.worker"]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            lines = _lines(process.stdout)
            with contextlib.suppress(BrokenPipeError), process.stdin as stream:  # it died at once: see below
                stream.write(json.dumps([case.as_dict() for case in cases]))
            for case in cases:
                try:
                    line = lines.get(timeout=min(deadline.remaining, threading.TIMEOUT_MAX))
                except queue.Empty:
                    yield Outcome(case=case, status=DROPPED, reason=TIME_LIMIT)
                    return
                if not line:
                    yield Outcome(case=case, status=FAILED, reason=_how_it_ended(process.wait(), log))
                    return
                yield outcome_from(json.loads(line))
        finally:
            process.kill()  # it is this command's own child, and has nothing left to do


def _lines(stream: IO[str]) -> queue.Queue[str]:
    """Lines of a stream as they come, then an empty one."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    return lines


def _how_it_ended(status: int, log: IO[str]) -> str:
    if status == -9:
        return "the process was killed, most likely for want of memory"
    log.seek(0)
    tail = " ".join(log.read().split())[-LONGEST_TAIL:]
    return f"the process ended with status {status}: {tail}"
