"""Run folders: names that never collide, and a lock that keeps a second run out of a folder in use."""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import logging
import os
import re
import secrets
import socket
import time
import weakref
from pathlib import Path
from typing import Any

from escaip_fairchem.errors import RunFolderError

LOCK_NAME = "run.lock"
_TRIES, _SECONDS_BETWEEN_TRIES = 4, 0.1


def unique_run_name(identifier: str | None, now: datetime.datetime | None = None) -> str:
    """Name a run so that a person can read it and no other run has it.

    Args:
        identifier: What the user called the run; characters that do not belong into a folder's name become ``_``.
        now: The time to use.

    Returns:
        ``2025-01-31-23-59-58-identifier-3f9a1c``: local time, identifier, and 24 random bits that do not come from
        (and do not advance) any seeded generator.
    """
    parts = [(now or datetime.datetime.now()).strftime("%Y-%m-%d-%H-%M-%S")]
    if identifier:
        parts.append(re.sub(r"[^\w.+=-]", "_", identifier))
    return "-".join([*parts, secrets.token_hex(3)])


class RunFolderLock:
    """The right to write into a run folder, held by one process at a time.

    The operating system drops the lock when the process ends, in whatever way it ends. Where the file system has no
    locks, the process that the lock file names is looked up instead.
    """

    def __init__(self, folder: str | Path) -> None:
        """Name the folder; nothing is locked yet.

        Args:
            folder: An existing folder.
        """
        self.path = Path(folder) / LOCK_NAME
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the folder.

        Raises:
            RunFolderError: Another run holds it; the message names its host, process and start.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = _lock_soon(descriptor)
            holder = _read_holder(descriptor)
            if locked is False or (locked is None and _may_be_alive(holder)):
                raise RunFolderError(self._refusal(holder, certain=locked is False))
            if holder:
                logging.info(f"{self.path}: left by {_describe(holder)}, which has ended; taking the folder over")
            _write_holder(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _close_in_forked_children(self)
        self._finalizer = weakref.finalize(self, _give_back, descriptor)

    def release(self) -> None:
        """Give the folder back; does nothing if it is not held. The end of the process does the same."""
        if self._descriptor is not None:
            self._descriptor = None
            self._finalizer()  # acts once

    def close_descriptor(self) -> None:
        """Forget the open file without touching its contents: what a forked child must do."""
        if self._descriptor is not None:
            self._finalizer.detach()
            os.close(self._descriptor)
            self._descriptor = None

    def _refusal(self, holder: dict[str, Any], *, certain: bool) -> str:
        remedy = (
            "wait for it, stop it, or start this run under another --timestamp-id"
            if certain
            else f"if that process is gone, delete {self.path}; or start this run under another --timestamp-id"
        )
        return f"{self.path.parent}: the run folder is in use by {_describe(holder)}; {remedy}"


def _give_back(descriptor: int) -> None:
    """Close a lock file, and say in it that nobody holds the folder: where there are no locks, this is what counts."""
    os.ftruncate(descriptor, 0)
    os.close(descriptor)


def _lock_soon(descriptor: int) -> bool | None:
    """As `_lock`, but whoever only looks whether the folder is in use holds it for an instant."""
    for _ in range(_TRIES - 1):
        locked = _lock(descriptor)
        if locked is not False:
            return locked
        time.sleep(_SECONDS_BETWEEN_TRIES)
    return _lock(descriptor)


def _lock(descriptor: int) -> bool | None:
    """True if locked, False if another process has it, None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            return None
        raise
    return True


def _read_holder(descriptor: int) -> dict[str, Any]:
    text = os.pread(descriptor, 4096, 0).decode(errors="replace")
    try:
        holder = json.loads(text) if text.strip() else {}
    except json.JSONDecodeError:
        # A process that was killed between truncating and writing leaves half a record; it holds nothing.
        return {}
    return holder if isinstance(holder, dict) else {}


def _write_holder(descriptor: int) -> None:
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        **_job(),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(holder) + "\n").encode(), 0)


def _job() -> dict[str, str | None]:
    """SLURM's name of this job, the same after it was requeued, and how many times it was."""
    return {"job": os.environ.get("SLURM_JOB_ID"), "restarts": os.environ.get("SLURM_RESTART_COUNT")}


def _may_be_alive(holder: dict[str, Any]) -> bool:
    """Whether the named process may still run; on another host nobody can tell, so it may."""
    if not holder:
        return False
    own = _job()
    if own["job"] is not None and own["job"] == holder.get("job") and own["restarts"] != holder.get("restarts"):
        return False  # SLURM has stopped the job wherever it ran before it starts it again
    if holder.get("host") != socket.gethostname():
        return True
    try:
        os.kill(int(holder.get("pid", 0)), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _describe(holder: dict[str, Any]) -> str:
    if not holder:
        return "a process that has not said which"
    job = f", SLURM job {holder['job']}" if holder.get("job") else ""
    return f"process {holder.get('pid')} on {holder.get('host')} (since {holder.get('start')}{job})"


_held: weakref.WeakSet[RunFolderLock] = weakref.WeakSet()


def _close_in_forked_children(lock: RunFolderLock) -> None:
    """Keep data-loader workers, which inherit open files, from holding the lock longer than the run itself."""
    if not _fork_hook.installed:
        os.register_at_fork(after_in_child=_fork_hook)
        _fork_hook.installed = True
    _held.add(lock)


class _ForkHook:
    installed = False

    def __call__(self) -> None:
        for lock in list(_held):
            lock.close_descriptor()


_fork_hook = _ForkHook()
