"""``escaip data oc20`` and ``escaip data oc22``: the Open Catalyst data sets, as they are downloaded, for fairchem."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from escaip_fairchem.cli import data_options
from escaip_fairchem.data import defaults


def add_parsers(commands: Any) -> None:
    """Add both commands to the sub-commands of ``escaip data``."""
    _add_oc20(commands)
    _add_oc22(commands)


def _add_oc20(commands: Any) -> None:
    parser = commands.add_parser(
        "oc20",
        help="make a split of OC20 from its raw S2EF files, or check prebuilt ones",
        description="Make one split of OC20 (structures to energies and forces) for fairchem: from folders of raw "
        "files, <n>.extxyz.xz beside <n>.txt.xz, joined to large LMDB files; from folders of prebuilt *.lmdb "
        "files by checking every record and linking the files. Several folders become one split. What was skipped "
        "and why is in OUT/report.txt. An interrupted run is continued by the same command.",
    )
    parser.add_argument("inputs", nargs="+", metavar="IN", help="folders of raw files or of *.lmdb files")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the split, to write into")
    parser.add_argument(
        "--test-data",
        action="store_true",
        help="there are no energies, forces and references; those of raw frames are left out",
    )
    parser.add_argument(
        "--total-energies",
        action="store_true",
        help="store total energies of raw frames, instead of adsorption energies; not with prebuilt files",
    )
    group = parser.add_argument_group("what is usable of raw frames (the rest is reported)")
    data_options.add_limits(group)
    what = "frames, at least, of raw files that are joined to one LMDB file"
    data_options.add_shard_size(parser, defaults.OC20_SHARD_ROWS, what=what)
    data_options.add_running(parser)
    parser.set_defaults(run=run_oc20)


def _add_oc22(commands: Any) -> None:
    parser = commands.add_parser(
        "oc22",
        help="check OC22's LMDB files, and fit energies per element",
        description="Check every record of OC22's LMDB files, link them split by split into OUT, write the numbers of "
        "atoms that load balancing needs, and an energy per element into linear_references.npz: in OUT, and where "
        "the configurations look for it, beside the folder of splits. An interrupted run is continued by the same "
        "command.",
    )
    parser.add_argument("raw", metavar="RAW", help="folder of the splits (train, val_id, …), or one of these")
    parser.add_argument(
        "out",
        type=Path,
        metavar="OUT",
        help="folder to write into: data/oc22/s2ef-total, or that of the one split in it",
    )
    parser.add_argument(
        "--references",
        type=Path,
        metavar="FILE",
        help="energies per element (eV): an .npz with an array coeff indexed by atomic number, as OC22 publishes it "
        "(default: fit them to the split train)",
    )
    parser.add_argument(
        "--references-out",
        type=Path,
        metavar="FILE",
        help="where else to write them (default: beside the folder of splits; for one split, if OUT ends in "
        "s2ef-total/SPLIT, and nowhere else otherwise)",
    )
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        help="what the one split RAW is for (default: what the name of its folder begins with)",
    )
    data_options.add_running(parser)
    parser.set_defaults(run=run_oc22)


def run_oc20(args: argparse.Namespace) -> int:
    """Make a split of OC20 and print the report."""
    from escaip_fairchem.data.checks import Limits
    from escaip_fairchem.data.oc20 import OC20Options, convert_oc20

    options = OC20Options(
        limits=Limits(min_distance=args.min_distance, max_force=args.max_force),
        total_energies=args.total_energies,
        test_data=args.test_data,
        shard_rows=args.shard_size,
    )
    summary = convert_oc20(
        args.inputs, args.out, options, workers=args.workers, overwrite=args.overwrite, show_progress=True
    )
    _print(summary, args.out)
    return 0


def run_oc22(args: argparse.Namespace) -> int:
    """Prepare OC22 and print the report."""
    from escaip_fairchem.data.oc22 import OC22Options, plan, prepare_oc22
    from escaip_fairchem.data.oc22_references import REFERENCES

    options = OC22Options(references=args.references, references_out=args.references_out, split=args.split)
    summary = prepare_oc22(
        args.raw,
        args.out,
        options,
        workers=args.workers,
        overwrite=args.overwrite,
        show_progress=True,
    )
    _print(summary, args.out)
    if summary["element_references_eV"]:
        target = plan(args.raw, args.out, options).references_out
        hint = "; configurations look for them beside the folder of splits (--references-out)"
        print(f"energies per element: {args.out / REFERENCES}{hint if target is None else f' and {target}'}")
    return 0


def _print(summary: dict[str, Any], out: Path) -> None:
    from escaip_fairchem.data.report import short_text

    print(short_text(summary))
    print(f"\nfull report: {out / 'report.txt'}")
