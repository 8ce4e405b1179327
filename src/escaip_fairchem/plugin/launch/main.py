"""``fairchem main``: from a command line to running tasks."""

from __future__ import annotations

import argparse
import copy
import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from fairchem.core import _cli
from fairchem.core.common import distutils
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config, setup_logging
from torch.distributed.elastic.multiprocessing import api as elastic
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from escaip_fairchem.errors import ConfigError, EScAIPError
from escaip_fairchem.plugin.launch.checks import check_config, check_folder
from escaip_fairchem.plugin.launch.overrides import apply_overrides
from escaip_fairchem.plugin.launch.planning import check_plan
from escaip_fairchem.plugin.launch.runner import Runner, run_rank
from escaip_fairchem.plugin.launch.site import Request, read_site
from escaip_fairchem.plugin.launch.submission import Planned, cluster_request, submit
from escaip_fairchem.plugin.launch.sweep_table import PlannedRun, sweep_table
from escaip_fairchem.plugin.launch.sweeps import Sweep, SweepRun, apply_changes, read_sweep
from escaip_fairchem.plugin.loggers import logger_or_null
from escaip_fairchem.plugin.run_folder import unique_run_name


def run_upstream() -> None:
    """Run fairchem's own command on ``sys.argv``, its jobs and processes with a runner that they can unpickle."""
    _cli.Runner = Runner
    _cli.runner_wrapper = run_rank
    _cli.main()


def run_main(arguments: Sequence[str]) -> int:
    """Run ``fairchem main``.

    Args:
        arguments: What follows ``main`` on the command line.

    Returns:
        The exit status.

    Raises:
        EScAIPError: Something the user can put right.
    """
    words = list(arguments)
    args, overrides = _parser().parse_known_args(words)
    setup_logging()
    runs = prepare_runs(args, overrides)
    configs = [run.config for run in runs]
    if args.submit or args.dry_run:
        wanted = cluster_request(args, given_flags(words), configs)
        if args.dry_run:
            print(_plan_table(args, wanted, runs))
            return 0
        submit(runs, wanted, args.logdir)
        return 0
    for config in configs:
        status = _run_locally(config, args.num_gpus)
        if status != 0:
            return status
    return 0


def _parser() -> argparse.ArgumentParser:
    """All flags: those of fairchem, and what is added to them."""
    parser: argparse.ArgumentParser = copy.deepcopy(flags.get_parser())
    parser.prog = "fairchem main"
    parser.usage = "fairchem main --config-yml FILE [flags] [key=value ...]"
    parser.description = (
        "Train a model, or with --mode do something else. Any setting of FILE can be given as key=value."
    )
    for action in parser._actions:
        if action.dest == "config_yml":
            action.required = False  # a sweep may bring those of its runs
    parser.add_argument(
        "--slurm-yml",
        type=Path,
        metavar="FILE",
        help="file with a section `slurm`: what this cluster wants of every job",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print a table of the runs, and start none"
    )
    return parser


def given_flags(words: Sequence[str]) -> set[str]:
    """Names of the flags that a command line has, as opposed to those that keep their default."""
    parser, absent = _parser(), object()
    names = [action.dest for action in parser._actions if action.dest != "help"]
    given, _ = parser.parse_known_args(list(words), argparse.Namespace(**dict.fromkeys(names, absent)))
    return {name for name, value in vars(given).items() if value is not absent}


