"""``escaip import-checkpoint OLD NEW``: bring a checkpoint of the original implementation over."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the sub-command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "import-checkpoint",
        help="convert a checkpoint of the original EScAIP (fairchem v1)",
        description="Convert a checkpoint of the original EScAIP implementation (fairchem v1 format) into one that "
        "trains, validates and calculates with this package. Settings, normalisers, references and averaged weights "
        "come along; the optimizer's state does not.",
    )
    parser.add_argument("old", type=Path, metavar="OLD.pt", help="checkpoint of the original")
    parser.add_argument("new", type=Path, metavar="NEW.pt", help="file to write")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="also load files that hold pickled Python objects; such a file can run any code of its author",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Convert, and say what became of every key."""
    from escaip_fairchem.plugin.import_checkpoint import import_checkpoint

    outcome = import_checkpoint(arguments.old, arguments.new, trusted=arguments.trust)
    print(f"{arguments.new}: {len(outcome.report.placed)} tensors placed")
    print(f"averaged weights (EMA): {'converted' if outcome.has_average else 'none in the old file'}")
    for name in outcome.report.without_effect:
        print(f"left out, without effect on the predictions: {name}")
    for name in outcome.dropped:
        print(f"left out, section of the old file: {name}")
    return 0
