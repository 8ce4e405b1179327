"""``escaip data``: convert labelled structures for fairchem, or make a demonstration set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from escaip_fairchem.cli import data_molecules, data_oc, data_options
from escaip_fairchem.data import defaults

if TYPE_CHECKING:
    from escaip_fairchem.data.options import ConvertOptions


def add_parser(subparsers: Any) -> None:
    """Add ``data`` and its sub-commands to the command line."""
    parser = subparsers.add_parser("data", help="convert structures for fairchem, or make a demonstration set")
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    _add_convert(commands)
    _add_demo(commands)
    data_molecules.add_parsers(commands)
    data_oc.add_parsers(commands)


def _add_convert(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        usage="escaip data convert IN [IN ...] OUT [options]",  # --split would swallow files that follow it
        help="convert labelled structures to ASE-LMDB",
        description="Convert labelled structures from anything ASE reads (extxyz, db, traj, OUTCAR, vasprun.xml, …) to "
        "ASE-LMDB, with splits, metadata, energy references, normalisers, a ready dataset section (OUT/dataset.yml) "
        "and a report of what was skipped and why (OUT/report.txt). An interrupted conversion is continued by the "
        "same command.",
    )
    parser.add_argument("inputs", nargs="+", metavar="IN", help="files, folders (searched through) or glob patterns")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write into")
    _add_reading(parser)
    _add_checks(parser)
    _add_splits(parser)
    _add_references(parser)
    data_options.add_running(parser)
    parser.set_defaults(run=run_convert)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("reading")
    group.add_argument("--format", metavar="NAME", help="ASE's name of the input's format (default: recognise each)")
    group.add_argument("--limit", type=int, metavar="N", help="read N structures at most, the first ones")
    keys = {"energy": defaults.ENERGY_KEY, "forces": defaults.FORCES_KEY, "stress": defaults.STRESS_KEY}
    for label, default in keys.items():
        group.add_argument(
            f"--{label}-key", default=default, metavar="KEY", help=f"name of the {label} (default: %(default)s)"
        )
    group.add_argument(
        "--id-key",
        default=defaults.ID_KEY,
        metavar="KEY",
        help="info entry that identifies a system (default: %(default)s)",
    )
    group.add_argument(
        "--energy-units",
        default=defaults.ENERGY_UNITS,
        metavar="UNIT",
        help="eV, meV, Hartree, kcal/mol, … (default: %(default)s)",
    )
    group.add_argument(
        "--force-units",
        default=defaults.FORCE_UNITS,
        metavar="UNIT",
        help="eV/Ang, Hartree/Bohr, kcal/mol/Ang, … (default: %(default)s)",
    )
    group.add_argument(
        "--stress-units",
        default=defaults.STRESS_UNITS,
        metavar="UNIT",
        help="eV/Ang^3, GPa, kBar, … (default: %(default)s)",
    )
    group.add_argument(
        "--negate-stress", action="store_true", help="the input counts compression as positive, as VASP does"
    )


def _add_checks(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is usable (the rest is reported)")
    group.add_argument(
        "--require",
        default=",".join(defaults.REQUIRE),
        metavar="LABELS",
        help="labels a structure must have, out of energy, forces and stress (default: %(default)s)",
    )
    data_options.add_limits(group, distance=defaults.MIN_DISTANCE, force=defaults.MAX_FORCE)


def _add_splits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("splits")
    data_options.add_split(group, defaults.SPLIT)
    group.add_argument(
        "--split-by", metavar="KEY", help="info entry whose values never span two splits; 'file' for whole files"
    )
    group.add_argument(
        "--shuffle",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="shuffle before dividing (default); otherwise splits are consecutive pieces of the input",
    )


def _add_references(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("energies and files")
    group.add_argument(
        "--linear-references",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fit an energy per element to the training split and name it in the dataset section (default)",
    )
    group.add_argument(
        "--subtract-references",
        action="store_true",
        help="store energies minus their references, for totals beyond the precision of float32",
    )
    data_options.add_shard_size(group)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="make an OC20-like set of adsorbates on metal surfaces",
        description="Make an OC20-like set of adsorbates on metal surfaces, labelled by ASE's effective-medium "
        "potential, in the classic OC20 LMDB format (OUT/lmdb) and as ASE-LMDB (OUT/aselmdb).",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write into")
    for split, default, frames in (
        ("train", defaults.DEMO_TRAIN, "training"),
        ("val", defaults.DEMO_EVALUATED, "validation"),
        ("test", defaults.DEMO_EVALUATED, "test"),
    ):
        parser.add_argument(
            f"--n-{split}", type=int, default=default, metavar="N", help=f"{frames} frames (default: %(default)s)"
        )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=defaults.DEMO_FORMATS,
        default=list(defaults.DEMO_FORMATS),
        help="formats to write (default: both)",
    )
    parser.add_argument(
        "--seed", type=int, default=defaults.SEED, metavar="N", help="decides all that is drawn (default: %(default)s)"
    )
    data_options.add_running(parser)
    parser.set_defaults(run=run_demo)


def run_convert(args: argparse.Namespace) -> int:
    """Convert files and print the report."""
    from escaip_fairchem.data.convert import convert
    from escaip_fairchem.data.report import short_text

    summary = convert(
        args.inputs,
        args.out,
        _convert_options(args),
        workers=args.workers,
        overwrite=args.overwrite,
        show_progress=True,
    )
    print(short_text(summary))
    print(f"\ndataset section: {args.out / 'dataset.yml'}   full report: {args.out / 'report.txt'}")
    return 0


def _convert_options(args: argparse.Namespace) -> ConvertOptions:
    from escaip_fairchem.data.checks import Limits
    from escaip_fairchem.data.labels import LabelOptions
    from escaip_fairchem.data.options import ConvertOptions
    from escaip_fairchem.data.splits import SplitOptions

    return ConvertOptions(
        form=args.format,
        labels=LabelOptions(
            energy_key=args.energy_key,
            forces_key=args.forces_key,
            stress_key=args.stress_key,
            id_key=args.id_key,
            energy_units=args.energy_units,
            force_units=args.force_units,
            stress_units=args.stress_units,
            negate_stress=args.negate_stress,
        ),
        limits=Limits(
            require=tuple(label.strip() for label in args.require.split(",") if label.strip()),
            min_distance=args.min_distance,
            max_force=args.max_force,
        ),
        split=SplitOptions(parts=tuple(args.split), seed=args.seed, shuffle=args.shuffle),
        split_by=args.split_by,
        linear_references=args.linear_references,
        subtract_references=args.subtract_references,
        limit=args.limit,
        shard_rows=args.shard_size,
    )


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
