"""How commands end: status 0, or a message and a status."""

from __future__ import annotations

import os
import select
import sys
import traceback
import warnings
from collections.abc import Callable

from escaip_fairchem.errors import EScAIPError

INTERRUPTED = 130
PIPE_CLOSED = 141
"""Whoever read the output, ``head`` for example, had enough of it; the status that a shell gives programs in C."""


def run_reporting(command: str, function: Callable[[], int | None], *, debug: bool) -> int:
    """Run a command; say what a user can put right in one message, and leave the traceback to everything else.

    Args:
        command: Name of the command, which starts the message.
        function: The command. What it returns is the exit status; None counts as 0.
        debug: Whether to print the traceback in any case.

    Returns:
        The exit status: 2 for an error that is the user's to put right, 130 for Ctrl-C, 141 where nobody reads on.
    """
    # Three of fairchem's modules load tables of their own in a way that torch 2.4 and 2.5 find worth a page of text.
    warnings.filterwarnings("ignore", message="You are using `torch.load` with `weights_only=False`")
    try:
        status = function() or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        return PIPE_CLOSED
    except EScAIPError as error:
        if debug:
            traceback.print_exc()
        sys.stdout.flush()
        print(f"{command}: error: {error}", file=sys.stderr)
        return error.EXIT_STATUS
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print(f"{command}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _output_is_closed() -> bool:
    """Whether nobody reads standard output any more; what is left for it then goes nowhere."""
    poll = select.poll()  # flushing would tell only if something were left to be written
    poll.register(sys.stdout.fileno(), select.POLLERR)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
