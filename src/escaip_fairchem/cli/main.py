"""The command ``escaip``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import escaip_fairchem
from escaip_fairchem.cli.reporting import run_reporting

COMMANDS = ("demo", "data", "import_checkpoint", "info", "evaluate", "plot", "runs", "resubmit", "bench")
"""Modules beside this one; each adds its own parser and imports what is slow only when it is run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The words after ``escaip``; by default those that the process was started with.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Taken out first, so that it may stand anywhere on the line, behind a sub-command of a sub-command too.
    args = build_parser().parse_args([word for word in words if word != "--debug"])
    return run_reporting(f"escaip {args.command}", lambda: args.run(args), debug="--debug" in words)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser with all sub-commands."""
    parser = argparse.ArgumentParser(
        prog="escaip",
        description="Data, checkpoints and facts for EScAIP models. To train, run `fairchem main --config-yml FILE`.",
    )
    parser.add_argument("--version", action="version", version=f"escaip {escaip_fairchem.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"escaip_fairchem.cli.{name}").add_parser(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
