"""In which state runs are, by what their folders say and by what SLURM says."""

from __future__ import annotations

import datetime
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from escaip_fairchem.errors import RunFolderError
from escaip_fairchem.runs import records, slurm
from escaip_fairchem.runs.logs import last_error
from escaip_fairchem.runs.records import Status, Submission
from escaip_fairchem.runs.slurm import Job

QUEUED, RUNNING, PREEMPTED, FINISHED = "queued", "running", "preempted", "finished"
FAILED, STOPPED, UNKNOWN = "failed", "stopped", "unknown"
STATES = (RUNNING, QUEUED, PREEMPTED, FINISHED, STOPPED, FAILED, UNKNOWN)
UNDER_WAY = (RUNNING, QUEUED, PREEMPTED)
"""States that will change by themselves."""

LOCK_NAME = "run.lock"
_RECORDS = (records.STATUS_NAME, records.SUBMISSION_NAME, "checkpoint.pt")
_LIVE = (records.STARTING, records.TRAINING, records.EVALUATING)
_ENDS = {
    "OUT_OF_MEMORY": "out of memory: killed by SLURM; ask for more with --slurm-mem",
    "TIMEOUT": "time limit",
    "DEADLINE": "deadline",
    "CANCELLED": "cancelled",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not start",
    "PREEMPTED": "preempted, and not queued again",
    "REVOKED": "taken over by another cluster",
}

Jobs = Mapping[str, Job]
Query = Callable[[Iterable[str]], Jobs | None]


@dataclass(frozen=True, kw_only=True)
class RunState:
    """A run as it stands.

    Attributes:
        run: Name of the run, its folder's.
        folder: Folder of its checkpoints, an absolute path.
        state: One of :data:`STATES`. ``preempted``: it ran, and is queued again; ``stopped``: it saved, was ended from
            outside, and is not queued.
        why: Why it waits, has stopped or failed; empty where there is nothing to say.
        job: SLURM's name of its job; None outside of SLURM.
        status: What the training last wrote; None before it wrote anything.
        submission: How it was handed to SLURM; None if it was not.
        seconds_left: Of training, evaluations left out; None where that is not known, and for what has ended.
        log: File that its first process prints to; None where that is not known.
    """

    run: str
    folder: Path
    state: str
    why: str = ""
    job: str | None = None
    status: Status | None = None
    submission: Submission | None = None
    seconds_left: float | None = None
    log: Path | None = None


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What a folder says; ``problem`` says why nothing can be read from it."""

    folder: Path
    status: Status | None = None
    submission: Submission | None = None
    problem: str = ""

    @property
    def jobs(self) -> set[str]:
        """Jobs that have to be asked about."""
        names = {record.job for record in (self.status, self.submission) if record is not None and record.job}
        return set() if self.is_finished else names

    @property
    def is_finished(self) -> bool:
        """Whether the newest job, as far as the folder tells, wrote that it was done."""
        finished = self.status is not None and self.status.state == records.FINISHED
        return finished and (self.submission is None or self.submission.job == self.status_job)

    @property
    def status_job(self) -> str | None:
        return None if self.status is None else self.status.job

    def newest(self, jobs: Jobs | None) -> tuple[Status | None, str | None]:
        """What the newest job wrote, and its name.

        A folder may hold the status of an earlier job, or of a training outside of SLURM before or after it.
        """
        status, submission = self.status, self.submission
        if status is None or submission is None or status.job == submission.job:
            return status, self.status_job if submission is None else submission.job
        submitted = (jobs or {}).get(submission.job)
        if (submitted is None or submitted.has_ended) and _time(status.updated) >= _time(submission.submitted):
            return status, status.job
        return None, submission.job


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Find the folders of runs.

    Args:
        paths: Each a ``--run-dir`` with all of its runs, its folder ``checkpoints``, or one run's folder in that.

    Returns:
        Absolute paths, each once.

    Raises:
        RunFolderError: In one of them is no run.
    """
    found: dict[Path, None] = {}
    for path in paths:
        candidates = ([path], sorted(path.glob("checkpoints/*")), sorted(path.glob("*")))
        folders = next((runs for some in candidates if (runs := [one for one in some if _is_run(one)])), None)
        if folders is None:
            wrong = "no run is there" if path.is_dir() else "no such folder"
            raise RunFolderError(
                f"{path}: {wrong}; give the --run-dir of trainings, or a run's folder of checkpoints "
                f"(RUN_DIR/checkpoints/NAME, with {', '.join(_RECORDS[:-1])} or {_RECORDS[-1]})"
            )
        found.update(dict.fromkeys(folder.resolve() for folder in folders))
    return list(found)


def read_states(folders: Iterable[Path], query: Query = slurm.query_jobs) -> list[RunState]:
    """Tell in which states runs are. SLURM is asked once for all of them, and only if one of them was its job.

    Args:
        folders: Their folders of checkpoints.
        query: Asks SLURM; see :func:`escaip_fairchem.runs.slurm.query_jobs`.
    """
    runs = [_read(folder) for folder in folders]
    names = set().union(*(run.jobs for run in runs))
    jobs = query(names) if names else {}
    return [_state(run, jobs) for run in runs]


def lock_is_held(folder: Path) -> bool | None:
    """Whether a process holds a run's folder.

    The lock file is neither written nor made. It is locked, together with any other reader, for an instant.

    Returns:
        None where that cannot be told: the file system has no locks, or the file may not be read.
    """
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    finally:
        os.close(descriptor)  # unlocks it
    return False


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _RECORDS)