def prepare_configs(args: argparse.Namespace, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Configurations of :func:`prepare_runs`."""
    return [run.config for run in prepare_runs(args, overrides)]


def prepare_runs(args: argparse.Namespace, overrides: Sequence[str]) -> list[Planned]:
    """Read, complete and check the configuration, or those of a sweep.

    Args:
        args: fairchem's flags; ``mode`` and ``cpu`` are filled in.
        overrides: The other words on the command line.

    Returns:
        Runs with whole configurations, each with a run folder's name of its own.

    Raises:
        EScAIPError: A configuration cannot work, or its run folder holds another training.
    """
    for flag, value in (("--num-gpus", args.num_gpus), ("--num-nodes", args.num_nodes)):
        if value < 1:
            raise ConfigError(f"{flag} {value}: must be at least 1")
    args.mode = args.mode or "train"
    if not args.cpu and not args.submit and not args.dry_run and not torch.cuda.is_available():
        args.cpu = True
        logging.info("no GPU found: running on the CPU, as with --cpu")
    args.run_dir = str(Path(args.run_dir).absolute())
    if args.config_yml is None and args.sweep_yml is None:
        raise ConfigError("--config-yml: missing; give the configuration's file, or a sweep's with --sweep-yml")
    sweep = read_sweep(args.sweep_yml) if args.sweep_yml else None
    runs = [_planned(args, overrides)] if sweep is None else [_swept(args, overrides, sweep, run) for run in sweep.runs]
    for run in runs:
        _complete(run.config)
    if sweep is not None:
        check_plan([run.config for run in runs])
    for run in runs:
        with _naming(str(run.config["timestamp_id"]) if sweep else None):
            check_config(run.config)
            check_folder(run.config)
    return runs


def _planned(args: argparse.Namespace, overrides: Sequence[str]) -> Planned:
    """The run of a command without a sweep."""
    config = _read_config(args, args.config_yml, overrides)
    # Chosen here, hence the same in every process of the run.
    config["timestamp_id"] = args.timestamp_id or unique_run_name(config["identifier"])
    return Planned(config=config, config_yml=str(args.config_yml))


def _swept(args: argparse.Namespace, overrides: Sequence[str], sweep: Sweep, run: SweepRun) -> Planned:
    """A run of a sweep: its configuration, then the command line's settings, then its own."""
    file = run.config or args.config_yml or sweep.config
    if file is None:
        raise ConfigError(f"{sweep.path}: run {run.name} has no configuration; give --config-yml FILE")
    config = _read_config(args, file, overrides)
    with _naming(run.name):
        apply_changes(config, run.changes)
    name = f"{args.identifier}-{run.name}" if args.identifier else run.name
    config["identifier"] = config["timestamp_id"] = name
    return Planned(config=config, config_yml=str(file), sweep_yml=str(sweep.path), changes=run.changes)


def _read_config(args: argparse.Namespace, file: Path, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        config: dict[str, Any] = build_config(argparse.Namespace(**{**vars(args), "config_yml": file}), [])
        apply_overrides(config, overrides)
    except (ValueError, AttributeError, KeyError, OSError, yaml.YAMLError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{file}: {error}") from error
    if args.slurm_yml is not None:
        config["slurm"] = {**read_site(args.slurm_yml), **(config.get("slurm") or {})}
    return config


@contextmanager
def _naming(run: str | None) -> Iterator[None]:
    """Say which run of a sweep an error is about."""
    try:
        yield
    except EScAIPError as error:
        if run is None:
            raise
        raise type(error)(f"run {run}: {error}") from error


def _plan_table(args: argparse.Namespace, wanted: Request, runs: Sequence[Planned]) -> str:
    """What ``--dry-run`` prints."""
    return sweep_table(
        [
            PlannedRun(
                name=str(run.config["timestamp_id"]),
                changes=run.changes,
                config_file=run.config_yml,
                config=run.config,
                processes=args.num_gpus,
                nodes=args.num_nodes,
                hours=wanted.minutes / 60,
            )
            for run in runs
        ]
    )


def _complete(config: dict[str, Any]) -> None:
    """Choose a logger."""
    if "logger" not in config:
        config["logger"] = "tensorboard"
        logging.info(
            "logger: none is given, tensorboard is used (logger=null for none, logger=wandb for Weights & Biases)"
        )
    config["logger"] = logger_or_null(config["logger"])
    logging.info(f"run {config['timestamp_id']}")


def _run_locally(config: dict[str, Any], processes: int) -> int:
    if processes == 1:
        distutils.setup_env_local()
        Runner()(config)
        return 0
    # As fairchem does, whose LMDB data sets cannot be handed to loader processes of spawned ones.
    if config["optim"].get("num_workers"):
        logging.warning(
            f"optim.num_workers: {config['optim']['num_workers']} becomes 0, because processes that this command "
            "starts itself load their data themselves; with --submit each keeps its own loaders"
        )
        config["optim"]["num_workers"] = 0
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port: by the usual one, two trainings on a machine would find each other
        run_id=uuid.uuid4().hex,
        max_restarts=0,
    )
    watcher = logging.getLogger(elastic.__name__)
    if not config["is_debug"]:
        watcher.addFilter(_is_no_user_error)
    try:
        elastic_launch(launch, run_rank)(config)
    except ChildFailedError as error:
        if error.get_first_failure()[1].exitcode == EScAIPError.EXIT_STATUS:
            return EScAIPError.EXIT_STATUS  # the process has said why; the others were stopped
        raise
    finally:
        watcher.removeFilter(_is_no_user_error)
    return 0


def _is_no_user_error(record: logging.LogRecord) -> bool:
    """Drop torch's traceback about a process that ended with a message for its user."""
    error = record.exc_info[1] if record.exc_info else None
    return getattr(error, "exit_code", None) != EScAIPError.EXIT_STATUS
