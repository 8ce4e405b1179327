"""Why a job failed, from what it printed: for those that fail before they can write a record."""

from __future__ import annotations

import os
import re
from pathlib import Path

_LAST = 2**16
"""Bytes at the end of a file that are looked at."""
_LONGEST = 400  # characters
_ERROR = re.compile(
    r"^(?:fairchem[^:]*: error|(?:\w+\.)*(?P<kind>\w*(?:Error|Exception|Exit|Interrupt))): (?P<words>.*\S)",
    re.MULTILINE,
)
_SIGNAL = re.compile(
    r"^srun: error: (?P<node>\S+): (?P<tasks>tasks? \S+): (?P<words>(?!Exited|Terminated).*\S)", re.MULTILINE
)
"""srun's word of tasks that a signal ended; those that it terminates itself are not the reason."""
_OWN = "escaip_fairchem."


def last_error(log: Path) -> str:
    """The last error among the last words of a job.

    Args:
        log: File that its first process prints to, ``…/JOB_0_log.out``. Errors are in ``…_log.err`` beside it, for
            every process in a file of its own; the first process that has one counts.

    Returns:
        As Python prints it, without the modules; for errors meant for the user their message alone. Where Python has
        printed none, which of them was killed, as srun says. Empty where nothing is said, or nothing can be read.
    """
    job, mark, _ = log.name.rpartition("_0_log.")
    if not mark:
        return ""
    try:
        files = sorted(log.parent.glob(f"{job}_*_log.err"), key=_rank)
    except OSError:
        return ""
    texts = [_end(file) for file in files]
    errors = (words for text in texts if (words := _last_error(text)))
    return next(errors, "") or next((words for text in texts if (words := _first_signal(text))), "")


def _rank(file: Path) -> int:
    number = file.name.removesuffix("_log.err").rpartition("_")[2]
    return int(number) if number.isdigit() else -1


def _end(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            stream.seek(max(os.fstat(stream.fileno()).st_size - _LAST, 0))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def _first_signal(text: str) -> str:
    found = _SIGNAL.search(text)
    return f"{found['tasks']} on {found['node']}: {found['words']}" if found else ""


def _last_error(text: str) -> str:
    found = list(_ERROR.finditer(text))
    if not found:
        return ""
    error = found[-1]
    is_for_users = error["kind"] is None or error[0].startswith(_OWN)
    words = error["words"] if is_for_users else f"{error['kind']}: {error['words']}"
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"
