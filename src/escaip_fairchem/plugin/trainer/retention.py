"""Which checkpoints of a run stay: the newest, some before it, and the best."""

from __future__ import annotations

import logging
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from escaip_fairchem.errors import CheckpointError
from escaip_fairchem.plugin.checkpoints import atomic_file, read_checkpoint

NEWEST = "checkpoint.pt"
KEPT_BY_DEFAULT = 2
"""Checkpoints to continue from (``optim.keep_checkpoints``): the newest, and one in case that it is damaged."""
_EARLIER = re.compile(r"checkpoint_step_(\d+)\.pt")


def earlier_checkpoints(folder: str | Path) -> list[Path]:
    """Checkpoints before the newest, latest first."""
    found = [(int(match[1]), path) for path in Path(folder).glob("*.pt") if (match := _EARLIER.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def continuable(folder: str | Path) -> list[Path]:
    """All checkpoints that a training can go on from, newest first."""
    newest = Path(folder) / NEWEST
    return [path for path in (newest, *earlier_checkpoints(folder)) if path.is_file()]


def keep_another_name(newest: Path, name: str) -> None:
    """Keep the newest checkpoint under another name, before a save replaces it."""
    if not newest.is_file():
        return
    target = newest.with_name(name)
    target.unlink(missing_ok=True)
    try:
        os.link(newest, target)
    except OSError:  # some file systems know no second name for a file
        with newest.open("rb") as source, atomic_file(target) as copy:
            shutil.copyfileobj(source, copy)


def prune(folder: str | Path, *, keep: int) -> None:
    """Remove the oldest checkpoints, after a save, so that so many are left; the best one does not count."""
    for path in earlier_checkpoints(folder)[keep - 1 :]:
        path.unlink(missing_ok=True)


def read_newest(folder: str | Path, *, trusted: bool) -> tuple[Path, dict[str, Any]]:
    """Read the newest checkpoint of a run that is whole, and say which ones are not.

    Args:
        folder: The run's folder of checkpoints.
        trusted: As for `read_checkpoint`.

    Returns:
        The file and its contents.

    Raises:
        CheckpointError: None can be read; the message is about the newest.
    """
    problems: list[CheckpointError] = []
    for path in continuable(folder):
        try:
            require_whole(path)
            checkpoint = read_checkpoint(path, trusted=trusted)
        except CheckpointError as error:
            problems.append(error)
            continue
        for problem in problems:
            logging.warning(f"{problem}; going on from {path} instead, step {checkpoint.get('step')}")
        return path, checkpoint
    raise problems[0] if problems else CheckpointError(f"{folder}: holds no checkpoint to go on from")


def require_whole(path: Path) -> None:
    """Compare a checkpoint's contents with the checksums that it was written with.

    Raises:
        CheckpointError: It was cut off, or some of it has changed.
    """
    if not zipfile.is_zipfile(path):
        return  # older formats have no checksums
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # bits that have changed make zipfile stumble in many ways
        raise CheckpointError(f"{path}: damaged ({type(error).__name__}: {error})") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged (the checksum of {damaged} is wrong)")
