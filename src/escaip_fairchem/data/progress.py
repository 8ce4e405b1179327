"""A progress bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


def track(items: Iterable[Item], *, total: int, title: str, unit: str, show: bool = True) -> Iterator[Item]:
    """Pass items on while reporting to standard error how many have passed.

    Args:
        items: What to pass on.
        total: How many there will be.
        title: What is being done.
        unit: What one item is.
        show: False reports nothing.

    Yields:
        The items.
    """
    if not show:
        yield from items
    elif sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=title, unit=f" {unit}", dynamic_ncols=True)
    else:
        yield from _with_lines(items, total, title, unit)


def _with_lines(items: Iterable[Item], total: int, title: str, unit: str) -> Iterator[Item]:
    start = last = time.monotonic()
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES:
            last = now
            print(f"{title}: {done} of {total} {unit}, {now - start:.0f} s", file=sys.stderr, flush=True)
    print(f"{title}: {done} {unit} in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
