"""The command ``escaip``."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence

import escaip_fairchem
from escaip_fairchem.cli.reporting import run_reporting

COMMANDS = ("demo", "data", "import_checkpoint", "info")
"""Modules beside this one; each adds its own parser and imports what is slow only when it is run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The words after ``escaip``; by default those that the process was started with.

    Returns:
        The exit status.
    """
    args = build_parser().parse_args(arguments)
    return run_reporting(f"escaip {args.command}", lambda: args.run(args), debug=args.debug)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser with all sub-commands."""
    parser = argparse.ArgumentParser(
        prog="escaip",
        description="Data, checkpoints and information for EScAIP models. Training is `fairchem main --config-yml FILE`.",
    )
    parser.add_argument("--version", action="version", version=f"escaip {escaip_fairchem.__version__}")
    # On the sub-commands as well, so that it may stand at either end of the line.
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = f"escaip_fairchem.cli.{name}"
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module).add_parser(subparsers)
    for subparser in {id(p): p for p in subparsers.choices.values()}.values():
        subparser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
