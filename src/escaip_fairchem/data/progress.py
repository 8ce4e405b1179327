"""A progress bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0
MEGABYTE = 1_000_000


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


def watch(
    items: Iterable[Item],
    *,
    total: int,
    title: str,
    reach: Callable[[Item], int],
    size: Callable[[Item], int],
    show: bool = True,
) -> Iterator[Item]:
    """Pass on what is found in files while reporting to standard error how far they have been searched.

    What takes a moment is not reported.

    Args:
        items: What is found.
        total: Bytes of all files.
        title: What is being done.
        reach: Byte of all files, as if they were one, that has been reached when an item is found.
        size: Structures that an item stands for.
        show: False reports nothing.

    Yields:
        The items.
    """
    if not show:
        yield from items
        return
    found = 0
    if sys.stderr.isatty():
        with tqdm(total=total, desc=title, unit="B", unit_scale=True, dynamic_ncols=True, delay=1.0) as bar:
            for item in items:
                found += size(item)
                bar.set_postfix_str(f"{found} structures", refresh=False)
                bar.update(max(reach(item) - bar.n, 0))
                yield item
        return
    start = last = time.monotonic()
    for item in items:
        found += size(item)
        yield item
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES:
            last = now
            place = f"{reach(item) / MEGABYTE:.0f} of {total / MEGABYTE:.0f} MB"
            print(f"{title}: {found} structures so far, {place}, {now - start:.0f} s", file=sys.stderr, flush=True)


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
