"""OC20's raw S2EF files: ``<n>.extxyz`` with some 5,000 frames beside ``<n>.txt`` with a line for each.

Both are published compressed (``.xz``). A line is ``random<sid>,frame<fid>,<reference energy>``: the energy (eV) of the
clean surface and the adsorbate by themselves, which an adsorption energy is relative to. In the frames, ``move_mask``
is F for atoms that were held in place.
"""

from __future__ import annotations

import lzma
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.geometry import complete_cell
from ase.io.formats import open_with_compression

from .checks import Limits, Problem, Reason, find_problem
from .faults import refuse_fault_of_machine
from .labels import LabelError, LabelOptions, to_structure
from .prebuilt import decode_record
from .row_files import write_rows
from .schema import Structure
from .shards import Shard, ShardBuilder, Unit
from .sources import Chunk, Source, Unreadable, describe, read_chunk, real_path
from .writer import encode_classic_row

NAME = re.compile(r"(?P<stem>.+)\.(?P<kind>extxyz|txt)(?P<packed>\.xz)?")
LINE = re.compile(r"\s*random(?P<sid>\d+)\s*,\s*frame(?P<fid>\d+)\s*(?:,\s*(?P<reference>\S*)\s*)?")
LABELS = LabelOptions()


@dataclass(frozen=True, kw_only=True)
class RawOptions:
    """What is made of raw files.

    Attributes:
        limits: What is usable.
        total_energies: Store energies as they are, instead of energies minus references.
        test_data: There are no labels to store.
    """

    limits: Limits = field(default_factory=Limits)
    total_energies: bool = False
    test_data: bool = False

    @property
    def needs_reference(self) -> bool:
        """Whether every line must hold a reference energy."""
        return not (self.total_energies or self.test_data)


@dataclass(frozen=True)
class Line:
    """What a line says about its frame; the reference (eV) is None where it has none."""

    sid: int
    fid: int
    reference: float | None


def find_raw_files(folder: Path, *, exclude: Path) -> list[tuple[Path, Path | None]]:
    """Find pairs of raw files in a folder and below it, in the order of their numbers.

    Args:
        folder: The folder.
        exclude: Folder that is being written into.

    Returns:
        The file of frames and that of lines; where one is missing, the one that is there and None.
    """
    pairs: dict[tuple[Path, str], dict[str, Path]] = {}
    for path in sorted(folder.rglob("*")):
        match = NAME.fullmatch(path.name)
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if match is None or hidden or path.is_dir() or real_path(exclude) in real_path(path).parents:
            continue
        if match["kind"] == "txt" and not (match["packed"] or match["stem"].isdecimal()):
            continue  # a README, say
        # Where a file lies beside what it was unpacked to, that one is read: sorting puts it first.
        pairs.setdefault((path.parent, match["stem"]), {}).setdefault(match["kind"], path)
    ordered = sorted(pairs.items(), key=lambda item: (item[0][0], _by_number(item[0][1])))
    return [(kinds["extxyz"], kinds.get("txt")) if "extxyz" in kinds else (kinds["txt"], None) for _, kinds in ordered]


def _by_number(stem: str) -> tuple[bool, int, str]:
    number = stem.isdecimal()
    return not number, int(stem) if number else 0, stem


def parse_line(text: str, *, needs_reference: bool) -> Line | Problem:
    """Read a line, or say what is wrong with it."""
    match = LINE.fullmatch(text)
    if match is None:
        return Problem(Reason.MALFORMED_LINE, f"{text.strip()[:60]!r} is not random<sid>,frame<fid>,<reference energy>")
    reference = None
    if needs_reference:
        if not match["reference"]:
            return Problem(
                Reason.MALFORMED_LINE, f"{text.strip()[:60]!r} has no reference energy (--test-data, --total-energies)"
            )
        reference = _finite(match["reference"])
        if reference is None:
            return Problem(Reason.MALFORMED_LINE, f"the reference energy {match['reference']!r} is no finite number")
    return Line(int(match["sid"]), int(match["fid"]), reference)


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def write_raw_shard(unit: Unit, file: Path, options: RawOptions, duplicates: Mapping[int, str]) -> Shard:
    """Turn a pair of raw files into one file of rows in the classic format, frame by frame.

    Args:
        unit: The pair.
        file: File of rows to write; it appears when it is complete, and not at all without a usable frame.
        options: What to make of the frames.
        duplicates: Frames to leave out, each with the place where its identifiers occurred before.

    Raises:
        DataError: The machine fails at reading or writing.
    """
    builder = ShardBuilder()
    lines = _lines_of(unit)
    if isinstance(lines, Problem):
        builder.skip(0, lines.reason, lines.detail)
        return builder.finish(1)
    reader = _Reader(unit.source, lines, options, duplicates, builder)
    rows = write_rows(file, reader.rows())
    if not reader.broken and reader.frames != len(lines):
        builder = ShardBuilder()
        builder.skip(
            0,
            Reason.COUNTS_DIFFER,
            f"{reader.frames} frames and {len(lines)} lines: which belongs to which cannot be told",
        )
        rows = 0
    if rows == 0:
        file.unlink()
    return builder.finish(reader.frames)


