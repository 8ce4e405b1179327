"""What a job asks SLURM for: the command line's flags, and the section ``slurm`` of the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from escaip_fairchem.errors import ConfigError, nearest


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


OPTIONS = _words(
    "account begin chdir clusters comment constraint contiguous core_spec cores_per_socket cpu_freq cpus_per_gpu",
    "cpus_per_task deadline dependency distribution exclude exclusive export gid gpu_bind gpu_freq gpus gpus_per_node",
    "gpus_per_socket gpus_per_task gres gres_flags hint hold licenses mail_type mail_user mem mem_bind mem_per_cpu",
    "mem_per_gpu mincpus network nice no_kill no_requeue nodelist oversubscribe overcommit partition power prefer",
    "priority profile propagate qos reboot requeue reservation sockets_per_node spread_job switches thread_spec",
    "threads_per_core time tmp tres_per_task uid use_min_nodes wait_all_nodes wckey",
)
"""sbatch's long options that a site may want, with ``_`` for ``-``."""
OWN = frozenset({"concurrent_jobs", "max_requeues", "setup", "teardown", "signal", "srun_args"})
"""What is not sbatch's: jobs of an array at a time, requeues after the time's end, lines of shell, the warning."""
_DECIDED_ELSEWHERE = {
    "nodes": "--num-nodes",
    "ntasks": "--num-gpus",
    "ntasks_per_node": "--num-gpus",
    "job_name": "--identifier",
    "output": "--logdir",
    "error": "--logdir",
    "array": "--sweep-yml",
}
WARNING_SECONDS = 90
MAX_REQUEUES = 3


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What the command line says; None stands for what was not given.

    Attributes:
        processes: Per node, one per GPU (``--num-gpus``).
        nodes: Of the job.
        cpu: Whether no GPU is wanted.
        workers: Loader processes of each process.
        name: Of the job.
        partition: ``--slurm-partition``.
        account: ``--slurm-account``.
        qos: ``--slurm-qos``.
        memory_gb: Per node, ``--slurm-mem``.
        hours: ``--slurm-timeout``.
    """

    processes: int
    nodes: int
    cpu: bool
    workers: int
    name: str
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    memory_gb: int | None = None
    hours: int | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of SLURM.

    Attributes:
        parameters: submitit's, for ``update_parameters``.
        max_requeues: How often a job may run to the end of its time and be queued again.
        minutes: Time limit.
    """

    parameters: Mapping[str, Any]
    max_requeues: int
    minutes: int


DEFAULT_MEMORY_GB, DEFAULT_HOURS = 80, 72
"""fairchem's."""


def request(flags: Flags, section: Mapping[str, Any] | None) -> Request:
    """Join the command line and the section ``slurm``; what was given on the command line counts.

    Args:
        flags: The command line.
        section: sbatch's long options, with ``-`` or ``_``, and :data:`OWN`. True stands for an option without a value;
            false, null and 0 leave out what would be asked for otherwise (``gpus_per_node: 0``).

    Raises:
        ConfigError: A key is unknown, decided elsewhere, or its value cannot be used.
    """
    site = {str(key).replace("-", "_"): value for key, value in (section or {}).items()}
    _check_keys(site)
    minutes = 60 * flags.hours if flags.hours is not None else _minutes(site.pop("time", None))
    site.pop("time", None)
    not_additional = _OURS_TOO | (MEMORY_ELSEWHERE if flags.memory_gb is not None else frozenset())
    additional = {key: value for key, value in site.items() if key in OPTIONS - not_additional}
    parameters: dict[str, Any] = {
        "name": flags.name or "escaip",
        "timeout_min": minutes,
        "nodes": flags.nodes,
        "tasks_per_node": flags.processes,
        # By names that submitit takes as they are: "a100:8" is no number.
        "slurm_cpus_per_task": site.get("cpus_per_task", flags.workers + 1),
        "slurm_gpus_per_node": _gpus(flags, site),
        "slurm_partition": flags.partition or site.get("partition"),
        "slurm_account": flags.account or site.get("account"),
        "slurm_qos": flags.qos or site.get("qos"),
        "slurm_mem": _memory(flags, site),
        "slurm_signal_delay_s": _warning(site.get("signal")),
        "slurm_array_parallelism": site.get("concurrent_jobs"),
        "slurm_setup": _lines("setup", site.get("setup")),
        "slurm_teardown": _ending(flags.nodes, _lines("teardown", site.get("teardown")) or ()),
        # When a process is lost, the others wait for it in vain.
        "slurm_srun_args": ["--kill-on-bad-exit=1", *(_lines("srun_args", site.get("srun_args")) or ())],
        "slurm_additional_parameters": {
            key: value for key, value in additional.items() if value not in (None, False, 0)
        },
    }
    return Request(
        parameters={key: value for key, value in parameters.items() if value is not None},
        max_requeues=_whole("max_requeues", site.get("max_requeues", MAX_REQUEUES), smallest=0),
        minutes=minutes,
    )


