"""``escaip data spice``, ``mptrj``, ``md22`` and ``rmd17``: published sets of molecules and crystals."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from escaip_fairchem.cli import data_options
from escaip_fairchem.data import defaults

if TYPE_CHECKING:
    from escaip_fairchem.data.options import ConvertOptions
    from escaip_fairchem.data.published_sets import MoleculeOptions, MPtrjOptions, SpiceOptions


def add_parsers(commands: Any) -> None:
    """Add the four sub-commands of ``escaip data``."""
    _add_spice(commands)
    _add_mptrj(commands)
    for name, title in zip(defaults.MOLECULE_SETS, ("MD22", "rMD17"), strict=True):
        _add_molecules(commands, name, title)


def _add_spice(commands: Any) -> None:
    parser = _parser(
        commands,
        "spice",
        "convert SPICE (HDF5)",
        "Convert SPICE, conformations of molecules in HDF5 (versions 1 and 2), from atomic units. All conformations "
        "of a molecule stay in one split.",
    )
    group = parser.add_argument_group("SPICE")
    group.add_argument(
        "--energy",
        choices=defaults.SPICE_ENERGIES,
        default=defaults.SPICE_ENERGIES[0],
        help="formation energies, relative to isolated atoms, or totals (default: %(default)s)",
    )
    group.add_argument(
        "--selection",
        choices=defaults.SPICE_SELECTIONS,
        default=defaults.SPICE_SELECTIONS[0],
        help="mace-off: neutral molecules of H, C, N, O, F, P, S, Cl, Br and I (default: %(default)s)",
    )
    _add_subtraction(group, default=False)
    _add_common(parser, defaults.SPICE_SPLIT)
    parser.set_defaults(run=run_one, options_of=_spice_options)


def _add_mptrj(commands: Any) -> None:
    parser = _parser(
        commands,
        "mptrj",
        "convert MPtrj (JSON)",
        "Convert MPtrj, relaxations of crystals in one large JSON file, with stress in ASE's unit and sign and "
        "magnetic moments. The file is never held in memory as a whole.",
    )
    group = parser.add_argument_group("MPtrj")
    group.add_argument(
        "--energy",
        choices=defaults.MPTRJ_ENERGIES,
        default=defaults.MPTRJ_ENERGIES[0],
        help="with or without the Materials Project's corrections (default: %(default)s)",
    )
    group.add_argument(
        "--split-by",
        default=defaults.MPTRJ_SPLIT_BY,
        metavar="KEY",
        help="info entry whose values never span two splits (default: %(default)s, the material)",
    )
    _add_common(parser, defaults.MPTRJ_SPLIT)
    parser.set_defaults(run=run_one, options_of=_mptrj_options)


def _add_molecules(commands: Any, name: str, title: str) -> None:
    parser = _parser(
        commands,
        name,
        f"convert {title} (npz)",
        f"Convert {title}, dynamics of molecules in npz files, from kcal/mol. Every file becomes a data set of its "
        "own, OUT/<molecule>.",
    )
    group = parser.add_argument_group(title)
    group.add_argument(
        "--name",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names of the molecules, one for each file (default: from the names of the files)",
    )
    _add_subtraction(group, default=True)
    _add_common(parser, defaults.SPLIT)
    parser.set_defaults(run=run_molecules, form=name)


def _parser(commands: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        usage=f"escaip data {name} RAW [RAW ...] OUT [options]",  # --split would swallow files that follow it
        help=summary,
        description=f"{description} What is written, and what happens after an interruption, is as for `convert`.",
    )
    parser.add_argument("inputs", nargs="+", metavar="RAW", help="files, folders (searched through) or glob patterns")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write into")
    return parser


def _add_subtraction(group: Any, *, default: bool) -> None:
    group.add_argument(
        "--subtract-references",
        action=argparse.BooleanOptionalAction,
        default=default,
        help="store energies minus their references, for totals beyond the precision of float32 "
        f"(default: {'yes' if default else 'no'})",
    )


def _add_common(parser: argparse.ArgumentParser, split: tuple[float, ...]) -> None:
    group = parser.add_argument_group("splits and files")
    data_options.add_split(group, split)
    data_options.add_limits(group)
    group.add_argument("--limit", type=int, metavar="N", help="read N structures of a set at most, the first ones")
    data_options.add_shard_size(group)
    data_options.add_running(group)


def run_one(args: argparse.Namespace) -> int:
    """Convert a set that becomes one data set, and print the report."""
    from escaip_fairchem.data.convert import convert

    options: ConvertOptions = args.options_of(args).convert_options()
    summary = convert(
        args.inputs, args.out, options, workers=args.workers, overwrite=args.overwrite, show_progress=True
    )
    _print(summary, args.out)
    return 0


def run_molecules(args: argparse.Namespace) -> int:
    """Convert molecules to a data set each, and print the reports."""
    from escaip_fairchem.data.published_sets import convert_molecules

    summaries = convert_molecules(
        args.inputs,
        args.out,
        _molecule_options(args),
        names=args.name,
        workers=args.workers,
        overwrite=args.overwrite,
        show_progress=True,
    )
    for name, summary in summaries.items():
        print(f"\n{name}\n")
        _print(summary, args.out / name)
    return 0


def _print(summary: dict[str, Any], out: Path) -> None:
    from escaip_fairchem.data.report import short_text

    print(short_text(summary))
    print(f"\ndataset section: {out / 'dataset.yml'}   full report: {out / 'report.txt'}")


def _spice_options(args: argparse.Namespace) -> SpiceOptions:
    from escaip_fairchem.data.published_sets import SpiceOptions

    return SpiceOptions(
        energy=args.energy,
        selection=args.selection,
        subtract_references=args.subtract_references,
        **_common(args),
    )


def _mptrj_options(args: argparse.Namespace) -> MPtrjOptions:
    from escaip_fairchem.data.published_sets import MPtrjOptions

    return MPtrjOptions(energy=args.energy, split_by=args.split_by, **_common(args))


def _molecule_options(args: argparse.Namespace) -> MoleculeOptions:
    from escaip_fairchem.data.published_sets import MoleculeOptions

    return MoleculeOptions(form=args.form, subtract_references=args.subtract_references, **_common(args))


def _common(args: argparse.Namespace) -> dict[str, Any]:
    from escaip_fairchem.data.splits import SplitOptions

    return {
        "split": SplitOptions(parts=tuple(args.split), seed=args.seed),
        "min_distance": args.min_distance,
        "max_force": args.max_force,
        "limit": args.limit,
        "shard_rows": args.shard_size,
    }
