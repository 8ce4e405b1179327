"""``escaip evaluate metrics``: errors of a checkpoint on data sets, as tables."""

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
        "metrics",
        help="errors of energies, forces and stresses on data sets, as tables",
        description="Compute a checkpoint's errors on data sets, by fairchem's metrics and with the averaged weights, "
        "and print one row per data set and one for their mean: meV, meV/Å, meV/Å³. Data sets are read by the keys "
        "that the model was trained with.",
    )
    add_checkpoint(parser)
    add_set_options(parser)
    parser.add_argument(
        "--table",
        metavar="NAME",
        help="a benchmark's rows and columns: oc20 (id, ood_ads, ood_cat, ood_both), oc22 (id, ood), spice (by "
        "subset), mptrj",
    )
    parser.add_argument("--group-by", metavar="KEY", help="a row for every value that structures have under this key")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write DIR/metrics.csv and DIR/metrics.tex (booktabs)")
    add_model_options(parser, batch_size=16)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print the table."""
    # These import torch and fairchem.
    from escaip_fairchem.evaluate.error_tables import check_names, preset_of
    from escaip_fairchem.evaluate.errors import evaluate_sets

    preset = None if arguments.table is None else preset_of(arguments.table)
    sources = sources_of(arguments.sets)
    check_names([source.name for source in sources], preset)  # before the checkpoint is read
    reading = reading_of(arguments, group_by=arguments.group_by)
    table = evaluate_sets(open_model(arguments), sources, reading, preset=preset)
    print(table.text())
    if arguments.out is not None:
        for path in table.save(arguments.out / "metrics"):
            print(f"wrote {path}")
    return 0