def _read(folder: Path) -> _Run:
    try:
        return _Run(folder=folder, status=records.read_status(folder), submission=records.read_submission(folder))
    except RunFolderError as error:  # one damaged record must not hide all the other runs
        return _Run(folder=folder, problem=str(error))


def _state(run: _Run, jobs: Jobs | None) -> RunState:
    status, name = run.newest(jobs)
    state, why = _judge(run, jobs)
    return RunState(
        run=run.folder.name,
        folder=run.folder,
        state=state,
        why=why,
        job=name,
        status=run.status,
        submission=run.submission,
        seconds_left=None if state in (FINISHED, FAILED) else _seconds_left(run.status),
        log=_log(run, status),
    )


def _log(run: _Run, status: Status | None) -> Path | None:
    """The log of the newest job, which wrote a status or did not; without one, of any."""
    logs = [record.log for record in (status, run.submission, run.status) if record is not None and record.log]
    return Path(logs[0]) if logs else None


def _judge(run: _Run, jobs: Jobs | None) -> tuple[str, str]:
    """State and why."""
    if run.problem or (run.status is None and run.submission is None):
        missing = f"there is no {records.STATUS_NAME}: it was trained by a version that wrote none"
        return UNKNOWN, run.problem or missing
    status, name = run.newest(jobs)
    if status is not None and status.state == records.FINISHED:
        return FINISHED, status.why
    job = None if name is None else (jobs or {}).get(name)
    if job is None:
        return _by_folder(run.folder, status, name, _log(run, status), is_reachable=jobs is not None)
    if job.waits:
        return _waiting(job, status, run.status)
    return _ended(job, status, _log(run, status)) if job.has_ended else _active(job, status)


def _waiting(job: Job, status: Status | None, earlier: Status | None) -> tuple[str, str]:
    """Of a queued job.

    Args:
        job: What SLURM says.
        status: What this job wrote.
        earlier: What any job of the run wrote last.
    """
    reason = job.reason or job.state.lower()
    if earlier is None:
        return QUEUED, reason
    if status is not None and status.state == records.FAILED:
        return PREEMPTED, _join(f"queued again: {reason}", status.why and f"before that: {status.why}")
    if earlier.state in (records.FAILED, records.FINISHED):
        return QUEUED, f"submitted again: {reason}"
    return PREEMPTED, f"queued again: {reason}"


def _active(job: Job, status: Status | None) -> tuple[str, str]:
    """Of a job that has its nodes."""
    says = "" if job.state in ("RUNNING", "COMPLETING") else f"SLURM says {job.state}"
    if status is None:
        return RUNNING, says or "it has written nothing yet"
    if status.state == records.FAILED:  # SLURM may queue it again: its node has failed, for example
        return RUNNING, _join("it has failed, and its job is about to end", status.why, ": ")
    if status.state == records.STOPPED:  # it is about to end, or SLURM has just started it again
        return RUNNING, _join(says, _join("it last wrote that it stopped", status.why, ": "))
    return RUNNING, says


def _ended(job: Job, status: Status | None, log: Path | None) -> tuple[str, str]:
    """Of a job that is over."""
    own = "" if status is None else status.why
    if job.state == "COMPLETED":
        if status is None:
            return FINISHED, "says SLURM; the job wrote nothing"
        if status.state in _LIVE:
            return FAILED, _join(f"its process ended, and has written nothing since {status.updated}; see its log", own)
        return status.state, own
    if job.state == "FAILED":
        words = own or _failure(job.reason, log)
    else:
        words = _join(_ENDS.get(job.state, f"SLURM says {job.state}"), own)
    return (STOPPED if status is not None and status.state == records.STOPPED else FAILED), words


def _failure(reason: str, log: Path | None) -> str:
    if reason in ("", "NonZeroExitCode"):
        return (log and last_error(log)) or "its process ended with an error; see its log"
    if reason == "JobLaunchFailure":  # what some ways of counting memory call it
        return (
            "JobLaunchFailure: out of memory (ask for more with --slurm-mem), or it could not be started; see its log"
        )
    return f"{reason}; see its log"


def _by_folder(
    folder: Path, status: Status | None, name: str | None, log: Path | None, *, is_reachable: bool
) -> tuple[str, str]:
    """Of a run that SLURM says nothing about."""
    if status is not None and status.state not in _LIVE:
        return status.state, status.why
    is_held = lock_is_held(folder)
    if is_held:
        return RUNNING, ""
    if status is None:
        gone = f"SLURM no longer knows job {name}, which wrote nothing: cancelled before it started, or see its log"
        return (FAILED, (log and last_error(log)) or gone) if is_reachable else (QUEUED, "SLURM cannot be asked")
    process = f"process {status.pid} on {status.host}"
    if is_held is None:
        alive = _is_alive(status)
        if alive is None:
            return UNKNOWN, f"nobody can tell from here whether {process} still runs; it last wrote at {status.updated}"
        if alive:
            return RUNNING, ""
    since = f"no sign of life since {status.updated} ({process})"
    return FAILED, _join(f"{since}: killed, out of memory, or its node failed", status.why)


def _is_alive(status: Status) -> bool | None:
    """Whether the process that wrote a status runs; None if it was one of another host."""
    if status.host != socket.gethostname() or status.pid <= 0:
        return None
    try:
        os.kill(status.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _seconds_left(status: Status | None) -> float | None:
    if status is None or not status.total_steps or status.seconds_per_step is None:
        return None
    return max(status.total_steps - status.step, 0) * status.seconds_per_step


def _join(first: str, second: str, between: str = "; ") -> str:
    return between.join(part for part in (first, second) if part)


def _time(text: str) -> float:
    """A record's time in seconds; before all others if it has none."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return float("-inf")
