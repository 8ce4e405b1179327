"""``escaip evaluate submission``: predictions in the file that OC20's and OC22's leaderboards take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from escaip_fairchem.cli.evaluate_options import (
    add_checkpoint,
    add_model_options,
    add_set_options,
    open_model,
    reading_of,
    sources_of,
)


def add_parsers(commands: Any) -> None:
    """Add the sub-command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "submission",
        help="predictions on the test sets of OC20 or OC22 (S2EF) as the leaderboard's file",
        description="Predict the energies, and the forces of free atoms, of the four test sets of OC20 (id, ood_ads, "
        "ood_cat, ood_both) or the two of OC22 (id, ood), and write them in the layout of fairchem's "
        "make_submission_file.",
    )
    add_checkpoint(parser)
    add_set_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="file to write")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float16", "float32"),
        help="of energies and forces; fairchem writes float16 for OC20, which halves the file (default: %(default)s)",
    )
    add_model_options(parser, batch_size=16)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Predict, and write the file."""
    # These import torch and fairchem.
    from escaip_fairchem.plugin.submission import check_splits, write_submission

    sources = sources_of(arguments.sets)
    check_splits([source.name for source in sources])
    reading = reading_of(arguments)
    counts = write_submission(open_model(arguments), sources, reading, arguments.out, dtype=arguments.dtype)
    for name, (structures, atoms) in counts.items():
        print(f"{name}: {structures:,} structures, forces of {atoms:,} free atoms")
    print(f"wrote {arguments.out}")
    return 0
