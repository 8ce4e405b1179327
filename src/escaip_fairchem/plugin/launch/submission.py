"""Jobs on a SLURM cluster."""

from __future__ import annotations

import argparse
import copy
import logging
from typing import Any

from fairchem.core.common.utils import save_experiment_log
from submitit import AutoExecutor

from escaip_fairchem.plugin.launch.runner import Runner


def submission_parameters(args: argparse.Namespace, config: dict[str, Any]) -> dict[str, Any]:
    """Translate the command line's cluster flags for submitit; ``slurm:`` in the configuration takes precedence.

    Args:
        args: The command line.
        config: The configuration.
    """
    return {
        "name": args.identifier,
        "mem_gb": args.slurm_mem,
        "timeout_min": args.slurm_timeout * 60,
        "slurm_partition": args.slurm_partition,
        "gpus_per_node": args.num_gpus,
        "cpus_per_task": config["optim"]["num_workers"] + 1,
        "tasks_per_node": args.num_gpus,
        "nodes": args.num_nodes,
        "slurm_additional_parameters": config.get("slurm"),
        "slurm_qos": args.slurm_qos,
        "slurm_account": args.slurm_account,
    }


def submit(args: argparse.Namespace, configs: list[dict[str, Any]]) -> None:
    """Submit a job for every configuration.

    Args:
        args: The command line.
        configs: The configurations; each is told where its job's files are.
    """
    executor = AutoExecutor(folder=args.logdir / "%j", slurm_max_num_timeout=3)
    executor.update_parameters(**submission_parameters(args, configs[0]))
    for config in configs:
        config["slurm"] = copy.deepcopy(executor.parameters)
        config["slurm"]["folder"] = str(executor.folder)
    jobs = executor.map_array(Runner(), configs)
    logging.info(
        f"submitted as {', '.join(job.job_id for job in jobs)}; log: {save_experiment_log(args, jobs, configs)}"
    )
