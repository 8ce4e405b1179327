"""Start a program with the signals of preemption held back: ``python -S hold_signals.py PROGRAM ARGUMENT…``.

Importing torch and reading a job takes seconds, in which SIGUSR2 would end the process, and with it the job, as if it
had failed. Held back, a signal waits until the run has its handlers and lets it in (`let_signals_in`). Run as a file by
its path, this imports nothing of the package, and takes some milliseconds.
"""

from __future__ import annotations

import os
import signal
import sys

HELD = (signal.SIGUSR2, signal.SIGTERM)


def let_signals_in() -> None:
    """Let in what was held back; handlers must be there by now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    os.execv(sys.argv[1], sys.argv[1:])  # the mask stays
