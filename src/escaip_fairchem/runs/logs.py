"""Why a job failed, from what it printed: for those that fail before they can write a record."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_LAST = 2**16
"""Bytes at the end of a file that are looked at."""
_LONGEST = 400  # characters
_FOR_USERS, _PYTHON, _KILLED, _CONNECTION = range(4)
ATTEMPT = "escaip: a process of this job begins"
"""What every process prints when SLURM starts it; what is before that is of an earlier attempt of the same job."""
_RANK = r"^(?:\d+: )?"  # as srun prefixes lines where a site asks for it
_ERROR = re.compile(
    _RANK + r"(?:fairchem[^:\n]*: error: (?P<said>.*\S)"
    r"|(?P<place>(?:\w+\.)*)(?P<kind>\w*(?:Error|Exception|Exit|Interrupt))(?:: (?P<words>.*\S))?\s*$)",
    re.MULTILINE,
)
_OF_CONNECTIONS = re.compile(r"Dist\w*Error|gloo|NCCL|[Cc]onnection|[Bb]roken pipe|[Tt]imed out|[Ss]ocket")
_SIGNAL = re.compile(
    _RANK + r"srun: error: (?P<node>\S+): (?P<tasks>tasks? \S+): (?P<words>(?!Exited|Terminated).*\S)", re.MULTILINE
)
"""srun's word of tasks that a signal ended; those that it terminates itself are not the reason."""
_OWN = "escaip_fairchem."


def last_error(log: Path) -> str:
    """The reason among the last words of a job.

    One process's error has others end, or fail with errors about connections. So messages for the user come first, of
    whichever process, then other errors of Python, then what srun says of processes that were killed, and errors about
    connections last; among equals the first process's.

    Args:
        log: File that its first process prints to, ``…/JOB_0_log.out``. Errors are in ``…_log.err`` beside it, for
            every process in a file of its own.

    Returns:
        The error as Python prints it, without the modules; for errors meant for the user their message alone. Empty
        where nothing is said, or nothing can be read.
    """
    job, mark, _ = log.name.rpartition("_0_log.")
    if not mark:
        return ""
    try:
        files = sorted(log.parent.glob(f"{job}_*_log.err"), key=_rank)
    except OSError:
        return ""
    reasons = [reason for file in files for reason in _reasons(_end(file))]
    return min(reasons, key=lambda reason: reason[0])[1] if reasons else ""


def _rank(file: Path) -> int:
    number = file.name.removesuffix("_log.err").rpartition("_")[2]
    return int(number) if number.isdigit() else -1


def _end(file: Path) -> str:
    """The end of a file, of the last attempt alone."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(os.fstat(stream.fileno()).st_size - _LAST, 0))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    return text.rpartition(ATTEMPT)[2]


def _reasons(text: str) -> Iterator[tuple[int, str]]:
    """What a process has said, each with its weight; less is more."""
    errors = list(_ERROR.finditer(text))
    if errors:
        error = errors[-1]
        if error["said"] or (error["words"] and error["place"].startswith(_OWN)):
            yield _FOR_USERS, _shortened(error["said"] or error["words"])
        else:
            words = f"{error['kind']}: {error['words']}" if error["words"] else error["kind"]
            yield (_CONNECTION if _OF_CONNECTIONS.search(words) else _PYTHON), _shortened(words)
    signal = _SIGNAL.search(text)
    if signal:
        yield _KILLED, f"{signal['tasks']} on {signal['node']}: {signal['words']}"


def _shortened(words: str) -> str:
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"
