"""Names of structures, for messages: which sample of the data set is row 3 of this batch?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

SHOWN = 8
"""How many samples a message lists before it only counts."""


@dataclass(frozen=True, kw_only=True)
class SampleNames:
    """The ids of a batch as the loader gave them; they are turned into text only when somebody asks.

    Attributes:
        sid: System ids, B entries, or None.
        fid: Frame ids, B entries, or None.
        count: B, the number of structures.
    """

    sid: Sequence[Any] | Tensor | None
    fid: Sequence[Any] | Tensor | None
    count: int

    @classmethod
    def of(cls, batch: Any) -> SampleNames:
        """Take the ids of a batch.

        Args:
            batch: fairchem's batch. Take the names before it moves to a GPU: reading them there would wait for it.
        """
        count = int(batch.natoms.numel())
        found = {key: batch.get(key) for key in ("sid", "fid")}
        usable = {key: ids if ids is not None and len(ids) == count else None for key, ids in found.items()}
        return cls(sid=usable["sid"], fid=usable["fid"], count=count)

    def identifier(self, row: int) -> str:
        """Id of a structure as fairchem writes it into predictions: ``sid_fid``, or ``sid`` without frames."""
        parts = [text_of_id(ids[row]) for ids in (self.sid, self.fid) if ids is not None]
        return "_".join(parts) if self.sid is not None else str(row)

    def name(self, row: int) -> str | None:
        """Ids of a structure for a message, e.g. ``sid 'random42', fid 7``; None where it has none."""
        if self.sid is None:
            return None
        frame = "" if self.fid is None else f", fid {text_of_id(self.fid[row])}"
        return f"sid {text_of_id(self.sid[row])!r}{frame}"

    def describe(self, row: int) -> str:
        """Name a structure for a message, e.g. ``sid 'random42', fid 7 (structure 3 of the batch)``."""
        place = f"structure {row} of the batch"
        name = self.name(row)
        return f"{place}, which has no sid" if name is None else f"{name} ({place})"

    def listed(self, rows: Sequence[int] | None = None) -> str:
        """Name several structures, all of the batch if none are given."""
        wanted = list(range(self.count)) if rows is None else list(rows)
        names = "; ".join(self.describe(row) for row in wanted[:SHOWN])
        more = len(wanted) - SHOWN
        return f"{names}; and {more} more" if more > 0 else names


def describe_sample(batch: Any, row: int) -> str:
    """Name one structure of a batch for a message.

    Args:
        batch: fairchem's batch.
        row: Which structure of it, from 0.
    """
    return SampleNames.of(batch).describe(row)


def text_of_id(value: Any) -> str:
    """An id as text: tensors of one number (fairchem stores frames as such) without their wrapping."""
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 else value.tolist()
    return str(value)
