"""Running the command ``fairchem`` as a user does: in a process of its own, with its output in a file."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from escaip_fairchem.errors import EScAIPError

_PREFIX = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+ \(\w+\): ")
_PROGRESS = re.compile(r"^(epoch: |val: |test: )")
_TAIL = 25


def run_fairchem(arguments: Sequence[str], log: Path, *, show: Callable[[str], None] = print) -> None:
    """Run ``fairchem`` with the interpreter that runs this.

    Args:
        arguments: The words after ``fairchem``.
        log: File for everything that it prints.
        show: Called with the command, and with every line of progress.

    Raises:
        EScAIPError: The command failed; the message ends with the last lines of its output.
    """
    show(f"$ fairchem {shlex.join(arguments)}")
    log.parent.mkdir(parents=True, exist_ok=True)
    tail: deque[str] = deque(maxlen=_TAIL)
    command = [sys.executable, "-m", "escaip_fairchem.cli.fairchem", *arguments]
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
        ) as process,
    ):
        for line in process.stdout or ():
            file.write(line)
            file.flush()
            tail.append(line)
            message = _PREFIX.sub("", line.rstrip())
            if _PROGRESS.match(message):
                show(f"  {message}")
        status = process.wait()
    if status != 0:
        raise EScAIPError(
            f"`fairchem {shlex.join(arguments)}` ended with status {status}; all of its output is in {log}, "
            f"the end of it:\n{''.join(tail)}"
        )
