"""``fairchem main``: from a command line to running tasks."""

from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
import yaml
from fairchem.core import _cli
from fairchem.core.common import distutils
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config, create_grid, setup_logging
from torch.distributed.elastic.multiprocessing import api as elastic
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from escaip_fairchem.errors import ConfigError, EScAIPError
from escaip_fairchem.plugin.launch.checks import check_config, check_folder
from escaip_fairchem.plugin.launch.overrides import apply_overrides
from escaip_fairchem.plugin.launch.runner import Runner, run_rank
from escaip_fairchem.plugin.launch.submission import submit
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
    args, overrides = _parser().parse_known_args(list(arguments))
    setup_logging()
    configs = prepare_configs(args, overrides)
    if args.submit:
        submit(args, configs)
        return 0
    for config in configs:
        status = _run_locally(config, args.num_gpus)
        if status != 0:
            return status
    return 0


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = copy.copy(flags.get_parser())
    parser.prog = "fairchem main"
    parser.usage = "fairchem main --config-yml FILE [flags] [key=value ...]"
    parser.description = (
        "Train a model, or with --mode do something else. Any setting of FILE can be given as key=value."
    )
    return parser


def prepare_configs(args: argparse.Namespace, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Read, complete and check the configuration, or those of a sweep.

    Args:
        args: fairchem's flags; ``mode`` and ``cpu`` are filled in.
        overrides: The other words on the command line.

    Returns:
        Whole configurations, each with a run folder's name of its own.

    Raises:
        EScAIPError: A configuration cannot work, or its run folder holds another training.
    """
    if args.num_gpus < 1:
        raise ConfigError(f"--num-gpus {args.num_gpus}: it is the number of processes, at least 1")
    args.mode = args.mode or "train"
    if not args.cpu and not args.submit and not torch.cuda.is_available():
        args.cpu = True
        logging.info("no GPU found: running on the CPU, as with --cpu")
    try:
        config = build_config(args, [])
        apply_overrides(config, overrides)
        configs = create_grid(config, args.sweep_yml) if args.sweep_yml else [config]
    except (ValueError, AttributeError, KeyError, OSError, yaml.YAMLError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{args.config_yml}: {error}") from error
    for config in configs:
        _complete(config, name=args.timestamp_id if len(configs) == 1 else None)
        check_config(config)
        check_folder(config)
    return configs


def _complete(config: dict[str, Any], *, name: str | None) -> None:
    """Choose a logger and a run folder."""
    if "logger" not in config:
        config["logger"] = "tensorboard"
        logging.info(
            "logger: none is given, tensorboard is used (logger=null for none, logger=wandb for Weights & Biases)"
        )
    config["logger"] = logger_or_null(config["logger"])
    # Chosen here, hence the same in every process of the run.
    config["timestamp_id"] = name or unique_run_name(config["identifier"])
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
    launch = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=processes, rdzv_backend="c10d", max_restarts=0)
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
