"""Where the members of a large JSON object are in its file, found without parsing them.

Parsers of JSON that stream hand over one value after the other, and do not tell where it was: one process alone could
read a file, from its beginning. The bytes that matter for its outline are found several times faster than values become
structures, and each member can be parsed by itself then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .schema import BoolArray, IntArray

BLOCK_BYTES = 1 << 20
QUOTE, BACKSLASH, COLON = b'"\\:'
DEPTH_CHANGE = np.zeros(256, dtype=np.int64)
DEPTH_CHANGE[list(b"{[")] = 1
DEPTH_CHANGE[list(b"}]")] = -1
IS_MARK = DEPTH_CHANGE != 0
IS_MARK[[QUOTE, BACKSLASH, COLON]] = True
BLANKS = b" \t\r\n"


class Member(NamedTuple):
    """One member of the object.

    Attributes:
        key: Its name.
        start: First byte of its value; the byte behind the colon where the value is neither an object nor an array.
        end: The byte behind its value; ``start`` where the value is neither.
        size: How many members the value has, if it is an object; else 0.
    """

    key: str
    start: int
    end: int
    size: int


class BrokenJSONError(ValueError):
    """The file does not go on as the object that it began with."""


class _Mark(NamedTuple):
    """A bracket or a colon outside strings, with the depth behind it and the quotes of the string before it."""

    place: int
    byte: int
    depth: int
    key_start: int
    key_end: int


@dataclass
class _State:
    """What must be known of the file before a block to understand the block."""

    in_string: bool = False
    depth: int = 0
    quotes: IntArray = field(default_factory=lambda: np.array([-1, -1]))


def members(path: Path) -> Iterator[Member]:
    """Find the members of the object that a file consists of; no more than a block of it is held in memory.

    Yields:
        The members in the order of the file.

    Raises:
        BrokenJSONError: The file is no object, ends too early, or goes on behind the object. What was found before that
            has been yielded. Errors within a value are not looked for.
    """
    with path.open("rb") as file:
        head = file.read(64).lstrip(BLANKS)
        if not head.startswith(b"{"):
            raise BrokenJSONError(f"the file is no JSON object: it begins with {head[:8]!r}" if head else "it is empty")
        file.seek(0)
        yield from _follow(file)


def _follow(file: BinaryIO) -> Iterator[Member]:
    key: str | None = None
    start = end = size = 0
    for mark in _outline(file):
        if mark.byte == COLON and mark.depth == 1:
            if key is not None:
                yield Member(key, start, end, size)
            key, start, end, size = _key(file, mark), mark.place + 1, mark.place + 1, 0
        elif mark.byte == COLON:
            size += 1
        elif mark.depth == 2:
            start = mark.place
        elif mark.depth == 1:
            end = mark.place + 1
        else:
            if key is not None:
                yield Member(key, start, end, size)
            _require_end(file, mark.place + 1)
            return
    within = "" if key is None else f" within {key!r}"
    raise BrokenJSONError(f"the file ends{within} (byte {file.tell()}) before its object is closed")


def _key(file: BinaryIO, mark: _Mark) -> str:
    try:
        return str(json.loads(os.pread(file.fileno(), mark.key_end + 1 - mark.key_start, max(mark.key_start, 0))))
    except ValueError:
        raise BrokenJSONError(f"no name stands before the colon at byte {mark.place}") from None


def _require_end(file: BinaryIO, place: int) -> None:
    rest = os.pread(file.fileno(), 64, place).strip(BLANKS)
    if rest:
        raise BrokenJSONError(f"the file goes on behind its object (byte {place}): {rest[:20]!r}")


def _outline(file: BinaryIO) -> Iterator[_Mark]:
    """Yield the marks that outline the object and its members: those at depths of 2 and less."""
    state = _State()
    offset = 0
    while block := file.read(BLOCK_BYTES):
        while block.endswith(b"\\") and (following := file.read(1)):  # keep it with the byte that it protects
            block += following
        yield from _outline_of(np.frombuffer(block, dtype=np.uint8), offset, state)
        offset += len(block)


def _outline_of(block: NDArray[np.uint8], offset: int, state: _State) -> Iterator[_Mark]:
    places = np.flatnonzero(IS_MARK[block])
    kinds = block[places]
    if (kinds == BACKSLASH).any():
        kept = _is_structure(block, places, kinds)
        places, kinds = places[kept], kinds[kept]
    is_quote = kinds == QUOTE
    quotes = np.concatenate([state.quotes, places[is_quote] + offset])
    outside = np.flatnonzero(~is_quote)
    passed = np.cumsum(is_quote)[outside]  # quotes of the block before each other mark
    free = (passed + state.in_string) % 2 == 0
    places, kinds, passed = places[outside][free], kinds[outside][free], passed[free]
    change = DEPTH_CHANGE[kinds]
    depth = np.cumsum(change) + state.depth
    # Opening an object or array within a member, or closing one, is no concern of the outline.
    chosen = np.where(change == 0, (depth == 1) | (depth == 2), np.where(change > 0, depth == 2, depth <= 1))
    last = passed[chosen] + len(state.quotes)
    state.in_string ^= bool(is_quote.sum() % 2)
    state.depth = int(depth[-1]) if len(depth) else state.depth
    state.quotes = quotes[-2:]
    columns = (places[chosen] + offset, kinds[chosen], depth[chosen], quotes[last - 2], quotes[last - 1])
    yield from map(_Mark._make, zip(*(column.tolist() for column in columns), strict=True))


def _is_structure(block: NDArray[np.uint8], places: IntArray, kinds: NDArray[np.uint8]) -> BoolArray:
    """Tell which marks are neither backslashes nor quotes that an odd number of backslashes makes part of a string."""
    slashes = places[kinds == BACKSLASH]
    ends = np.flatnonzero(np.diff(slashes, append=-1) != 1)  # the last one of each run
    lengths = np.diff(ends, prepend=-1)
    protected = np.isin(places, slashes[ends[lengths % 2 == 1]] + 1) & (kinds == QUOTE)
    structure: BoolArray = ~protected & (kinds != BACKSLASH)
    return structure
