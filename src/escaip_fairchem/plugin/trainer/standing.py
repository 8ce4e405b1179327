"""What a training tells of itself while it runs: ``status.json`` in its folder of checkpoints."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from escaip_fairchem.errors import RunFolderError
from escaip_fairchem.runs.records import STARTING, Status, now, read_status, write_status

_CARRIED_OVER = (
    "step", "total_steps", "epoch", "total_epochs", "saved_step", "primary_metric", "best", "metrics", "metrics_step",
)  # fmt: skip
SECONDS_BETWEEN = 5.0
"""At least, between two writes that only tell of more steps."""


class Standing:
    """Writes where a training stands, on its first process. A file that cannot be written stops no training.

    Args:
        folder: The run's folder of checkpoints; None writes nothing.
        run: Name of the run.
        processes: Of the run.
        gpus: Of the run.
        log: File that this process prints to, if that is known.
    """

    def __init__(
        self, folder: str | Path | None, *, run: str, processes: int, gpus: int, log: str | None = None
    ) -> None:
        self._folder = None if folder is None else Path(folder)
        self._written = -SECONDS_BETWEEN
        self._has_failed = False
        self.status = Status(
            run=run,
            state=STARTING,
            processes=processes,
            gpus=gpus,
            host=socket.gethostname(),
            pid=os.getpid(),
            job=job_name(os.environ),
            restarts=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
            log=log,
        )

    def begin(self) -> None:
        """Tell that the training starts; what an earlier part of it has told of its progress stays."""
        try:
            earlier = None if self._folder is None else read_status(self._folder)
        except RunFolderError as error:
            logging.warning(f"{error}; it is replaced")
            earlier = None
        if earlier is not None:
            self.status = replace(self.status, **{name: getattr(earlier, name) for name in _CARRIED_OVER})
        self._write()

    def progress(self, **values: Any) -> None:
        """Tell of more steps; not every time."""
        self.status = replace(self.status, **values)
        if time.monotonic() - self._written >= SECONDS_BETWEEN:
            self._write()

    def change(self, **values: Any) -> None:
        """Tell of something else, at once."""
        self.status = replace(self.status, **values)
        self._write()

    def _write(self) -> None:
        if self._folder is None:
            return
        self._written = time.monotonic()
        try:
            write_status(self._folder, replace(self.status, updated=now()))
        except OSError as error:
            if not self._has_failed:
                logging.warning(f"{self._folder}: cannot tell where the training stands ({error}); it goes on")
            self._has_failed = True


def job_name(environment: Mapping[str, str]) -> str | None:
    """SLURM's name of the job that a process belongs to, ``17`` or ``17_3``; None outside of SLURM."""
    if environment.get("SLURM_ARRAY_JOB_ID"):
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment.get('SLURM_ARRAY_TASK_ID')}"
    return environment.get("SLURM_JOB_ID")