_WAIT_FOR_LOST_NODES = """
if [ "$status" -ne 0 ] && ! timeout 60 srun --overlap --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 true; then
  seconds=$(scontrol show config | sed -n 's/^SlurmdTimeout *= *\\([0-9]*\\).*/\\1/p')
  seconds=$((${{seconds:-300}} + 60))
  echo "a node does not answer; waiting up to $seconds s for SLURM to find out whether it has failed" >&2
  sleep $seconds
fi
"""
"""Processes of other nodes notice within seconds that a node is gone, SLURM after minutes. A job that has ended with an
error before stays failed; one that still waits is queued again."""


def _ending(nodes: int, teardown: Sequence[str]) -> list[str]:
    """Lines of shell after the training: the job's status is the training's, whatever a site does afterwards."""
    waiting = _WAIT_FOR_LOST_NODES.format(nodes=nodes).strip().splitlines() if nodes > 1 else []
    return ["status=$?", *waiting, *teardown, 'exit "$status"']


def read_site(path: Path) -> dict[str, Any]:
    """Read the section ``slurm`` of a file, which holds nothing else.

    Raises:
        ConfigError: The file cannot be read, or holds anything else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--slurm-yml {path}: cannot be read ({error})") from error
    if not isinstance(content, dict) or set(content) != {"slurm"} or not isinstance(content["slurm"], dict):
        raise ConfigError(
            f"--slurm-yml {path}: has to hold the section `slurm`, with keys and values, and nothing else"
        )
    section: dict[str, Any] = content["slurm"]
    return section


_OURS_TOO = frozenset({"partition", "account", "qos", "mem", "cpus_per_task", "gpus_per_node", "time"})
"""Options with a place of their own among submitit's parameters."""
MEMORY_ELSEWHERE = frozenset({"mem_per_cpu", "mem_per_gpu"})
"""Ways to ask for memory that sbatch does not take together with ``mem``."""
_GPUS_ELSEWHERE = ("gres", "gpus", "gpus_per_task", "gpus_per_socket", "tres_per_task")


def _check_keys(site: Mapping[str, Any]) -> None:
    for key, value in site.items():
        if key in _DECIDED_ELSEWHERE:
            raise ConfigError(f"slurm.{key}: is decided by {_DECIDED_ELSEWHERE[key]}; leave it out of the section")
        if key not in OPTIONS | OWN:
            raise ConfigError(f"slurm.{key}: neither an option of sbatch nor of ours{nearest(key, OPTIONS | OWN)}")
        if isinstance(value, Mapping) or (isinstance(value, list) and key not in ("setup", "teardown", "srun_args")):
            raise ConfigError(f"slurm.{key}: {value!r} is no single value")
    if site.get("concurrent_jobs") is not None:
        _whole("concurrent_jobs", site["concurrent_jobs"], smallest=1)


def _gpus(flags: Flags, site: Mapping[str, Any]) -> int | None:
    """GPUs per node; none on the CPU, and none that another option of sbatch asks for."""
    if flags.cpu or any(site.get(key) for key in _GPUS_ELSEWHERE):
        return None
    return site.get("gpus_per_node", flags.processes) or None


def _memory(flags: Flags, site: Mapping[str, Any]) -> str | None:
    if flags.memory_gb is not None:
        return f"{flags.memory_gb}GB"
    if "mem" in site:
        return None if site["mem"] is None else str(site["mem"])
    return None if any(site.get(key) for key in MEMORY_ELSEWHERE) else f"{DEFAULT_MEMORY_GB}GB"


def _minutes(value: Any) -> int:
    """SLURM's ways to write a time: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS."""
    if value is None:
        return 60 * DEFAULT_HOURS
    # YAML reads 12:00:00 as the number 43200, which nobody can tell from minutes.
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", value) if isinstance(value, str) else None
    if not match:
        raise ConfigError(f"slurm.time: {value!r}; write 'HH:MM:SS', 'D-HH:MM' or minutes, in quotes")
    days, *parts = (None if part is None else int(part) for part in match.groups())
    numbers = [part for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    total = 24 * 60 * (days or 0) + 60 * hours + minutes + (1 if seconds else 0)
    if total == 0:
        raise ConfigError(f"slurm.time: {value!r} is no time at all")
    return total


def _warning(value: Any) -> int:
    """Seconds before the end of the time at which a job is warned."""
    if value is None:
        return WARNING_SECONDS
    match = re.fullmatch(r"(?:R:)?(?:SIG)?USR2(?:@(\d+))?", str(value))
    if not match:
        raise ConfigError(f"slurm.signal: {value!r}; trainings save at USR2, write USR2@SECONDS")
    return int(match[1] or 60)


def _lines(key: str, value: Any) -> list[str] | None:
    if value is None:
        return None
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ConfigError(f"slurm.{key}: {value!r} is neither a text nor a list of texts")
    return lines


def _whole(key: str, value: Any, *, smallest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
        raise ConfigError(f"slurm.{key}: {value!r} is no whole number of at least {smallest}")
    return value
