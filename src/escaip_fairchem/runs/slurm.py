"""What SLURM says of jobs: ``squeue`` for those it still knows, ``sacct``, where there is one, for older ones."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

TIMEOUT_SECONDS = 10.0
"""Of each question. A controller that is down lets ``squeue`` try for much longer."""
ENDED = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    ]
)
WAITING = frozenset(["PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"])

_NAME = re.compile(r"(\d+)(?:_\d+)?")
_TIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")
_TASKS = re.compile(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]")
_SQUEUE_FORMAT = "%F|%K|%T|%L|%r"
"""Job (of an array the array's), task or N/A, state, time left, reason."""
_UNKNOWN_TO_SQUEUE = "Invalid job id specified"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job or one task of an array.

    Attributes:
        name: ``17`` or ``17_3``.
        state: SLURM's word, e.g. ``PENDING``, ``RUNNING``, ``OUT_OF_MEMORY``.
        reason: Why it waits or has ended, in SLURM's words; empty where there is none.
        seconds_left: Until its time limit; None where there is none.
    """

    name: str
    state: str
    reason: str = ""
    seconds_left: int | None = None

    @property
    def waits(self) -> bool:
        """Whether it is queued, for the first time or again."""
        return self.state in WAITING

    @property
    def has_ended(self) -> bool:
        """Whether it will never run again, unless somebody requeues it by hand."""
        return self.state in ENDED


def query_jobs(names: Iterable[str]) -> dict[str, Job] | None:
    """Ask SLURM about jobs.

    Args:
        names: ``17`` or ``17_3``; anything else is nothing that SLURM could know.

    Returns:
        Those that it knows, by name; None if it cannot be asked.
    """
    wanted = {name for name in names if _NAME.fullmatch(name)}
    if not wanted:
        return {}
    known = _ask_squeue(wanted)
    if known is None:
        return None
    forgotten = wanted - known.keys()
    # Of jobs that the controller has forgotten, accounting may still believe that they run.
    old = {name: job for name, job in _ask_sacct(forgotten).items() if job.has_ended} if forgotten else {}
    return {name: job for name, job in {**old, **known}.items() if name in wanted}


def parse_squeue(text: str) -> dict[str, Job]:
    """Read the output of ``squeue --noheader --array --format='%F|%K|%T|%L|%r'``; other lines are skipped."""
    jobs = {}
    for line in text.splitlines():
        words = line.strip().split("|", 4)
        if len(words) < 5:
            continue
        job, task, state, left, reason = words
        name = f"{job}_{task}" if task.isdigit() else job
        reason = "" if reason in ("None", "(null)") else reason
        jobs[name] = Job(name=name, state=state, reason=reason, seconds_left=parse_time(left))
    return jobs


def parse_sacct(text: str) -> dict[str, Job]:
    """Read the output of ``sacct --noheader --parsable2 --allocations --format=JobID,State``.

    Tasks of an array that never started are one line, ``17_[0-3,7%2]|CANCELLED by 1000``.
    """
    jobs = {}
    for line in text.splitlines():
        names, _, state = line.strip().partition("|")
        if state:
            for name in _expand(names):
                jobs[name] = Job(name=name, state=state.split()[0])
    return jobs


def parse_time(text: str) -> int | None:
    """Read SLURM's ``1-02:30:00``, ``2:30:00`` or ``30:00``.

    Returns:
        Seconds; None for words such as ``UNLIMITED`` and ``INVALID``.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(number or 0) for number in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _ask_squeue(names: set[str]) -> dict[str, Job] | None:
    options = ["--noheader", "--array", "--states=all", f"--format={_SQUEUE_FORMAT}", f"--jobs={_numbers(names)}"]
    answer = _ask(["squeue", *options])
    if answer is None:
        return None
    if answer.returncode:
        return {} if _UNKNOWN_TO_SQUEUE in answer.stderr else None  # it says so only when asked about a single one
    return parse_squeue(answer.stdout)


def _ask_sacct(names: set[str]) -> dict[str, Job]:
    options = ["--noheader", "--parsable2", "--allocations", "--format=JobID,State", f"--jobs={_numbers(names)}"]
    answer = _ask(["sacct", *options])
    return {} if answer is None or answer.returncode else parse_sacct(answer.stdout)


def _ask(words: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    """Run a program of SLURM's; None if there is none or it takes too long."""
    # A user's own filters, SQUEUE_PARTITION for example, would hide jobs.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SACCT_"))}
    try:
        return subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_SECONDS,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _numbers(names: set[str]) -> str:
    """The jobs, of arrays the arrays, as the programs want them."""
    return ",".join(sorted({name.partition("_")[0] for name in names}, key=int))


def _expand(names: str) -> Iterator[str]:
    """Name each task of ``17_[0-3,8-12:4%2]``; any other name is itself."""
    match = _TASKS.fullmatch(names)
    if match is None:
        yield names
        return
    job, tasks = match.groups()
    for part in tasks.split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        for task in range(int(first), int(last or first) + 1, int(step or 1)):
            yield f"{job}_{task}"
