"""What runs in a process of its own, in a form that any process can unpickle."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from fairchem.core import _cli
from fairchem.core.common.utils import new_trainer_context, setup_logging
from submitit import JobEnvironment
from submitit.core.utils import UncompletedJobError
from submitit.helpers import DelayedSubmission

from escaip_fairchem.errors import EScAIPError
from escaip_fairchem.plugin.launch.cluster_job import hide_gpus, is_cluster_job, join_job, node_name
from escaip_fairchem.plugin.launch.hold_signals import let_signals_in
from escaip_fairchem.plugin.launch.roll_call import end_in_words
from escaip_fairchem.plugin.trainer.distributed import from_master, gather_everywhere
from escaip_fairchem.plugin.trainer.retention import continuable
from escaip_fairchem.plugin.trainer.stops import StoppedFromOutsideError
from escaip_fairchem.runs.logs import ATTEMPT
from escaip_fairchem.runs.records import FAILED, STOPPED

_SETTLING_SECONDS = 0.2
_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
"""By which SLURM announces that time is up (as submitit asks it to), and that it ends a job."""


class Runner(_cli.Runner):
    """fairchem's runner, which a fresh process can unpickle, and which ends well when it is told to.

    Unpickling it imports this package first, so that fairchem can be imported without torch_scatter and torch_sparse,
    and knows this package's models by name. fairchem's own runner gives neither.

    SIGUSR2 and SIGTERM have a training stop after a step that all its processes agree on, with a checkpoint; at other
    moments the first process saves what it has, and ends. After SIGUSR2 a SLURM job is queued again. After SIGTERM it
    is not: SLURM sends it when it has decided what becomes of the job.
    """

    _has_state = False
    """Whether the trainer holds what is worth saving, and not the untrained weights that it is built with."""
    _is_saved = False
    """Whether the checkpoint is that of this moment."""
    _is_over = False
    """Whether the run has ended or failed, so that there is nothing left to stop."""
    _hosts: Sequence[str] = ()
    """Where each process runs, once they have found each other."""
    _process: int | None = None
    """Whose handlers these are: processes that this one forks inherit them."""

    def checkpoint(self, *_: Any, **__: Any) -> DelayedSubmission:
        """Save before SLURM takes the node away, and say how to go on.

        A job that is stopped while it still starts up has nothing to save and starts again from its configuration.
        """
        if not self._has_state:
            return DelayedSubmission(Runner(), self.config)
        self._save()
        self.config["timestamp_id"] = self.trainer.timestamp_id
        if self.config["mode"] == "train" and Path(self.task.chkpt_path).is_file():
            self.config["checkpoint"] = self.task.chkpt_path
        if self.trainer.logger is not None:
            self.trainer.logger.mark_preempting()
        logging.info(
            f"stopped from outside; run {self.config['timestamp_id']} goes on from {self.config['checkpoint']}"
        )
        return DelayedSubmission(Runner(), self.config)

    def __call__(self, config: dict[str, Any]) -> None:
        """Run the configured task.

        Args:
            config: The whole configuration.

        Raises:
            SystemExit: A signal ended the run; the status is 128 and the signal's number.
        """
        self.config = config
        with self._signals():
            try:
                self._run(self._prepared(config))
            except StoppedFromOutsideError as stop:
                self._is_saved = True
                self._leave(stop.number)
            except UncompletedJobError:  # a job that is not queued again; what became of it is told
                raise
            except Exception as error:
                self._is_over = True
                self._tell(FAILED, end_in_words(error, self._hosts))
                raise
            finally:
                let_collectives_settle()  # what else holds a group is the trainer, which goes next

    def _run(self, config: dict[str, Any]) -> None:
        with new_trainer_context(config=config) as context:
            self.task, self.trainer = context.task, context.trainer
            self._hosts = gather_everywhere(node_name(os.environ))
            # The first process decides: files may be there for one process, and not yet for another.
            self.task.config["checkpoint"] = from_master(go_on(self.task.config)["checkpoint"])
            self.task.setup(self.trainer)  # loads the checkpoint that the run goes on from
            self._has_state = True
            self.task.run()
            self._is_over = True
            let_collectives_settle()  # leaving the context destroys a group that nothing else holds

    def _prepared(self, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration as this process runs it, in its place in the job."""
        if not is_cluster_job(os.environ):
            return config
        print(ATTEMPT, file=sys.stderr, flush=True)
        job = JobEnvironment()
        config = join_job(config, os.environ, job.hostnames)
        return {**config, "slurm": {**(config.get("slurm") or {}), "log": str(job.paths.stdout)}}

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Within this block, signals end the run well."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._process = os.getpid()
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number in _SIGNALS:
            signal.signal(number, self._stop)
        try:
            let_signals_in()
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process or self._is_over:
            return
        name = signal.Signals(number).name
        stops = getattr(self.trainer, "stops", None) if self._has_state else None
        if stops is not None and (stops.wait_for_step or not _is_first()):
            stops.ask(number)
            logging.warning(f"{name}: this training stops after a step that its processes agree on")
        elif _is_first():
            logging.warning(f"{name}: this run stops now")
            self._leave(number)
        else:
            logging.warning(f"{name}: the first process decides what becomes of this run")

    def _leave(self, number: int) -> None:
        """End this process; the first one has the job queued again, if that is this job's to do.

        Raises:
            SystemExit: In any case, but for a job that has been queued again too often.
            UncompletedJobError: In that one.
        """
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_IGN)  # SLURM sends more of them to a job that is to be queued again
        name = signal.Signals(number).name
        queue_again = getattr(self, "_before", {}).get(number)  # submitit's handler
        if number == signal.SIGUSR2 and is_cluster_job(os.environ) and callable(queue_again):
            if _is_first():
                self._tell(STOPPED, f"{name}: preempted, or its time was up; queued again")
                try:
                    queue_again(number, None)
                except UncompletedJobError as error:
                    self._tell(STOPPED, f"{name}: {error}")
                    raise
            raise SystemExit(0)
        if self._has_state:
            self._save()
        self._tell(STOPPED, f"{name}: ended from outside")
        raise SystemExit(128 + number)

    def _save(self) -> None:
        """Save on this process alone, if it knows enough: random numbers of others are not known at any moment."""
        if self._is_saved or self.config["mode"] != "train":
            return
        if not getattr(self.trainer, "knows_all_states", True):
            logging.warning("the state of the other processes is not known, so the last checkpoint stays as it is")
            return
        self.trainer.save(checkpoint_file="checkpoint.pt", training_state=True)
        self._is_saved = True

    def _tell(self, state: str, why: str) -> None:
        """Write into the run's folder what became of it."""
        standing = getattr(getattr(self, "trainer", None), "standing", None)
        if standing is not None:
            standing.change(state=state, why=why)


