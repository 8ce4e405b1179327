"""``escaip runs``: where trainings stand, in their folders and in SLURM's queue."""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

from escaip_fairchem.runs.records import now
from escaip_fairchem.runs.states import UNDER_WAY, RunState, find_runs, read_states
from escaip_fairchem.runs.table import as_text, best, write_csv

WATCH_SECONDS = 30.0
_CLEAR = "\x1b[H\x1b[2J"


def add_parser(subparsers: Any) -> None:
    """Add ``runs`` to the command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "runs",
        help="where trainings stand: queued, running, preempted, finished or failed, and why",
        description="List trainings: their state, steps, latest validation errors, speed and time left, from what "
        "they write into their folders of checkpoints and from SLURM's queue. Nothing is written there.",
    )
    parser.add_argument(
        "dirs",
        nargs="*",
        type=Path,
        metavar="DIR",
        help="the --run-dir of trainings, or RUN_DIR/checkpoints/NAME (default: the working directory)",
    )
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help=f"look again every SECONDS (default: {WATCH_SECONDS:.0f}) until no run is queued or running any more",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all that is known, raw numbers, to a CSV file")
    parser.add_argument(
        "--best", metavar="METRIC", help="sort by a validation metric, forces_mae for example, the best run first"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table, once or until nothing is under way any more."""
    states = _look(arguments)
    while arguments.watch is not None and any(state.state in UNDER_WAY for state in states):
        time.sleep(arguments.watch)
        states = _look(arguments)
    return 0


def _look(arguments: argparse.Namespace) -> list[RunState]:
    """Read all runs and print them."""
    states = read_states(find_runs(arguments.dirs or [Path()]))
    if arguments.best is not None:
        states = best(states, arguments.best)
    if arguments.csv is not None:
        write_csv(states, arguments.csv)
    text = as_text(states, arguments.best)
    if arguments.watch is not None:
        text = f"{_CLEAR if sys.stdout.isatty() else ''}{now()}\n{text}\n"
    print(text, flush=True)
    return states


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0; folders go before --watch")
    return seconds
