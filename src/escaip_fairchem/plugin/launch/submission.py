"""Jobs on a SLURM cluster."""

from __future__ import annotations

import argparse
import copy
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairchem.core.common.utils import save_experiment_log
from submitit import AutoExecutor
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import SlurmExecutor

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.plugin.launch import hold_signals
from escaip_fairchem.plugin.launch.runner import Runner
from escaip_fairchem.plugin.launch.site import Flags, Request, request
from escaip_fairchem.runs.records import Submission, now, write_submission

MAX_REQUEUES_KEY = "max_requeues"
"""In a record of a submission, beside submitit's parameters."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A run that is going to be submitted.

    Attributes:
        config: Its whole configuration.
        config_yml: The file that it comes from.
        sweep_yml: The sweep's file, if there is one.
        changes: What the sweep sets, by dotted keys.
        attempts: How often it was submitted before.
    """

    config: dict[str, Any]
    config_yml: str
    sweep_yml: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    attempts: int = 0


def cluster_flags(args: argparse.Namespace, given: set[str], workers: int) -> Flags:
    """The command line's cluster flags.

    Args:
        args: The command line.
        given: Names of the flags that were really given; the others hold fairchem's defaults.
        workers: Loader processes of each process.
    """
    return Flags(
        processes=args.num_gpus,
        nodes=args.num_nodes,
        cpu=args.cpu,
        workers=workers,
        name=args.identifier,
        partition=args.slurm_partition,
        account=args.slurm_account,
        qos=args.slurm_qos,
        memory_gb=args.slurm_mem if "slurm_mem" in given else None,
        hours=args.slurm_timeout if "slurm_timeout" in given else None,
    )


def cluster_request(args: argparse.Namespace, given: set[str], configs: Sequence[Mapping[str, Any]]) -> Request:
    """What the jobs of one command ask SLURM for; all of an array ask for the same.

    Raises:
        ConfigError: The section ``slurm`` cannot be used, or runs of a sweep differ in it.
    """
    sections = [config.get("slurm") for config in configs]
    if any(section != sections[0] for section in sections):
        raise ConfigError("slurm: differs between runs of the sweep; an array of jobs asks for the same for all")
    workers = max(int(config["optim"].get("num_workers") or 0) for config in configs)
    return request(cluster_flags(args, given, workers), sections[0])


def submit(runs: Sequence[Planned], wanted: Request, logdir: Path) -> list[str]:
    """Submit a job for every run, several as an array.

    Args:
        runs: At least one.
        wanted: What to ask SLURM for.
        logdir: Folder of logs and of what the jobs are told.

    Returns:
        SLURM's names of the jobs.

    Raises:
        ConfigError: There is no SLURM here, or it refuses.
    """
    if SlurmExecutor.affinity() < 0:
        raise ConfigError("there is no SLURM on this machine (no srun); leave --submit out to run here")
    logdir = logdir.absolute()
    executor = AutoExecutor(
        folder=logdir / "%j",
        cluster="slurm",
        slurm_max_num_timeout=wanted.max_requeues,
        slurm_python=shlex.join([sys.executable, "-S", hold_signals.__file__, sys.executable]),
    )
    executor.update_parameters(**wanted.parameters)
    configs = [_job_config(run.config, executor) for run in runs]
    try:
        jobs = executor.map_array(Runner(), configs)
    except FailedJobError as error:
        raise ConfigError(f"SLURM refuses the job: {_reasons(error)}") from error
    for run, job in zip(runs, jobs, strict=True):
        _record(run, job, logdir, wanted)
    names = [str(job.job_id) for job in jobs]
    log = save_experiment_log(argparse.Namespace(logdir=logdir), jobs, configs)
    logging.info(f"submitted as {', '.join(names)}; log: {log}")
    return names


def _job_config(config: Mapping[str, Any], executor: AutoExecutor) -> dict[str, Any]:
    """A run's configuration as its job has it: with the place of the job's files, which fairchem looks for there."""
    parameters = {**copy.deepcopy(dict(executor.parameters)), "folder": str(executor.folder)}
    return {**copy.deepcopy(dict(config)), "slurm": parameters}


def _record(run: Planned, job: Any, logdir: Path, wanted: Request) -> None:
    """Leave in the run's folder how it was submitted."""
    config = run.config
    folder = Path(config["run_dir"], "checkpoints", str(config["timestamp_id"]))
    folder.mkdir(parents=True, exist_ok=True)
    submission = Submission(
        run=str(config["timestamp_id"]),
        job=str(job.job_id),
        submitted=now(),
        cwd=str(Path.cwd()),
        logdir=str(logdir),
        log=str(job.paths.stdout),
        config=config,
        parameters={**wanted.parameters, MAX_REQUEUES_KEY: wanted.max_requeues},
        config_yml=run.config_yml,
        sweep_yml=run.sweep_yml,
        changes=run.changes,
        attempts=run.attempts + 1,
    )
    write_submission(folder, submission)


def _reasons(error: Exception) -> str:
    """What sbatch has to say: all of its lines about errors, the first of which names the value that is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    errors = [line.removeprefix("sbatch: error: ") for line in lines if line.startswith("sbatch: error: ")]
    return "; ".join(dict.fromkeys(errors)) or (lines[-1] if lines else type(error).__name__)
