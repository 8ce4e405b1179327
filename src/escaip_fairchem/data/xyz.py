"""Frames of xyz files as text, so that a broken frame costs no other and a large file can be read in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class Part:
    """Consecutive frames of a file: the number of the first, how many, and where they start (bytes)."""

    start: int
    count: int
    offset: int


class BrokenFrameError(ValueError):
    """The file does not go on with a whole frame."""


def index_frames(path: Path, frames_per_part: int, limit: int | None = None) -> Iterator[Part]:
    """Find where the frames of an xyz file start, without parsing them.

    Args:
        path: File, not compressed.
        frames_per_part: Frames per part.
        limit: Stop after this many frames.

    Yields:
        The frames, some at a time.

    Raises:
        BrokenFrameError: The file cannot be followed to its end; what was found before that has been yielded.
    """
    frames = start = 0
    broken: BrokenFrameError | None = None
    with path.open("rb") as stream:
        try:
            for offset, _ in read_frames(stream):
                if frames == limit:
                    break
                if frames % frames_per_part == 0:
                    start = offset
                frames += 1
                if frames % frames_per_part == 0:
                    yield Part(frames - frames_per_part, frames_per_part, start)
        except BrokenFrameError as error:
            broken = error
    rest = frames % frames_per_part
    if rest:
        yield Part(frames - rest, rest, start)
    if broken is not None:
        raise broken


def read_frames(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Cut a stream, from where it is, into frames.

    Yields:
        Where each frame starts (bytes), and its text.

    Raises:
        BrokenFrameError: A frame does not start with a number of atoms, or the file ends within one.
    """
    offset = stream.tell()
    line = stream.readline()
    while line:
        if not line.strip():
            offset, line = offset + len(line), stream.readline()
            continue
        lines = [line, *_body(stream, line, offset)]
        line = stream.readline()
        while line.startswith(b"VEC"):  # cell vectors of an older dialect follow the atoms
            lines.append(line)
            line = stream.readline()
        text = b"".join(lines)
        yield offset, text
        offset += len(text)


def _body(stream: BinaryIO, head: bytes, offset: int) -> list[bytes]:
    """Read the comment and the atoms that a frame's first line announces."""
    try:
        atoms = int(head)
    except ValueError:
        shown = head.decode(errors="replace").strip()[:40]
        raise BrokenFrameError(f"{shown!r} stands where a number of atoms should (byte {offset})") from None
    lines = [stream.readline() for _ in range(atoms + 1)]
    if lines and not lines[-1]:
        present = max(sum(1 for line in lines if line) - 1, 0)
        raise BrokenFrameError(f"the file ends after {present} of {atoms} atoms (byte {offset})")
    return lines
