"""All staged chunks together: the usable structures in the order of their sources, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from escaip_fairchem.errors import DataError

from .checks import Reason
from .schema import FrameTable, IntArray
from .sources import Chunk
from .staging import NO_WORD, StagedChunk, StagedRows, load_staged
from .words import Words


@dataclass(frozen=True)
class Skipped:
    """A structure, or a file, that is not in the data set."""

    file: str
    position: int
    reason: Reason
    detail: str


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The usable structures, n of them.

    Attributes:
        table: Their numbers.
        name: File and position of each, shape (n,).
        group: What each must stay together with, n words.
        counted: What the report counts each as, n words.
        chunk: Where each row is staged, shape (n,).
        offset: Place in the chunk's file, shape (n,), bytes.
        length: Length of the row, shape (n,), bytes.
        skipped: All others that were read.
        left_out: Names of contents that are not stored.
        renamed: Structures whose identifier another one had before them.
    """

    table: FrameTable
    name: NDArray[np.str_]
    group: Words
    counted: Words
    chunk: IntArray
    offset: IntArray
    length: IntArray
    skipped: list[Skipped]
    left_out: frozenset[str]
    renamed: IntArray

    def __len__(self) -> int:
        return len(self.table)

    def rows(self, order: IntArray, folder: Path) -> Iterator[bytes]:
        """Read the encoded rows of some structures, in the order asked for."""
        staged = StagedRows(folder)
        try:
            for row in order:
                yield staged.read(int(self.chunk[row]), int(self.offset[row]), int(self.length[row]))
        finally:
            staged.close()


def collect(chunks: Sequence[Chunk], folder: Path, limit: int | None = None) -> Collection:
    """Put the staged chunks together, up to a number of structures read, and make identifiers unique."""
    staged = list(_limited([load_staged(folder, chunk.number) for chunk in chunks], limit))
    table, renamed = _with_unique_ids(FrameTable.concatenate([item.table for item in staged]))
    names = [f"{chunk.source.name}:{position}" for chunk, item in _pairs(chunks, staged) for position in item.position]
    return Collection(
        table=table,
        name=np.array(names, dtype=np.str_),
        group=Words.concatenate([item.group for item in staged]),
        counted=Words.concatenate([item.counted for item in staged]),
        chunk=np.repeat([chunk.number for chunk in chunks[: len(staged)]], [len(item.table) for item in staged]),
        offset=_joined([item.offset for item in staged]),
        length=_joined([item.length for item in staged]),
        skipped=[
            Skipped(str(chunk.source.path), position, reason, detail)
            for chunk, item in _pairs(chunks, staged)
            for position, reason, detail in item.skipped
        ],
        left_out=frozenset().union(*(item.left_out for item in staged)),
        renamed=renamed,
    )


def groups_for_split(collection: Collection, key: str) -> IntArray:
    """Number the groups of all structures; one without the key is a group by itself.

    Returns:
        Shape (n,). Numbers have the order of the groups' names, those without the key behind them in the order of
        files and positions as text: where two groups are as good, the order decides between them.

    Raises:
        DataError: No structure has the key.
    """
    unknown = collection.group.is_word(NO_WORD)
    if unknown.all():
        raise DataError(
            f"--split-by {key}: no structure has an entry {key!r} in its info; 'file' keeps the structures of a file "
            f"together"
        )
    groups = collection.group.number.copy()
    _, alone = np.unique(collection.name[unknown], return_inverse=True)
    groups[unknown] = len(collection.group.known) + alone.reshape(-1)
    return groups


def _pairs(chunks: Sequence[Chunk], staged: Sequence[StagedChunk]) -> Iterator[tuple[Chunk, StagedChunk]]:
    return zip(chunks[: len(staged)], staged, strict=True)


def _joined(arrays: Sequence[IntArray]) -> IntArray:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)


def _limited(staged: Sequence[StagedChunk], limit: int | None) -> Iterator[StagedChunk]:
    """Cut after ``limit`` structures, usable or not, in the order of the sources."""
    left = limit
    for item in staged:
        if left is None:
            yield item
            continue
        positions = sorted([*item.position.tolist(), *(position for position, _, _ in item.skipped)])
        end = positions[left] if len(positions) > left else None
        yield item if end is None else _before(item, end)
        left = max(left - len(positions), 0)


def _before(item: StagedChunk, end: int) -> StagedChunk:
    keep = np.flatnonzero(item.position < end)
    return replace(
        item,
        table=item.table.take(keep),
        position=item.position[keep],
        group=item.group.take(keep),
        counted=item.counted.take(keep),
        offset=item.offset[keep],
        length=item.length[keep],
        skipped=[skip for skip in item.skipped if skip[0] < end],
    )


def _with_unique_ids(table: FrameTable) -> tuple[FrameTable, IntArray]:
    """Append ``~2``, ``~3``, … to the ``sid`` of structures whose (sid, fid) occurred before.

    fairchem drops all but one of several predictions with the same identifier.
    """
    identities = list(zip(table.sid.tolist(), table.fid.tolist(), strict=True))
    taken = set(identities)
    if len(taken) == len(identities):
        return table, np.empty(0, dtype=np.int64)
    seen: Counter[tuple[str, int]] = Counter()
    sids, renamed = [], []
    for row, (sid, fid) in enumerate(identities):
        seen[sid, fid] += 1
        name = sid
        if seen[sid, fid] > 1:
            name = _free_name(sid, fid, seen[sid, fid], taken)
            taken.add((name, fid))
            renamed.append(row)
        sids.append(name)
    return replace(table, sid=np.array(sids, dtype=np.str_)), np.array(renamed, dtype=np.int64)


def _free_name(sid: str, fid: int, number: int, taken: set[tuple[str, int]]) -> str:
    while (f"{sid}~{number}", fid) in taken:
        number += 1
    return f"{sid}~{number}"
