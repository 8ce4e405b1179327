"""Runs that failed or were ended, queued again to go on from their last checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from escaip_fairchem.plugin.launch.site import MEMORY_ELSEWHERE, Request
from escaip_fairchem.plugin.launch.submission import MAX_REQUEUES_KEY, Planned, submit
from escaip_fairchem.runs.records import Submission


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is asked of SLURM differently this time; None leaves it as it was.

    Attributes:
        hours: Time limit.
        memory_gb: Per node.
        partition: Name of a partition.
        account: Name of an account.
        qos: Name of a quality of service.
        exclude: Nodes not to use.
    """

    hours: int | None = None
    memory_gb: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    exclude: str | None = None

    def apply(self, parameters: Mapping[str, Any]) -> Request:
        """The request of a record, changed."""
        known = dict(parameters)
        requeues = int(known.pop(MAX_REQUEUES_KEY))
        changed = {
            "timeout_min": None if self.hours is None else 60 * self.hours,
            "slurm_mem": None if self.memory_gb is None else f"{self.memory_gb}GB",
            "slurm_partition": self.partition,
            "slurm_account": self.account,
            "slurm_qos": self.qos,
        }
        known |= {key: value for key, value in changed.items() if value is not None}
        # These go into the job's file last, and would undo what is changed.
        additional = dict(known.get("slurm_additional_parameters") or {})
        if self.memory_gb is not None:
            additional = {key: value for key, value in additional.items() if key not in MEMORY_ELSEWHERE}
        if self.exclude is not None:
            additional["exclude"] = self.exclude
        known["slurm_additional_parameters"] = additional
        return Request(parameters=known, max_requeues=requeues, minutes=int(known["timeout_min"]))


def resubmit(submissions: Sequence[Submission], changes: Changes) -> dict[str, str]:
    """Submit runs again; those that ask for the same go into one array.

    A job finds the checkpoints in its run's folder, so it goes on from there.

    Args:
        submissions: How the runs were submitted last.
        changes: What is different this time.

    Returns:
        SLURM's names of the new jobs, by the runs' names.

    Raises:
        ConfigError: SLURM refuses.
    """
    groups: dict[str, list[Submission]] = {}
    for one in submissions:
        alike = [changes.apply(one.parameters).parameters, one.logdir, one.cwd]
        groups.setdefault(json.dumps(alike, sort_keys=True, default=str), []).append(one)
    jobs: dict[str, str] = {}
    for members in groups.values():
        first = members[0]
        with _working_in(first.cwd):
            names = submit([_again(one) for one in members], changes.apply(first.parameters), Path(first.logdir))
        jobs |= {one.run: name for one, name in zip(members, names, strict=True)}
    return jobs


def _again(submission: Submission) -> Planned:
    return Planned(
        config=dict(submission.config),
        config_yml=submission.config_yml,
        sweep_yml=submission.sweep_yml,
        changes=submission.changes,
        attempts=submission.attempts,
    )


@contextmanager
def _working_in(folder: str) -> Iterator[None]:
    """Submit from a folder: jobs run where sbatch was called, and their configurations' paths start from there."""
    before = Path.cwd()
    os.chdir(folder or before)
    try:
        yield
    finally:
        os.chdir(before)
