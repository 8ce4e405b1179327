"""What a process of a SLURM job must know before torch's processes can find each other."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch

from escaip_fairchem.errors import ConfigError

PORTS = range(20000, 32000)
"""For the first process, one per job: below those that operating systems hand out themselves."""


def is_cluster_job(environment: Mapping[str, str]) -> bool:
    """Whether this process was started by submitit within a SLURM job."""
    return environment.get("SUBMITIT_EXECUTOR") == "slurm" and "SLURM_JOB_ID" in environment


def join_job(config: Mapping[str, Any], environment: MutableMapping[str, str], hosts: Sequence[str]) -> dict[str, Any]:
    """Take this process's place in a job.

    fairchem's own way on clusters knows GPUs alone and one fixed port, so that two runs on one node meet. This sets
    what torch reads from the environment instead, and lets fairchem set up its processes as it does elsewhere.

    Args:
        config: The job's configuration.
        environment: SLURM's variables; torch's are added. ``MASTER_ADDR`` and ``MASTER_PORT`` stay if they are given.
        hosts: The job's nodes.

    Returns:
        The configuration with which fairchem finds the others.

    Raises:
        ConfigError: SLURM has started another number of processes than the configuration says.
    """
    processes, wanted = int(environment.get("SLURM_NTASKS") or 1), int(config["world_size"])
    if processes != wanted:
        raise ConfigError(
            f"--num-gpus and --num-nodes make {wanted} processes, but SLURM started {processes}; do not set tasks or "
            "nodes in the section `slurm`"
        )
    alone = len(hosts) == 1
    number = int(environment["SLURM_JOB_ID"])
    environment.setdefault("MASTER_ADDR", "127.0.0.1" if alone else hosts[0])
    environment.setdefault("MASTER_PORT", str(PORTS[number % len(PORTS)]))
    if alone:
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a node need not be able to look up its own name
    environment["WORLD_SIZE"] = str(processes)
    environment["RANK"] = environment.get("SLURM_PROCID") or "0"
    environment["LOCAL_RANK"] = str(_local_rank(config, environment))
    if config["cpu"] and "OMP_NUM_THREADS" not in environment:
        torch.set_num_threads(int(environment.get("SLURM_CPUS_PER_TASK") or 1))
    return {**config, "submit": False}


def _local_rank(config: Mapping[str, Any], environment: Mapping[str, str]) -> int:
    """Number of this process's GPU among those that it sees, which may be its own alone."""
    if not config["cpu"] and torch.cuda.device_count() == 1:
        return 0
    return int(environment.get("SLURM_LOCALID") or 0)
