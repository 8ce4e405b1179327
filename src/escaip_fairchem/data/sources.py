"""Files to convert: finding them, dividing them into chunks of work, and reading the structures of a chunk."""

from __future__ import annotations

import glob
import io
import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ase.db
import ase.io
from ase import Atoms
from ase.io.formats import UnknownFileTypeError, filetype, get_compression, open_with_compression
from ase.io.trajectory import Trajectory
from ase.io.vasp import iread_vasp_out

from escaip_fairchem.errors import DataError

from .faults import refuse_fault_of_machine
from .progress import watch
from .xyz import BrokenFrameError, Part, index_frames, read_frames

Kind = Literal["xyz", "database", "trajectory", "raw", "other"]
CHUNK_FRAMES = 500
NO_STRUCTURE = "the file holds no structure"
NO_FILE = "neither a file nor a folder: a link to nothing, or a device"
DATABASE_FORMS = ("db", "aselmdb", "json")
# ASE reads these to the end before it hands over the first structure; its own iterators do not.
STREAMS: Mapping[str, Callable[..., Iterator[Atoms]]] = {"vasp-out": iread_vasp_out}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file.

    Attributes:
        path: Where it is.
        name: How identifiers and reports call it: its path below the folder that all files share.
    """

    path: Path
    name: str


class Span(NamedTuple):
    """Where a part of a file is: its first byte, the byte behind it, and how many structures it counts as."""

    start: int
    end: int
    structures: int


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some structures of one file: the unit of parallel, resumable work.

    Attributes:
        number: Position among all chunks.
        source: The file.
        kind: How it is read.
        form: ASE's name of the format; empty for a file that no reader recognises.
        start: Number of the chunk's first structure in the file.
        count: Structures to read; None where only reading to the end of the file tells.
        at_most: Stop reading after this many; None never does.
        offset: Where the chunk starts in the file, bytes; plain xyz only.
        rows: Ids of the rows; databases only.
        keys: Names of the parts of the file that the chunk covers; some raw formats only.
        spans: Where those parts are; formats that are read from the middle only.
        failure: Why the rest of the file cannot be read, where that is known already.
    """

    number: int
    source: Source
    kind: Kind
    form: str
    start: int = 0
    count: int | None = None
    at_most: int | None = None
    offset: int = 0
    rows: tuple[int, ...] = ()
    keys: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()
    failure: str = ""


@dataclass(frozen=True)
class Unreadable:
    """Stands in for a structure that could not be read.

    Attributes:
        detail: What the reader said.
        rest: Nothing that follows in the file can be read either.
    """

    detail: str
    rest: bool = False


class NotStored:
    """Stands in ``Atoms.info`` for contents that a raw format leaves out on purpose, so that the report names them."""


@dataclass(frozen=True, kw_only=True)
class RawFormat:
    """A format in which a benchmark's data are published and that ASE does not read.

    Attributes:
        name: What ``--format`` calls it.
        accepts: Whether a file found in a folder is one of this format's, by its name.
        plan: Divides a file into chunks of kind ``raw``, at most so many structures if a limit is given. The plan
            depends on the file alone.
        read: Yields the structures of a chunk with labels as ``Atoms.info`` and ``Atoms.arrays`` have them, or a
            stand-in for each that cannot be read.
    """

    name: str
    accepts: Callable[[Path], bool]
    plan: Callable[[Source, int | None], Iterator[Chunk]]
    read: Callable[[Chunk], Iterator[Atoms | Unreadable]]


def raw_format(name: str | None) -> RawFormat | None:
    """Look a raw format up by its name; None for formats of ASE's."""
    from .raw import RAW_FORMATS  # whose modules import this one

    return RAW_FORMATS.get(name or "")


def find_files(inputs: Sequence[str], *, exclude: Path, form: str | None = None) -> list[Source]:
    """Expand files, folders (searched through, hidden names left out) and glob patterns.

    Args:
        inputs: As given on the command line.
        exclude: Folder that is being written into, whose files are no input.
        form: Name of the format of all files. A raw format takes its own files alone out of folders and patterns.

    Returns:
        Every file once, in the order of the inputs, those of a folder or pattern sorted.

    Raises:
        DataError: An input matches nothing.
    """
    paths: dict[Path, Path] = {}
    raw = raw_format(form)
    for given in inputs:
        found = [path for path in _expand(given) if real_path(exclude) not in real_path(path).parents]
        if raw is not None and found != [Path(given).expanduser()]:
            found = [path for path in found if raw.accepts(path)]
        if not found:
            kind = "" if raw is None else f" of the format {raw.name}"
            raise DataError(f"no file{kind} matches {given!r}; give files, folders or patterns such as 'runs/*/OUTCAR'")
        for path in found:
            paths.setdefault(real_path(path), path)
    resolved = list(paths)
    shared = Path(commonpath([path.parent for path in resolved]))
    return [Source(path=given, name=path.relative_to(shared).as_posix()) for path, given in paths.items()]


