"""``escaip plot``: figures from run folders."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add ``plot`` and its sub-command to the command line."""
    parser = subparsers.add_parser("plot", help="figures of error against model size, data and cost, from run folders")
    commands = parser.add_subparsers(dest="plot_command", required=True, metavar="{scaling}")
    scaling: argparse.ArgumentParser = commands.add_parser(
        "scaling",
        help="error against parameters, training structures and GPU-hours",
        description="Read trainings from their run folders, and draw the validation errors of their best checkpoints "
        "against parameters, training structures and GPU-hours, on logarithmic axes. Against parameters and GPU-hours "
        "there is a line for each kind of model and number of training structures, against training structures one for "
        "each kind of model and number of parameters. What a folder does not tell is called not known, and left out "
        "of the figure.",
    )
    scaling.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="RUN_DIR/checkpoints/NAME, or RUN_DIR with all of its runs; FAMILY=RUN names the kind of model",
    )
    scaling.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for CSV, LaTeX and PNG files")
    scaling.add_argument("--x", choices=("parameters", "data", "gpu-hours"), help="draw this one only (default: all)")
    scaling.add_argument("--trust", action="store_true", help="load checkpoints that could run foreign code")
    scaling.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read the runs, print the table and write the figures."""
    # These import torch and fairchem.
    from escaip_fairchem.evaluate.scaling import ABSCISSAS, read_runs, scaling_table, write_scaling

    runs = read_runs(arguments.runs, trusted=arguments.trust)
    written = write_scaling(runs, arguments.out, list(ABSCISSAS) if arguments.x is None else [arguments.x])
    print(scaling_table(runs).text())
    for path in written:
        print(f"wrote {path}")
    return 0
