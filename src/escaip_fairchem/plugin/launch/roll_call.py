"""Who is missing, and who says why, when one of several processes has failed."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from typing import Any

import torch.distributed
from fairchem.core.common import distutils

from escaip_fairchem.errors import EScAIPError

SECONDS = 10.0
"""For the others to fail as well and answer."""
_LAST_WORDS = 2000  # characters
_OF_CONNECTIONS = re.compile(
    r"gloo|NCCL|[Cc]onnection (was )?(closed|reset|refused)|[Bb]roken pipe|[Tt]imed out|[Ss]ocket", re.DOTALL
)


def end_in_words(error: Exception, hosts: Sequence[str] = (), seconds: float = SECONDS) -> str:
    """Say what went wrong; of operations that several processes do together, whose end it was.

    Where one process ends, the operations of the others fail with messages about connections, none of which says whose
    process it was, or why it has ended. So each leaves its last words with the others (in torch's store, which the
    first process keeps), and who fails like that waits for theirs.

    Args:
        error: Why this process ends.
        hosts: Where each process runs, to be named where that is in several places; nothing if it is not known.
        seconds: How long to wait for the others.
    """
    own = str(error) if isinstance(error, EScAIPError) else f"{type(error).__name__}: {error}"
    if not torch.distributed.is_available() or distutils.get_world_size() == 1:
        return own
    if not is_about_connections(error):
        _store_words(own)
        return own
    words, absent = call_the_roll(seconds)
    if words:
        own = "; ".join(f"process {rank}{_where([rank], hosts)}: {text}" for rank, text in words.items())
    elif absent:
        numbers = " and ".join(map(str, absent))
        own = (
            f"process {numbers} of {distutils.get_world_size()}{_where(absent, hosts)} has gone without a word "
            f"(killed, out of memory, or its node failed), whereupon here: {own}"
        )
    logging.error(own)
    return own


def _where(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Where processes run, if that needs to be said."""
    if len(set(hosts)) < 2:
        return ""
    return f" (on {' and '.join(dict.fromkeys(hosts[rank] for rank in ranks))})"


def is_about_connections(error: Exception) -> bool:
    """Whether an operation that several processes do together has failed, as it does when one of them is gone."""
    if isinstance(error, EScAIPError):
        return False
    of_torch = isinstance(error, getattr(torch.distributed, "DistError", ()))
    return of_torch or (isinstance(error, RuntimeError) and _OF_CONNECTIONS.search(str(error)) is not None)


def call_the_roll(seconds: float = SECONDS) -> tuple[dict[int, str], list[int]]:
    """Wait for the last words of the other processes, which fail in the same way or have failed before.

    Args:
        seconds: How long to wait.

    Returns:
        Words by process, of those whose failure is none of connections; and the processes that have left none at all.
        If the first process, which keeps the words, is gone, it alone.
    """
    try:
        _store_words("")
        found: dict[int, str] = {}
        until = time.monotonic() + seconds
        others = set(range(distutils.get_world_size())) - {distutils.get_rank()}
        while others and time.monotonic() < until:
            for rank in sorted(others):
                if _store().check([_key(rank)]):
                    found[rank] = _store().get(_key(rank)).decode()
                    others.remove(rank)
            time.sleep(0.05)
    except RuntimeError:
        return {}, [0]
    return {rank: text for rank, text in sorted(found.items()) if text}, sorted(others)


def _store_words(words: str) -> None:
    """Leave words for the others; without success where the first process is gone."""
    try:
        _store().set(_key(distutils.get_rank()), words[:_LAST_WORDS])
    except RuntimeError:
        logging.debug("the first process is gone, so nobody hears the last words of this one")


def _store() -> Any:
    return torch.distributed.distributed_c10d._get_default_store()


def _key(rank: int) -> str:
    return f"escaip_last_words/{rank}"
