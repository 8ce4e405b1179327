"""Run commands in a process that has imported everything already.

Importing takes most of the time of a short run, and there are many.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

PATIENCE = 300.0
"""Seconds until a run counts as hanging."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended.

    Attributes:
        status: Exit status of the command.
        text: What it printed.
        value: What the function returned that was called after it; None if the command failed.
    """

    status: int
    text: str
    value: Any


def server() -> Any:
    """The context whose processes are copies of one that has imported what runs need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["config_runs_preload"])
    # The server looks for it where PYTHONPATH says, whatever this process has in sys.path, and goes without in silence.
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    return context


def run_command(program: str, words: Sequence[str], folder: Path, after: Any = None) -> RunResult:
    """Run a command in a folder, then a function of the folder in the same process.

    Args:
        program: ``fairchem`` or ``escaip``.
        words: What follows it.
        folder: Working folder.
        after: The function, or None.
    """
    context = server()
    receiver, sender = context.Pipe(duplex=False)
    log = folder / f"log-{os.getpid()}-{abs(hash(tuple(words)))}.txt"
    process = context.Process(target=_run, args=(program, list(words), folder, after, sender, log))
    process.start()
    sender.close()
    try:
        answer = receiver.recv() if receiver.poll(PATIENCE) else (-1, None)
    except EOFError:  # it died
        answer = (-2, None)
    process.join(10.0)
    if process.is_alive():
        process.kill()
    text = log.read_text(errors="replace") if log.is_file() else ""
    return RunResult(status=answer[0], text=text, value=answer[1])


def _run(program: str, words: list[str], folder: Path, after: Any, sender: Connection, log: Path) -> None:
    os.chdir(folder)
    with log.open("w") as stream:  # also what libraries print, and the traceback of whatever goes wrong
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    from escaip_fairchem.cli import fairchem, main

    status = {"fairchem": fairchem, "escaip": main}[program].main(words)
    sender.send((status, after(folder) if status == 0 and after is not None else None))
    sender.close()
