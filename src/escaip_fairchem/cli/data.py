"""``escaip data``: convert labelled structures for fairchem, or make a demonstration set."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add ``data`` and its two sub-commands to the command line."""
    parser = subparsers.add_parser("data", help="convert structures for fairchem, or make a demonstration set")
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="{convert,demo}")
    _add_demo(commands)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="make an OC20-like set of adsorbates on metal surfaces",
        description="Make an OC20-like set of adsorbates on metal surfaces, labelled by ASE's effective-medium "
        "potential, in the classic OC20 LMDB format (OUT/lmdb) and as ASE-LMDB (OUT/aselmdb).",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write into")
    parser.add_argument("--n-train", type=int, default=2000, metavar="N", help="training frames (default: %(default)s)")
    parser.add_argument("--n-val", type=int, default=200, metavar="N", help="validation frames (default: %(default)s)")
    parser.add_argument("--n-test", type=int, default=200, metavar="N", help="test frames (default: %(default)s)")
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=("lmdb", "aselmdb"),
        default=["lmdb", "aselmdb"],
        help="formats to write (default: both)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides all that is drawn (default: 0)")
    _add_common(parser)
    parser.set_defaults(run=run_demo)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=int,
        default=available_cores(),
        metavar="N",
        help="processes; the result does not depend on their number (default: the cores available, here %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote into OUT")


def available_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_demo(args: argparse.Namespace) -> int:
    """Make the demonstration set and print what it holds."""
    from escaip_fairchem.data.demo_set import DemoOptions, write_demo
    from escaip_fairchem.data.report import split_table

    options = DemoOptions(
        train=args.n_train, val=args.n_val, test=args.n_test, seed=args.seed, formats=tuple(args.formats)
    )
    summary = write_demo(args.out, options, workers=args.workers, overwrite=args.overwrite, show_progress=True)
    print(split_table(summary["splits"]))
    for form in options.formats:
        print(f"dataset section: {args.out / form / 'dataset.yml'}")
    print(f"start for a relaxation of an adsorbate that no split holds: {args.out / 'relax_start.extxyz'}")
    return 0
