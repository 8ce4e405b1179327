"""``escaip demo``: the whole path in one command, from data to molecular dynamics, with a table of what it measured."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

from escaip_fairchem.cli.config_files import locate_config
from escaip_fairchem.errors import ConfigError, RunFolderError

CONFIG = Path("configs/demo/escaip_demo.yml")
MARKER = ".escaip-demo"
CRITERION_FAILED = 1


def add_parser(subparsers: Any) -> None:
    """Add the sub-command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "demo",
        help="make data, train, evaluate, relax and run dynamics, in minutes on two CPU cores",
        description="Make a small set of adsorbates on metal surfaces with ASE's EMT, train on it with `fairchem "
        "main`, validate and predict, then relax an adsorbate that was never seen and run molecular dynamics with the "
        "trained model. Ends with a table of everything that was measured, and with status 1 if the forces are not "
        "learned well enough.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="decides everything that is drawn (default: 0)"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the training data (default: see --quick)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a minute's run that shows that everything works; too short to learn, so the forces are not judged",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier demo left in the folder")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo and print its table."""
    if arguments.epochs is not None and arguments.epochs < 1:
        raise ConfigError(f"--epochs {arguments.epochs}: must be at least 1")
    config = locate_config(CONFIG)
    prepare_folder(arguments.out, overwrite=arguments.overwrite)
    # One thread, here and in the processes that are started: tensors are small, threads that share busy cores wait for
    # each other most of the time, and results do not depend on the number of cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # These import torch and fairchem.
    from escaip_fairchem.evaluate.demo import Demo, full_plan, quick_plan
    from escaip_fairchem.evaluate.tables import as_markdown, save_table

    plan = quick_plan() if arguments.quick else full_plan()
    demo = Demo(folder=arguments.out, config=config, plan=plan.with_epochs(arguments.epochs), seed=arguments.seed)
    rows = demo.run()
    save_table(rows, arguments.out / "results")
    print(f"\n{as_markdown(rows)}\n")
    for name, what in demo.products().items():
        print(f"{arguments.out / name}: {what}")
    if not demo.forces_learned:
        print(f"\nFAILED: {demo.verdict}")
        return CRITERION_FAILED
    print(f"\n{demo.verdict}")
    return 0


def prepare_folder(folder: Path, *, overwrite: bool) -> None:
    """Make the folder, or empty one that an earlier demo wrote.

    Args:
        folder: The folder.
        overwrite: Whether what an earlier demo left may go.

    Raises:
        RunFolderError: The folder holds something that is not to be replaced.
    """
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise RunFolderError(f"--out {folder}: holds something that no demo wrote; name another folder")
        if not overwrite:
            raise RunFolderError(f"--out {folder}: holds an earlier demo; add --overwrite, or name another folder")
        shutil.rmtree(folder)
    elif folder.exists() and not folder.is_dir():
        raise RunFolderError(f"--out {folder}: is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text("Written by `escaip demo`, which may replace this folder.\n", encoding="utf-8")