def _lines_of(unit: Unit) -> list[str] | Problem:
    if unit.partner is None:
        name = unit.source.path.name
        other = re.sub(r"extxyz|txt", lambda match: "txt" if match[0] == "extxyz" else "extxyz", name)
        return Problem(Reason.MISSING_PARTNER, f"there is no {other} beside {name}")
    try:
        with open_with_compression(str(unit.partner), "rb") as stream:
            return list(stream.read().decode().rstrip().splitlines())
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError, MemoryError) as error:
        refuse_fault_of_machine(error, unit.partner)
        return Problem(Reason.UNREADABLE_FILE, f"{unit.partner.name}: {describe(error)}")


class _Reader:
    """Reads the frames of a file beside its lines, and remembers how many there were."""

    def __init__(
        self,
        source: Source,
        lines: list[str],
        options: RawOptions,
        duplicates: Mapping[int, str],
        builder: ShardBuilder,
    ) -> None:
        self._source = source
        self._lines = lines
        self._options = options
        self._duplicates = duplicates
        self._builder = builder
        self.frames = 0
        self.broken = False

    def rows(self) -> Iterator[bytes]:
        """Yield the encoded rows of the usable frames."""
        chunk = Chunk(number=0, source=self._source, kind="xyz", form="extxyz")
        for position, item in enumerate(read_chunk(chunk)):
            if isinstance(item, Unreadable) and item.rest:
                self._note_end(position, item)
                return
            self.frames += 1
            if position >= len(self._lines):
                continue  # only counted: the whole file is left out
            try:
                outcome = self._process(item, position)
            except Exception as error:  # noqa: BLE001 (one odd frame must not stop a conversion; the report names it)
                refuse_fault_of_machine(error, self._source.path)
                outcome = Problem(Reason.UNEXPECTED, describe(error))
            if isinstance(outcome, Problem):
                self._builder.skip(position, outcome.reason, outcome.detail)
                continue
            row = encode_classic_row(outcome)
            self._builder.fields = self._builder.fields or fields_of_row(row)
            self._builder.add(outcome, position)
            yield row

    def _note_end(self, position: int, item: Unreadable) -> None:
        self.broken = True
        whole = position == 0
        rest = f"; the frames of the last {len(self._lines) - position} lines were not read"
        self._builder.skip(
            position,
            Reason.UNREADABLE_FILE if whole else Reason.UNREADABLE_FRAME,
            item.detail + ("" if whole else rest),
        )

    def _process(self, item: Atoms | Unreadable, position: int) -> Structure | Problem:
        if isinstance(item, Unreadable):
            return Problem(Reason.UNREADABLE_FRAME, item.detail)
        line = parse_line(self._lines[position], needs_reference=self._options.needs_reference)
        if isinstance(line, Problem):
            return line
        if position in self._duplicates:
            return Problem(
                Reason.DUPLICATE, f"random{line.sid},frame{line.fid} occurs at {self._duplicates[position]} before"
            )
        return _structure(item, self._source.name, position, line, self._options)


def _structure(atoms: Atoms, name: str, position: int, line: Line, options: RawOptions) -> Structure | Problem:
    if not all(isinstance(constraint, FixAtoms) for constraint in atoms.constraints):
        return Problem(Reason.UNREADABLE_FRAME, "move_mask has a column per axis; OC20's has one per atom")
    atoms.info.update(sid=line.sid, fid=line.fid)
    try:
        structure = to_structure(atoms, name, position, LABELS)
    except LabelError as error:
        return error.problem
    if options.test_data:
        structure = replace(structure, energy=None, forces=None)
    structure = replace(structure, stress=None)  # OC20 has none, and batches need equal fields
    problem = find_problem(structure, options.limits)
    if problem is not None:
        return problem
    if line.reference is not None and structure.energy is not None:
        structure = replace(structure, energy=structure.energy - line.reference)
    return wrapped(structure)


def wrapped(structure: Structure) -> Structure:
    """Move atoms by whole cell vectors into the cell, along the vectors that are periodic.

    The published frames follow atoms across the boundary. fairchem's own preprocessing wraps them, and its models count
    on that: their search for neighbours looks only so many cells away, and misses some of an atom that is further out.

    Args:
        structure: Its periodic vectors must be independent.

    Returns:
        The same structure; atoms that are inside already do not move at all.
    """
    vectors = complete_cell(structure.cell)
    shift = np.floor(np.linalg.solve(vectors.T, structure.positions.T).T) * structure.pbc
    return replace(structure, positions=structure.positions - shift @ vectors) if shift.any() else structure


def fields_of_row(row: bytes) -> tuple[str, ...]:
    """Name what an encoded row holds, sorted."""
    return tuple(sorted(decode_record(row)))
