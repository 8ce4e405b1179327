"""Read, check and encode one chunk of structures, and keep the outcome on disk until it is sorted into splits."""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from ase import Atoms

from .checks import Limits, Problem, Reason, find_problem
from .faults import refuse_fault_of_machine, writing
from .labels import LabelError, LabelOptions, left_out, similar_keys, to_structure
from .schema import FrameTable, IntArray, Structure, numbers_of
from .sources import Chunk, Unreadable, describe, read_chunk
from .words import Words
from .writer import encode_ase_row, new_file, save_npz

NO_WORD = ""
COLUMNS = tuple(FrameTable.__dataclass_fields__)
MISSING = {Reason.MISSING_ENERGY: "energy", Reason.MISSING_FORCES: "forces", Reason.MISSING_STRESS: "stress"}


@dataclass(frozen=True)
class StagingOptions:
    """How chunks are read and checked.

    Attributes:
        labels: Where the labels are.
        limits: What is usable.
        group_key: Name in ``info`` of what must stay together; ``file`` for the file itself; None for nothing.
        count_key: Name in ``info`` of what the report counts; None for nothing.
    """

    labels: LabelOptions
    limits: Limits
    group_key: str | None = None
    count_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class StagedChunk:
    """What became of a chunk's structures.

    Attributes:
        table: Numbers of the usable ones, n rows.
        position: Their numbers in the file, shape (n,).
        group: What each must stay together with, n words; empty where nothing is known.
        counted: What the report counts each as, n words; empty likewise.
        offset: Where their encoded rows start in the chunk's file, shape (n,), bytes.
        length: How long the rows are, shape (n,), bytes.
        skipped: Number in the file, reason and detail of the others.
        left_out: Names of contents that are not stored.
    """

    table: FrameTable
    position: IntArray
    group: Words
    counted: Words
    offset: IntArray
    length: IntArray
    skipped: list[tuple[int, Reason, str]]
    left_out: frozenset[str]


@dataclass
class _Harvest:
    """What is known of a chunk so far: numbers about its structures, never the structures themselves."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    positions: list[int] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    counted: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    skipped: list[tuple[int, Reason, str]] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)

    def add(self, usable: _Usable, position: int, length: int) -> None:
        for name, value in usable.numbers.items():
            self.columns[name].append(value)
        self.positions.append(position)
        self.groups.append(sys.intern(usable.group))  # many structures, few groups
        self.counted.append(sys.intern(usable.counted))
        self.lengths.append(length)
        self.left_out |= usable.left_out


@dataclass(frozen=True, kw_only=True)
class _Usable:
    row: bytes
    numbers: dict[str, Any]
    group: str
    counted: str
    left_out: set[str]


def stage_chunk(chunk: Chunk, *, options: StagingOptions, folder: Path) -> int:
    """Read, check and encode a chunk, unless an earlier run has done so.

    Encoded rows go to ``chunk-<number>.rows``, everything else to ``chunk-<number>.npz``, whose presence says that
    the chunk is complete.

    Args:
        chunk: What to read.
        options: How to check it.
        folder: Where the two files go.

    Returns:
        The chunk's number.
    """
    if not _summary_path(folder, chunk.number).exists():
        rows = rows_path(folder, chunk.number)
        with new_file(rows) as file:
            harvest = _harvest(chunk, options, file)
        _save(_summary_path(folder, chunk.number), harvest)
    return chunk.number


def stager(options: StagingOptions, folder: Path) -> partial[int]:
    """Bind the options, giving a function of the chunk alone that other processes can be handed."""
    return partial(stage_chunk, options=options, folder=folder)


def _harvest(chunk: Chunk, options: StagingOptions, file: BinaryIO) -> _Harvest:
    harvest = _Harvest()
    for position, item in enumerate(read_chunk(chunk), start=chunk.start):
        try:
            outcome = _process(item, chunk, position, options)
        except Exception as error:  # noqa: BLE001 (one odd structure must not stop a conversion; the report names it)
            refuse_fault_of_machine(error, chunk.source.path)
            outcome = Problem(Reason.UNEXPECTED, describe(error))
        if isinstance(outcome, Problem):
            harvest.skipped.append((position, outcome.reason, outcome.detail))
        else:
            with writing(Path(file.name)):
                length = file.write(outcome.row)
            harvest.add(outcome, position, length)
    return harvest


def _process(item: Atoms | Unreadable, chunk: Chunk, position: int, options: StagingOptions) -> _Usable | Problem:
    outcome = _examine(item, chunk, position, options)
    if isinstance(outcome, Problem):
        return outcome
    assert isinstance(item, Atoms)
    return _Usable(
        row=encode_ase_row(outcome),
        numbers=numbers_of(outcome),
        group=_word(item, chunk, options.group_key),
        counted=_word(item, chunk, options.count_key),
        left_out=left_out(item, options.labels),
    )


def _examine(item: Atoms | Unreadable, chunk: Chunk, position: int, options: StagingOptions) -> Structure | Problem:
    if isinstance(item, Unreadable):
        whole_file = item.rest and position == 0
        detail = f"{item.detail}; nothing after it was read" if item.rest and not whole_file else item.detail
        return Problem(Reason.UNREADABLE_FILE if whole_file else Reason.UNREADABLE_FRAME, detail)
    try:
        structure = to_structure(item, chunk.source.name, position, options.labels)
    except LabelError as error:
        return error.problem
    problem = find_problem(structure, options.limits)
    if problem is not None and problem.reason in MISSING:
        return Problem(problem.reason, problem.detail + _hint(item, MISSING[problem.reason], options.labels))
    return problem or structure


def _hint(atoms: Atoms, label: str, options: LabelOptions) -> str:
    """Point to labels that are there under another name."""
    key = getattr(options, f"{label}_key")
    similar = [name for name in similar_keys(atoms, label) if name != key]
    under = "" if key == label else f" under {key!r}"
    return f"{under}; there is {', '.join(similar)} (--{label}-key)" if similar else under


def _word(atoms: Atoms, chunk: Chunk, key: str | None) -> str:
    if key is None:
        return NO_WORD
    if key == "file":
        return chunk.source.name
    value = atoms.info.get(key)
    return NO_WORD if value is None else str(value)


def rows_path(folder: Path, number: int) -> Path:
    """Name the file of a chunk's encoded rows."""
    return folder / f"chunk-{number:06d}.rows"