def _is_first() -> bool:
    """Whether this is the first process of the run, which is known before the processes have found each other."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) == 0


def go_on(config: dict[str, Any]) -> dict[str, Any]:
    """Let a training that has checkpoints in its own folder go on from there, wherever it began.

    A job that SLURM starts again after its node has failed has the configuration that it was submitted with.

    Args:
        config: The whole configuration.
    """
    name = config.get("timestamp_id")
    if config["mode"] != "train" or not name or config.get("is_debug"):
        return config
    own = continuable(Path(config["run_dir"], "checkpoints", str(name)))
    return {**config, "checkpoint": str(own[0])} if own else config


def let_collectives_settle() -> None:
    """Give a process group's threads time to let go of the last collective; call it before the group is destroyed.

    gloo's destructor joins the group's threads while it holds Python's global lock. A thread that has just finished a
    collective of Python objects needs that lock to release their tensors: without this pause both sometimes wait for
    each other forever.
    """
    time.sleep(_SETTLING_SECONDS)  # sleeping releases the lock


def run_rank(config: dict[str, Any]) -> None:
    """Run one of several processes on this machine; errors meant for the user end it with a message and status 2.

    Args:
        config: The whole configuration.
    """
    if not logging.getLogger().handlers:
        setup_logging()  # fairchem sets it up in the parent process alone
    if config["cpu"]:
        hide_gpus(os.environ)
    try:
        Runner()(config)
    except EScAIPError as error:
        if config.get("is_debug"):
            traceback.print_exc()
        where = f" (process {os.environ['RANK']})" if config["world_size"] > 1 else ""
        print(f"fairchem{where}: error: {error}", file=sys.stderr)
        sys.exit(error.EXIT_STATUS)
