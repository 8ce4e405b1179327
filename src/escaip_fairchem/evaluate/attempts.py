"""Attempts that fail before there is anything to keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from escaip_fairchem.data.claims import Claim, abandon
from escaip_fairchem.errors import EScAIPError


@contextmanager
def free_again(claimed: Claim) -> Iterator[None]:
    """Leave a folder to any options where what is inside fails and no earlier attempt has left work there.

    The remedy is often another option, such as ``--no-cell`` or ``--ids``, with which what an attempt has begun would
    be refused as that of another run.
    """
    is_first = not any(path.stat().st_size for path in claimed.staged.glob("*"))
    try:
        yield
    except EScAIPError:
        if is_first:
            abandon(claimed)
        raise
