"""What a process of a SLURM job must know before torch's processes can find each other."""

from __future__ import annotations

import socket
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
        ConfigError: SLURM has started another number of processes than the configuration says, or this one has no GPU
            of its own and is not meant for processors.
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
    if config["cpu"]:
        hide_gpus(environment)
    if config["cpu"] and "OMP_NUM_THREADS" not in environment:
        torch.set_num_threads(int(environment.get("SLURM_CPUS_PER_TASK") or 1))
    return {**config, "submit": False}


def hide_gpus(environment: MutableMapping[str, str]) -> None:
    """Keep a process from GPUs that it is not meant for; before torch has looked for them.

    Where there are GPUs, fairchem has every process take the one of its number, which need not exist.

    Args:
        environment: Of this process.
    """
    environment["CUDA_VISIBLE_DEVICES"] = ""


def node_name(environment: Mapping[str, str]) -> str:
    """Name of the node that this process runs on, as SLURM's options want it; elsewhere the machine's."""
    return environment.get("SLURMD_NODENAME") or socket.gethostname()


def _local_rank(config: Mapping[str, Any], environment: Mapping[str, str]) -> int:
    """Number of this process's GPU among those that it sees, which may be its own alone."""
    number = int(environment.get("SLURM_LOCALID") or 0)
    if config["cpu"]:
        return number
    visible = torch.cuda.device_count()
    process = f"{node_name(environment)}: process {environment.get('SLURM_PROCID') or 0}"
    handed_out = f"torch {torch.__version__}, CUDA_VISIBLE_DEVICES={environment.get('CUDA_VISIBLE_DEVICES')!r}"
    if visible == 0:
        raise ConfigError(
            f"{process} sees no GPU ({handed_out}); see what `nvidia-smi` says there, leave the node out with "
            "--slurm-exclude, or add --cpu to train on processors"
        )
    of_the_job = environment.get("SLURM_GPUS_ON_NODE", "")
    if "CUDA_VISIBLE_DEVICES" not in environment and of_the_job.isdigit() and visible > int(of_the_job):
        raise ConfigError(
            f"{process} sees {visible} GPUs, but {of_the_job} of them are this job's, and nothing says which; leave "
            "out `gpu_bind: none`, with which processes would take the GPUs of other jobs"
        )
    is_bound = visible == 1  # to one of its own, if the job has enough
    if (not is_bound and number >= visible) or (of_the_job.isdigit() and number >= int(of_the_job)):
        raise ConfigError(
            f"{process} is number {number} there, counted from 0, but sees {visible} GPUs of {of_the_job or visible} "
            f"({handed_out}); every process needs one of its own: give --num-gpus the number of GPUs of a node"
        )
    return 0 if is_bound else number
