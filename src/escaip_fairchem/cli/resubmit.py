"""``escaip resubmit``: queue runs again that failed or were ended."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from escaip_fairchem.errors import RunFolderError, nearest
from escaip_fairchem.runs.slurm import Job, query_jobs


def add_parser(subparsers: Any) -> None:
    """Add ``resubmit`` to the command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "resubmit",
        help="queue runs again that failed or were ended, from their last checkpoints",
        description="Queue runs again that were submitted to SLURM and have failed or were ended, with their own "
        "configurations; they go on from their last checkpoints. What runs, waits or is finished is left alone.",
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="DIR", help="as for `escaip runs` (default: .)")
    parser.add_argument("--only", metavar="NAME,…", help="these runs alone")
    parser.add_argument("--dry-run", action="store_true", help="say which runs these are, and queue none")
    parser.add_argument("--slurm-timeout", type=int, metavar="HOURS", help="another time limit")
    parser.add_argument("--slurm-mem", type=int, metavar="GB", help="another amount of memory per node")
    parser.add_argument("--slurm-partition", metavar="NAME", help="another partition")
    parser.add_argument("--slurm-account", metavar="NAME", help="another account")
    parser.add_argument("--slurm-qos", metavar="NAME", help="another quality of service")
    parser.add_argument("--slurm-exclude", metavar="NODES", help="nodes not to use")
    parser.set_defaults(run=run)


def _ask(names: Iterable[str]) -> dict[str, Job]:
    """What SLURM says of jobs; what cannot be asked about might be queued still, and must not be queued twice."""
    jobs = query_jobs(names)
    if jobs is None:
        raise RunFolderError("SLURM cannot be asked which of these runs it has queued; try again when it answers")
    return jobs


def run(arguments: argparse.Namespace) -> int:
    """Say what becomes of every run, and submit."""
    from escaip_fairchem.runs.states import FAILED, STOPPED, find_runs, read_states

    states = read_states(find_runs(arguments.runs or [Path()]), query=_ask)
    if arguments.only is not None:
        wanted = [name for name in arguments.only.split(",") if name]
        for name in wanted:
            if name not in {state.run for state in states}:
                raise RunFolderError(f"--only {name}: no such run{nearest(name, [state.run for state in states])}")
        states = [state for state in states if state.run in wanted]
    chosen = []
    for state in states:
        if state.state not in (FAILED, STOPPED):
            print(f"{state.run}: {state.state}, left alone")
        elif state.submission is None:
            print(f"{state.run}: {state.state}, but was not submitted to SLURM; start its own command again")
        else:
            step = None if state.status is None else state.status.saved_step
            where = "from the beginning" if step is None else f"from step {step:,}"
            print(f"{state.run}: {state.state} ({state.why}), goes on {where}")
            chosen.append(state.submission)
    if arguments.dry_run or not chosen:
        return 0
    # This imports torch and fairchem.
    from escaip_fairchem.plugin.launch.resubmission import Changes, resubmit

    changes = Changes(
        hours=arguments.slurm_timeout,
        memory_gb=arguments.slurm_mem,
        partition=arguments.slurm_partition,
        account=arguments.slurm_account,
        qos=arguments.slurm_qos,
        exclude=arguments.slurm_exclude,
    )
    for name, job in resubmit(chosen, changes).items():
        print(f"{name}: submitted as {job}")
    return 0
