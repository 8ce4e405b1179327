"""Two small files in a run's folder of checkpoints: where the training stands, and how it was submitted.

``status.json`` is written by the training itself, ``submission.json`` when a job is queued. Both are complete or
absent, and a person can read them. A reader must take neither for the truth about the present: a process that was
killed has written nothing since.
"""

from __future__ import annotations

import datetime
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from escaip_fairchem.errors import RunFolderError

STATUS_NAME, SUBMISSION_NAME = "status.json", "submission.json"
STARTING, TRAINING, EVALUATING = "starting", "training", "evaluating"
STOPPED, FINISHED, FAILED = "stopped", "finished", "failed"
STATES = (STARTING, TRAINING, EVALUATING, STOPPED, FINISHED, FAILED)

Record = TypeVar("Record", "Status", "Submission")


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a training stood when it last wrote.

    Attributes:
        run: Name of the run, its folder's.
        state: One of :data:`STATES`. ``stopped``: saved, and ended from outside, by a preemption for example.
        why: Why it stopped or failed; empty otherwise.
        step: Steps taken.
        total_steps: Of the whole training; 0 until that is known.
        epoch: Epochs so far.
        total_epochs: Of the whole training.
        saved_step: Step of the newest checkpoint; None before the first.
        seconds_per_step: Of late, evaluations left out; None before that is known.
        samples_per_second: Structures, of all processes.
        processes: Number of processes.
        gpus: Number of GPUs among them.
        primary_metric: The one that decides which checkpoint is best; None without validation.
        best: Its best value so far.
        metrics: Of the latest evaluation, by fairchem's names, eV and eV/Å.
        metrics_step: Step of that evaluation.
        host: Of the first process.
        pid: Of the first process.
        job: SLURM's name of the job, ``17`` or ``17_3``; None outside of SLURM.
        restarts: How often SLURM has started the job again.
        log: File that the first process prints to, where that is known.
        updated: When this was written, ISO 8601 with a time zone.
    """

    run: str
    state: str
    why: str = ""
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    total_epochs: int = 0
    saved_step: int | None = None
    seconds_per_step: float | None = None
    samples_per_second: float | None = None
    processes: int = 1
    gpus: int = 0
    primary_metric: str | None = None
    best: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    metrics_step: int | None = None
    host: str = ""
    pid: int = 0
    job: str | None = None
    restarts: int = 0
    log: str | None = None
    updated: str = ""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """How a run was handed to SLURM.

    Attributes:
        run: Name of the run, its folder's.
        job: SLURM's name of the job, ``17`` or ``17_3``.
        submitted: When, ISO 8601 with a time zone.
        logdir: The option ``--logdir``, an absolute path.
        log: File that the first process prints to.
        config: The whole configuration that the job has, the command line's flags included.
        parameters: What the job asks SLURM for, as submitit's parameters, and ``max_requeues``.
        config_yml: The configuration's file.
        cwd: Folder that the job runs in, which relative paths start from.
        sweep_yml: The sweep's file; None without.
        changes: What the sweep sets for this run, by dotted keys.
        attempts: How often the run was submitted, this time included.
    """

    run: str
    job: str
    submitted: str
    logdir: str
    log: str
    config: Mapping[str, Any]
    parameters: Mapping[str, Any]
    config_yml: str
    cwd: str = ""
    sweep_yml: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    attempts: int = 1


def now() -> str:
    """The time as records have it."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def write_status(folder: Path, status: Status) -> None:
    """Replace a folder's ``status.json``.

    Raises:
        OSError: It cannot be written.
    """
    _write(folder / STATUS_NAME, asdict(status))


def write_submission(folder: Path, submission: Submission) -> None:
    """Replace a folder's ``submission.json``.

    Raises:
        OSError: It cannot be written.
    """
    _write(folder / SUBMISSION_NAME, asdict(submission))


def read_status(folder: Path) -> Status | None:
    """Read a folder's ``status.json``; None where there is none.

    Raises:
        RunFolderError: It is none of ours.
    """
    return _read(folder / STATUS_NAME, Status)


def read_submission(folder: Path) -> Submission | None:
    """Read a folder's ``submission.json``; None where there is none.

    Raises:
        RunFolderError: It is none of ours.
    """
    return _read(folder / SUBMISSION_NAME, Submission)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is complete or absent, whoever reads meanwhile."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path, kind: type[Record]) -> Record | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {one.name for one in fields(kind)}
        return kind(**{name: value for name, value in content.items() if name in known})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{path}: cannot be read ({error}); it is a record of a run, delete it if it is damaged"
        ) from None
