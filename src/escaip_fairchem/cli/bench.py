"""``escaip bench``: what the models cost on this machine, beside what they could cost at best."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from escaip_fairchem.errors import ConfigError

if TYPE_CHECKING:
    from escaip_fairchem.bench.tables import MakeTables, Table

COMMANDS = {
    "efficiency": "time and memory of inference and training against batch size (the paper's figures 1 and 5)",
    "md": "molecular dynamics: steps per second, split into neighbour search, model and everything else",
    "neighbors": "the neighbour search beside fairchem's",
    "train": "share of a training step outside the model, through the trainer",
    "ratios": "every ratio that must be reached, measured in one run",
    "all": "all of them, and a page for docs/benchmarks",
}
ACCURACY = "errors on small sets after equal time, beside fairchem's models"


def add_parser(subparsers: Any) -> None:
    """Add ``bench`` and its sub-commands."""
    parser = subparsers.add_parser(
        "bench",
        help="measure time and memory on this machine",
        description="Measure time and memory on this machine. Every time stands beside its floor: counted operations "
        "over the measured rate of matrix products, or bytes over the measured bandwidth.",
    )
    commands = parser.add_subparsers(dest="bench_command", required=True, metavar="BENCHMARK")
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=f"Measure {help_text}.")
        _add_options(command)
        if name == "all":
            command.add_argument(
                "--page",
                type=Path,
                metavar="DIR",
                help="write DIR/<machine>.md, a page for docs/benchmarks, and its files into DIR/<machine>",
            )
        command.set_defaults(run=run)
    _add_accuracy(commands)
    _add_loader(commands)
    _add_scaling(commands)


def _add_accuracy(commands: Any) -> None:
    command = commands.add_parser("accuracy", help=ACCURACY, description=f"Measure {ACCURACY}.")
    command.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder for tables (CSV) and the figure (PNG)")
    command.add_argument("--quick", action="store_true", help="show in seconds that it works; the figures mean nothing")
    command.add_argument(
        "--models",
        type=_words,
        metavar="NAME[:KEY=VALUE…],…",
        help="models, with changes: escaip:rate=0.003:hidden_size=128; an unknown name lists the known",
    )
    command.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="trainings at a time, which share the cores (default: 1)"
    )
    command.add_argument("--time-limit", type=_seconds, metavar="SECONDS", help="drop what does not fit, and say so")
    command.add_argument("--frames", type=Path, metavar="DIR", help="folder of the sets (lips_200.extxyz, …)")
    command.add_argument("--sets", type=_words, metavar="NAME,…", help="sets; an unknown name lists the known")
    command.add_argument("--budgets", type=_several_seconds, metavar="SECONDS,…", help="of training (default: 60,240)")
    command.add_argument(
        "--draws", type=_several_seeds, metavar="N,…", help="seeds of splits and models (default: 0,1)"
    )
    command.set_defaults(run=run_accuracy)


def _add_loader(commands: Any) -> None:
    what = "structures per second that the training's loaders deliver, from a cold and from a warm cache"
    command = commands.add_parser("loader", help=what, description=f"Measure {what}.")
    command.add_argument("--src", type=Path, metavar="PATH", help="OC20's LMDB files (default: a set is made)")
    command.add_argument(
        "--workers", type=_several_seeds, default=[0, 1, 2], metavar="N,…", help="loader processes (default: 0,1,2)"
    )
    command.add_argument("--budget", type=_seconds, default=10.0, metavar="SECONDS", help="per case (default: 10)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="decides the order")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder for the table (CSV)")
    command.add_argument("--quick", action="store_true", help="show in seconds that it works; the figures mean nothing")
    command.set_defaults(run=run_loader)


def _add_scaling(commands: Any) -> None:
    what = "where a training on many GPUs would spend its time, by assumed rates of GPUs and links"
    command = commands.add_parser("scaling", help=what, description=f"Count {what}; nothing runs on a GPU.")
    command.add_argument("--config", type=Path, required=True, metavar="YAML", help="a training's configuration")
    command.add_argument("--gpus", type=_numbers, default=[64, 512], metavar="N,…", help="default: 64,512")
    command.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="default: %(default)s")
    command.add_argument(
        "--teraflops", type=_rates, metavar="R,…", help="that a GPU achieves on the model (default: 50,100,200,400)"
    )
    command.add_argument(
        "--node-gigabytes", type=_rates, metavar="R,…", help="per second, that a node exchanges (default: 25,100,400)"
    )
    command.add_argument("--workers", type=_numbers, metavar="N,…", help="loader processes per GPU (default: 1,2,4,8)")
    command.add_argument(
        "--structures", type=int, default=172_000_000, metavar="N", help="of the training set (default: OC20's All+MD)"
    )
    command.add_argument("--metadata", type=Path, metavar="NPZ", help="numbers of atoms (default: drawn, like OC20's)")
    command.add_argument("--budget", type=_seconds, default=10.0, metavar="SECONDS", help="per measurement of a loader")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="decides what is drawn")
    command.add_argument("--quick", action="store_true", help="show in seconds that it works; the figures mean nothing")
    command.set_defaults(run=run_scaling)


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="decides everything that is drawn")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder for tables (CSV, Markdown) and figures (PNG)")
    command.add_argument("--quick", action="store_true", help="show in seconds that it works; the figures mean nothing")
    command.add_argument(
        "--models", type=_words, metavar="NAME[:VARIANT],…", help="models to measure; an unknown name lists the known"
    )
    command.add_argument("--batch-sizes", type=_numbers, metavar="N,…", help="structures per batch")
    command.add_argument("--time-limit", type=_seconds, metavar="SECONDS", help="drop what does not fit, and say so")
    command.add_argument("--budget", type=_seconds, metavar="SECONDS", help="per case (default: 60, on a GPU 4)")
    command.add_argument("--frames", type=Path, metavar="DIR", help="folder of real frames (oc20_3frames.extxyz, …)")
    command.add_argument("--fairchem2", type=Path, metavar="PYTHON", help="interpreter that has fairchem v2")


def run(arguments: argparse.Namespace) -> int:
    """Run a benchmark and print its tables."""
    # These import torch.
    from escaip_fairchem.bench.frames import load_pool
    from escaip_fairchem.bench.machine import check_device
    from escaip_fairchem.bench.options import Options, Session, machine_table
    from escaip_fairchem.bench.report import BENCHMARKS, page_folder, run_benchmark, write_page

    page: Path | None = getattr(arguments, "page", None)
    check_device(arguments.device)
    out = page_folder(arguments.device, page) if arguments.out is None and page is not None else arguments.out
    options = Options(
        device=arguments.device,
        seed=arguments.seed,
        out=out,
        quick=arguments.quick,
        models=arguments.models,
        batch_sizes=arguments.batch_sizes,
        time_limit=arguments.time_limit,
        frames=arguments.frames,
        fairchem2=arguments.fairchem2,
        budget=arguments.budget,
    )
    load_pool(options.frames, seed=options.seed, count=3)  # a wrong folder is told before anything is measured
    session = Session(options)
    wanted = list(BENCHMARKS) if arguments.bench_command == "all" else [arguments.bench_command]
    print(f"\n{machine_table(session.machine).markdown()}\n", flush=True)
    benchmarks: list[MakeTables] = []
    with session.runner:
        for name in wanted:
            print(f"=== {name}", flush=True)
            benchmarks.append(run_benchmark(name, session, alone=len(wanted) == 1))
            _print(benchmarks[-1]())
    session.measure_rates()
    tables = [machine_table(session.machine), *(table for make in benchmarks for table in make())]
    print("=== rates of the whole run, on which the floors in files and on a page are based\n")
    _print(tables[:1])
    if page is not None:
        print(f"wrote {write_page(tables, session, page)}")
    return 0


def _print(tables: Sequence[Table]) -> None:
    for table in tables:
        print(f"\n{table.markdown()}\n", flush=True)


def run_accuracy(arguments: argparse.Namespace) -> int:
    """Compare accuracies and print the table."""
    from escaip_fairchem.bench.accuracy import Comparison, compare_accuracies
    from escaip_fairchem.bench.machine import check_device
    from escaip_fairchem.bench.options import Options, Session, machine_table

    check_device(arguments.device)
    if arguments.jobs < 1 or (arguments.jobs > 1 and arguments.device != "cpu"):
        raise ConfigError(f"--jobs {arguments.jobs}: must be at least 1, and 1 on a GPU")
    comparison = Comparison.of(
        models=arguments.models,
        sets=arguments.sets,
        budgets=arguments.budgets,
        draws=arguments.draws,
        quick=arguments.quick,
    )
    options = Options(
        device=arguments.device,
        out=arguments.out,
        quick=arguments.quick,
        time_limit=arguments.time_limit,
        frames=arguments.frames,
    )
    session = Session(options)
    with session.runner:
        tables = [machine_table(session.machine), *compare_accuracies(session, comparison, jobs=arguments.jobs)]
    _print(tables)
    return 0


def run_loader(arguments: argparse.Namespace) -> int:
    """Measure the loaders and print the table."""
    from escaip_fairchem.bench.loading import LoadingOptions, loading_table

    options = LoadingOptions(
        src=arguments.src,
        workers=arguments.workers,
        seconds=0.2 if arguments.quick else arguments.budget,
        seed=arguments.seed,
        quick=arguments.quick,
    )
    table = loading_table(options)
    if arguments.out is not None:
        print(f"wrote {table.write_csv(arguments.out / 'loader.csv')}")
    _print([table])
    return 0


def run_scaling(arguments: argparse.Namespace) -> int:
    """Count, measure the loader, and print the tables."""
    from escaip_fairchem.bench.scaling import ScalingOptions, scaling_tables
    from escaip_fairchem.cli.config_files import locate_config

    given = {
        name: getattr(arguments, name)
        for name in ("teraflops", "node_gigabytes", "workers")
        if getattr(arguments, name) is not None
    }
    options = ScalingOptions(
        config=locate_config(arguments.config, "--config"),
        gpus=arguments.gpus,
        gpus_per_node=arguments.gpus_per_node,
        structures=arguments.structures,
        metadata=arguments.metadata,
        seconds=0.2 if arguments.quick else arguments.budget,
        seed=arguments.seed,
        **given,
    )
    _print(scaling_tables(options))
    return 0


def _rates(text: str) -> list[float]:
    rates = [float(word) for word in _words(text)]
    if not rates or not min(rates) > 0:
        raise argparse.ArgumentTypeError("rates must be more than 0")
    return rates


def _several_seconds(text: str) -> list[float]:
    return [_seconds(word) for word in _words(text)]


def _several_seeds(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    numbers = [int(word) for word in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("numbers must be at least 1")
    return numbers


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds > 0:
        raise argparse.ArgumentTypeError("must be more than 0 seconds")
    return seconds
