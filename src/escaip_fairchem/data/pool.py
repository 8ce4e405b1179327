"""Work spread over processes, with results in the order of the work."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from escaip_fairchem.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """Apply a function to all items, by this process alone (``workers`` ≤ 1) or by several.

    Args:
        function: Function of a module, so that other processes can import it.
        items: Its arguments.
        workers: Processes at most.

    Yields:
        The results, in the order of the items.

    Raises:
        DataError: A process was killed, by the system for lack of memory for instance.
    """
    if workers <= 1 or len(items) <= 1:
        yield from map(function, items)
        return
    # A fresh interpreter per process: forking one in which torch or lmdb runs threads can hang.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(min(workers, len(items)), context, initializer=_end_with_parent) as pool:
            yield from pool.map(function, items)
    except BrokenProcessPool:
        raise DataError(
            "a worker process was killed, most likely for lack of memory. Start the same command again with fewer "
            "--workers: finished parts are not repeated"
        ) from None


def _end_with_parent() -> None:
    """Let a worker end when its parent is killed; it would wait for work for ever otherwise."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
