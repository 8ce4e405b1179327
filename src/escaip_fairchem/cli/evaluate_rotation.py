"""``escaip evaluate rotation``: how forces and energies of a checkpoint turn with a structure."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from escaip_fairchem.cli.evaluate_options import add_checkpoint, add_model_options, open_model


def add_parsers(commands: Any) -> None:
    """Add the sub-command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "rotation",
        help="forces and energies of rotated structures beside those of the structures as they are",
        description="Rotate every structure, with its cell, 32 times each about x, y and z and 32 times at random. "
        "Forces are rotated back and compared: cosine similarity and mean absolute difference (meV/Å); energies by "
        "their spread (meV/atom).",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "structures",
        type=Path,
        metavar="STRUCTURES",
        help="file or folder: converted data (.aselmdb, .lmdb), what ASE reads, .jsonl(.gz), .zip of extxyz",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="take the first N structures only (default: all)")
    parser.add_argument(
        "--format", metavar="NAME", help="name of the structures' format (default: recognise each file)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="decides the random rotations (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write DIR/rotation.{csv,tex} and DIR/rotation_structures.{csv,tex}"
    )
    add_model_options(parser, batch_size=33)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Rotate, compare, and print the table."""
    # These import torch and fairchem.
    from escaip_fairchem.evaluate.rotation import read_structures, rotation_errors, table_by_axis, table_by_structure

    structures = read_structures(arguments.structures, arguments.limit, form=arguments.format)
    inference = open_model(arguments)
    errors = rotation_errors(inference, structures, seed=arguments.seed, batch_size=arguments.batch_size)
    table = table_by_axis(errors)
    print(table.text())
    if arguments.out is not None:
        written = table.save(arguments.out / "rotation")
        for path in [*written, *table_by_structure(errors).save(arguments.out / "rotation_structures")]:
            print(f"wrote {path}")
    return 0
