"""Has cases measured by processes of their own, within a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from escaip_fairchem.bench.cases import DROPPED, FAILED, OUT_OF_MEMORY, Case, Outcome, outcome_from
from escaip_fairchem.bench.timing import Deadline
from escaip_fairchem.data.pool import available_cores

TIME_LIMIT = "the time limit of the command"
LONGEST_TAIL = 300


class Runner:
    """Measures cases one after the other. Every case gets an outcome, also where time runs out.

    On the CPU each case has a process of its own. On a GPU, whose allocator counts memory by itself and where starting
    takes long, a process goes on until it fails. What was asked before is answered from memory.

    Use it as a context, so that no process stays behind.

    Args:
        deadline: When to stop.
        show: Called with a line about each case.
        threads: Threads of a process that measures on the CPU; None leaves it to torch.
        between: Called after each case, when nothing is being measured.
    """

    def __init__(
        self,
        deadline: Deadline,
        show: Callable[[str], None] = print,
        threads: int | None = None,
        between: Callable[[], None] | None = None,
    ) -> None:
        self.deadline = deadline
        self._show = show
        self._threads = threads
        self._between = between
        self._worker: Worker | None = None
        self.outcomes: list[Outcome] = []

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_worker()

    def another(self, *, share: int) -> Runner:
        """A runner for the same command whose processes have one of so many equal shares of the cores."""
        return Runner(self.deadline, self._show, threads=max(available_cores() // share, 1))

    def interrupt(self) -> None:
        """End the process that is measuring, from another thread; its case has then failed."""
        worker = self._worker
        if worker is not None:
            worker.kill()

    def run(self, cases: Sequence[Case]) -> list[Outcome]:
        """Measure cases."""
        return [self.one(case) for case in cases]

    def one(self, case: Case) -> Outcome:
        """Measure one case."""
        known = next((it for it in self.outcomes if it.case == case and it.status != DROPPED), None)
        return known if known is not None else self._keep(self._measure(case))

    def drop(self, case: Case, reason: str) -> Outcome:
        """Give a case up."""
        return self._keep(Outcome(case=case, status=DROPPED, reason=reason))

    @contextmanager
    def share_of_time(self, share: float) -> Iterator[None]:
        """Let a block have only that share of the time that is left."""
        whole = self.deadline
        self.deadline = whole.within(share)
        try:
            yield
        finally:
            self.deadline = whole

    def _keep(self, outcome: Outcome) -> Outcome:
        self.outcomes.append(outcome)
        text = outcome.remark
        if outcome.is_measured and outcome.seconds:
            text = f"{min(outcome.seconds):.4g} s at best of {len(outcome.seconds)}"
        self._show(f"  {outcome.case.title}: {text or 'done'}")
        return outcome

    def _measure(self, case: Case) -> Outcome:
        if self.deadline.has_passed:
            return Outcome(case=case, status=DROPPED, reason=TIME_LIMIT)
        if self._worker is None:
            self._worker = Worker(self._threads)
        outcome = self._worker.ask(case, self.deadline)
        # A GPU's errors can spoil all that follows in the process; a lack of memory does not.
        is_spoilt = outcome.status == FAILED and outcome.reason != OUT_OF_MEMORY
        if case.device == "cpu" or is_spoilt or not self._worker.is_alive:
            self._end_worker()
        if self._between is not None:
            self._between()
        return outcome

    def _end_worker(self) -> None:
        if self._worker is not None:
            self._worker.end()
            self._worker = None


class Worker:
    """A measuring process.

    Args:
        threads: Of torch; None leaves it to torch.
    """

    def __init__(self, threads: int | None = None) -> None:
        own = {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 -- see end
        self._process = subprocess.Popen(
            [sys.executable, "-m", "escaip_fairchem.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **own},
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.is_alive = True

    def ask(self, case: Case, deadline: Deadline) -> Outcome:
        """Have a case measured. The process is of no more use if it dies over it, or is not done in time."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(json.dumps(case.as_dict()) + "\n")
            self._process.stdin.flush()
        try:
            line = self._answers.get(timeout=min(deadline.remaining, threading.TIMEOUT_MAX))
        except queue.Empty:
            self.is_alive = False
            return Outcome(case=case, status=DROPPED, reason=TIME_LIMIT)
        if not line:
            self.is_alive = False
            return Outcome(case=case, status=FAILED, reason=self._how_it_ended())
        return outcome_from(json.loads(line))

    def kill(self) -> None:
        """Stop the process at once."""
        self._process.kill()  # it is this command's own child

    def end(self) -> None:
        """End the process, which has nothing left to do."""
        self.is_alive = False
        self.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()

    def _read(self) -> None:
        """Pass on the answers as they come, then an empty one."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _how_it_ended(self) -> str:
        status = self._process.wait()
        if status == -9:
            return "the process was killed, most likely for want of memory"
        self._log.seek(0)
        tail = " ".join(self._log.read().split())[-LONGEST_TAIL:]
        return f"the process ended with status {status}: {tail}"
