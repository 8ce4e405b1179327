"""``escaip evaluate``: what a trained model's paper reports, from its checkpoint."""

from __future__ import annotations

import importlib
from typing import Any

COMMANDS = ("evaluate_metrics", "evaluate_submission", "evaluate_rotation", "evaluate_simulations")
"""Modules beside this one; ``add_parsers`` of each adds its sub-commands and imports slow things only to run one."""


def add_parser(subparsers: Any) -> None:
    """Add ``evaluate`` and its sub-commands to the command line."""
    parser = subparsers.add_parser(
        "evaluate",
        help="errors, submission files, rotations, relaxations and dynamics of a trained model",
        description="Evaluate a checkpoint: errors on data sets, submission files, rotated structures, relaxations, "
        "molecular dynamics.",
    )
    commands = parser.add_subparsers(dest="evaluate_command", required=True, metavar="EVALUATION")
    for name in COMMANDS:
        importlib.import_module(f"escaip_fairchem.cli.{name}").add_parsers(commands)