def _summary_path(folder: Path, number: int) -> Path:
    return folder / f"chunk-{number:06d}.npz"


def _save(path: Path, harvest: _Harvest) -> None:
    table = FrameTable.from_columns(harvest.columns)
    offsets = np.cumsum([0, *harvest.lengths])[:-1]
    skipped = harvest.skipped
    save_npz(
        path,
        **{f"table_{name}": getattr(table, name) for name in COLUMNS},
        position=np.array(harvest.positions, dtype=np.int64),
        **Words.of(harvest.groups).arrays("group"),
        **Words.of(harvest.counted).arrays("counted"),
        offset=offsets.astype(np.int64),
        length=np.array(harvest.lengths, dtype=np.int64),
        skipped_position=np.array([position for position, _, _ in skipped], dtype=np.int64),
        skipped_reason=np.array([reason.value for _, reason, _ in skipped], dtype=np.str_),
        skipped_detail=np.array([detail for _, _, detail in skipped], dtype=np.str_),
        left_out=np.array(sorted(harvest.left_out), dtype=np.str_),
    )


def load_staged(folder: Path, number: int) -> StagedChunk:
    """Load what became of a chunk."""
    with np.load(_summary_path(folder, number)) as saved:
        skipped = zip(saved["skipped_position"], saved["skipped_reason"], saved["skipped_detail"], strict=True)
        return StagedChunk(
            table=FrameTable(**{name: saved[f"table_{name}"] for name in COLUMNS}),
            position=saved["position"],
            group=Words.from_arrays("group", saved),
            counted=Words.from_arrays("counted", saved),
            offset=saved["offset"],
            length=saved["length"],
            skipped=[(int(position), Reason(str(reason)), str(detail)) for position, reason, detail in skipped],
            left_out=frozenset(map(str, saved["left_out"])),
        )


class StagedRows:
    """Encoded rows by chunk and place; keeps a limited number of files open."""

    OPEN_FILES = 128

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: OrderedDict[int, BinaryIO] = OrderedDict()

    def read(self, chunk: int, offset: int, length: int) -> bytes:
        """Read one encoded row."""
        file = self._files.pop(chunk, None) or rows_path(self._folder, chunk).open("rb")
        self._files[chunk] = file
        if len(self._files) > self.OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        file.seek(offset)
        return file.read(length)

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()
        self._files.clear()
