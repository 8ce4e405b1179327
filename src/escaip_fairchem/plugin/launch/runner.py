"""What runs in a process of its own, in a form that any process can unpickle."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from typing import Any

from fairchem.core import _cli
from fairchem.core.common.utils import new_trainer_context, setup_logging
from submitit.helpers import DelayedSubmission

from escaip_fairchem.errors import EScAIPError

_SETTLING_SECONDS = 0.2


class Runner(_cli.Runner):
    """fairchem's runner, which a fresh process can unpickle.

    Unpickling it imports this package first, so that fairchem can be imported without torch_scatter and torch_sparse,
    and knows this package's models by name. fairchem's own runner gives neither.
    """

    _has_state = False
    """Whether the trainer holds what is worth saving, and not the untrained weights that it is built with."""

    def checkpoint(self, *_: Any, **__: Any) -> DelayedSubmission:
        """Save before SLURM takes the node away, and say how to go on.

        A job that is stopped while it still starts up has nothing to save and starts again from its configuration.
        """
        if not self._has_state:
            return DelayedSubmission(Runner(), self.config)
        self.trainer.save(checkpoint_file="checkpoint.pt", training_state=True)
        self.config["checkpoint"] = self.task.chkpt_path
        self.config["timestamp_id"] = self.trainer.timestamp_id
        if self.trainer.logger is not None:
            self.trainer.logger.mark_preempting()
        logging.info(
            f"stopped from outside; saved {self.config['checkpoint']}, run {self.config['timestamp_id']} goes on there"
        )
        return DelayedSubmission(Runner(), self.config)

    def __call__(self, config: dict[str, Any]) -> None:
        """Run the configured task.

        Args:
            config: The whole configuration.
        """
        self.config = config
        try:
            with new_trainer_context(config=config) as context:
                self.config, self.task, self.trainer = context.config, context.task, context.trainer
                self.task.setup(self.trainer)  # loads the checkpoint that the run goes on from
                self._has_state = True
                self.task.run()
                let_collectives_settle()  # leaving the context destroys a group that nothing else holds
        finally:
            let_collectives_settle()  # what else holds one is the trainer, which goes next


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
    try:
        Runner()(config)
    except EScAIPError as error:
        if config.get("is_debug"):
            traceback.print_exc()
        where = f" (process {os.environ['RANK']})" if config["world_size"] > 1 else ""
        print(f"fairchem{where}: error: {error}", file=sys.stderr)
        sys.exit(error.EXIT_STATUS)