def real_path(path: Path) -> Path:
    """Follow links as far as they lead; ``Path.resolve`` fails on those that lead to themselves."""
    return Path(os.path.realpath(path))


def file_state(path: Path) -> tuple[str, int, int]:
    """Say which file is read and how it is now: where it really is, its bytes, and when it was changed (ns)."""
    # A link to nothing has no file whose state could be asked for.
    state = path.stat(follow_symlinks=path.exists())
    return str(real_path(path)), state.st_size, state.st_mtime_ns


def _expand(given: str) -> list[Path]:
    """Name what an input stands for; what is no file is among it, so that the report can say so."""
    path = Path(given).expanduser()
    if os.path.lexists(path):
        return _inside(path)
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns)
    return [file for match in matches for file in _inside(match)]


def _inside(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    items = (item for item in path.rglob("*") if not item.is_dir())
    return sorted(item for item in items if not _is_hidden(item.relative_to(path)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def plan_chunks(
    sources: Sequence[Source], *, form: str | None = None, limit: int | None = None, show_progress: bool = False
) -> list[Chunk]:
    """Divide files into chunks. The plan depends on the files alone, never on the number of workers.

    Args:
        sources: The files.
        form: ASE's name of the format of all files; None recognises each.
        limit: Plan for this many structures; more may be planned where a file does not tell how many it holds.
        show_progress: Report on standard error; files that have to be searched through take minutes.

    Returns:
        Chunks in the order of files and structures.
    """
    sizes = [source.path.stat().st_size if source.path.is_file() else 0 for source in sources]
    starts = dict(zip(sources, itertools.accumulate(sizes, initial=0), strict=False))
    found = watch(
        _all_chunks(sources, form, limit),
        total=sum(sizes),
        title="looking for structures",
        reach=lambda chunk: starts[chunk.source] + (chunk.spans[-1].end if chunk.spans else chunk.offset),
        size=lambda chunk: chunk.count or 0,
        show=show_progress,
    )
    return [_numbered(chunk, number) for number, chunk in enumerate(found)]


def _all_chunks(sources: Sequence[Source], form: str | None, limit: int | None) -> Iterator[Chunk]:
    planned = 0
    for source in sources:
        empty = True
        for chunk in _chunks_of(source, form, None if limit is None else limit - planned):
            empty = False
            planned += chunk.count or 0
            yield chunk
        if empty:
            yield Chunk(number=0, source=source, kind="other", form="", failure=NO_STRUCTURE)
        if limit is not None and planned >= limit:
            return


def _numbered(chunk: Chunk, number: int) -> Chunk:
    return Chunk(**{**chunk.__dict__, "number": number})


def _chunks_of(source: Source, form: str | None, limit: int | None) -> Iterator[Chunk]:
    """Divide one file; whatever is wrong with it is said in a chunk's ``failure``, for the report."""
    if not source.path.is_file():  # opening it could wait for ever
        yield Chunk(number=0, source=source, kind="other", form="", failure=NO_FILE)
        return
    position = 0
    try:
        for chunk in _divided(source, form, limit):
            yield chunk
            position = chunk.start + (chunk.count or 0)
    except Exception as error:  # noqa: BLE001 (readers of foreign files raise anything; the report says what)
        refuse_fault_of_machine(error, source.path)
        yield Chunk(number=0, source=source, kind="other", form="", start=position, failure=describe(error))


def _divided(source: Source, form: str | None, limit: int | None) -> Iterator[Chunk]:
    raw = raw_format(form)
    if raw is not None:
        yield from raw.plan(source, limit)
        return
    kind, recognised = _recognise(source.path, form)
    if kind == "xyz" and get_compression(str(source.path))[1] is None:
        yield from _xyz_chunks(source, recognised, index_frames(source.path, CHUNK_FRAMES, limit))
    elif kind == "database":
        rows = _row_ids(source.path, recognised)[:limit]
        yield from _equal_chunks(source, kind, recognised, len(rows), rows)
    elif kind == "trajectory":
        with Trajectory(source.path) as trajectory:
            count = len(trajectory)
        yield from _equal_chunks(source, kind, recognised, count if limit is None else min(count, limit))
    else:
        yield Chunk(number=0, source=source, kind=kind, form=recognised, at_most=limit)


def _recognise(path: Path, form: str | None) -> tuple[Kind, str]:
    if path.suffix[1:] in DATABASE_FORMS and form in (None, *DATABASE_FORMS):
        return "database", path.suffix[1:]
    recognised = form or filetype(str(path))
    kinds: dict[str, Kind] = {"extxyz": "xyz", "xyz": "xyz", "traj": "trajectory"}
    kinds |= dict.fromkeys(DATABASE_FORMS, "database")
    return kinds.get(recognised, "other"), recognised


def _row_ids(path: Path, form: str) -> list[int]:
    with _connect(path, form) as database:
        if form == "aselmdb":  # it lists its ids, and would decode every row to select them
            return list(database.ids)
        return [row.id for row in database.select(include_data=False)]


def _connect(path: Path, form: str) -> ase.db.core.Database:
    if form == "db":
        _require_systems(path)
    options = {"readonly": True, "use_lock_file": False} if form == "aselmdb" else {}
    return ase.db.connect(path, type=form, **options)


def _require_systems(path: Path) -> None:
    """Refuse SQLite files of other programs: ASE makes its tables in any that lacks them, even to read it."""
    with closing(sqlite3.connect(f"{real_path(path).as_uri()}?mode=ro", uri=True)) as database:
        found = database.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'systems'").fetchone()
    if found is None:
        raise DataError("an SQLite file, but no database of ASE: it has no table 'systems'")


def _xyz_chunks(source: Source, form: str, parts: Iterator[Part]) -> Iterator[Chunk]:
    frames = 0
    try:
        for part in parts:
            yield Chunk(
                number=0, source=source, kind="xyz", form=form, start=part.start, count=part.count, offset=part.offset
            )
            frames = part.start + part.count
    except BrokenFrameError as error:
        yield Chunk(number=0, source=source, kind="xyz", form=form, start=frames, failure=str(error))


def _equal_chunks(source: Source, kind: Kind, form: str, count: int, rows: Sequence[int] = ()) -> Iterator[Chunk]:
    for start in range(0, count, CHUNK_FRAMES):
        size = min(CHUNK_FRAMES, count - start)
        some = tuple(rows[start : start + size])
        yield Chunk(number=0, source=source, kind=kind, form=form, start=start, count=size, rows=some)


def read_chunk(chunk: Chunk) -> Iterator[Atoms | Unreadable]:
    """Read the structures of a chunk, with a stand-in for each that cannot be read.

    Raises:
        MachineFaultError: The machine fails, which is no fault of the file.
    """
    if chunk.failure:
        yield Unreadable(chunk.failure, rest=True)
        return
    readers = {"xyz": _read_xyz, "database": _read_rows, "trajectory": _read_trajectory, "other": _read_other}
    try:
        wanted = chunk.at_most if chunk.count is None else chunk.count
        empty = True
        raw = raw_format(chunk.form)
        read = readers[chunk.kind] if raw is None else raw.read
        for item in itertools.islice(read(chunk), wanted):
            empty = False
            yield item
        if empty:
            yield Unreadable(f"{NO_STRUCTURE} (read as {chunk.form})", rest=True)
    except Exception as error:  # noqa: BLE001 (as above)
        refuse_fault_of_machine(error, chunk.source.path)
        yield Unreadable(describe(error), rest=True)


def _read_xyz(chunk: Chunk) -> Iterator[Atoms | Unreadable]:
    with open_with_compression(str(chunk.source.path), "rb") as stream:
        if chunk.offset:
            stream.seek(chunk.offset)
        for _, text in read_frames(stream):
            yield _attempt(chunk, _parse_xyz, text)


def _parse_xyz(text: bytes) -> Atoms:
    return ase.io.read(io.StringIO(text.decode()), format="extxyz")


def _read_rows(chunk: Chunk) -> Iterator[Atoms | Unreadable]:
    with _connect(chunk.source.path, chunk.form) as database:
        for number in chunk.rows:
            yield _attempt(chunk, _row_to_atoms, database, number)


def _row_to_atoms(database: ase.db.core.Database, number: int) -> Atoms:
    row = database.get(id=number)
    atoms = row.toatoms()
    atoms.info.update(row.key_value_pairs)
    if isinstance(row.data, dict):
        atoms.info.update(row.data)
    return atoms


def _read_trajectory(chunk: Chunk) -> Iterator[Atoms | Unreadable]:
    with Trajectory(chunk.source.path) as trajectory:
        for number in range(chunk.start, chunk.start + (chunk.count or 0)):
            yield _attempt(chunk, trajectory.__getitem__, number)


def _read_other(chunk: Chunk) -> Iterator[Atoms]:
    if chunk.form in STREAMS:
        with open_with_compression(str(chunk.source.path), "r") as stream:
            yield from STREAMS[chunk.form](stream, index=slice(None))
        return
    yield from ase.io.iread(str(chunk.source.path), index=":", format=chunk.form)


def _attempt(chunk: Chunk, read: Callable[..., Atoms], *arguments: Any) -> Atoms | Unreadable:
    try:
        return read(*arguments)
    except Exception as error:  # noqa: BLE001 (as above)
        refuse_fault_of_machine(error, chunk.source.path)
        return Unreadable(describe(error))


def describe(error: Exception) -> str:
    """Say in one line what a reader complained about."""
    if isinstance(error, UnknownFileTypeError):
        return "no reader of ASE recognises this file"
    text = " ".join(str(error).split())
    if isinstance(error, BrokenFrameError | DataError):
        return text
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
