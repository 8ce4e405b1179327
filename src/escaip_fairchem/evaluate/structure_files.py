"""Structures to simulate, by their ids, from anything ASE reads and from the files of benchmarks."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms

from escaip_fairchem.data.sources import Source, Unreadable, describe, find_files, plan_chunks, read_chunk, real_path
from escaip_fairchem.errors import DataError, nearest
from escaip_fairchem.evaluate.classic_files import SUFFIX as CLASSIC
from escaip_fairchem.evaluate.classic_files import read_classic
from escaip_fairchem.evaluate.structure_dictionary import from_dictionary, is_dictionary

MATERIAL_ID = "material_id"
"""The id that is used, where it is there, if no other is asked for: that of Matbench-Discovery's files."""

_OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_SHARDS = (".aselmdb", CLASSIC)
_LINES = (".jsonl", ".jsonlines", ".ndjson")


@dataclass(frozen=True, kw_only=True)
class Item:
    """A structure of the input.

    Attributes:
        number: Its position among all, from 0.
        identifier: Its id.
        place: File and number in it, for messages.
        atoms: The structure; None if it could not be read.
        problem: Why not.
    """

    number: int
    identifier: str
    place: str
    atoms: Atoms | None
    problem: str = ""


class StructureFiles:
    """All structures of some files, in the order of the files.

    Of several files, one that cannot be read, or not to its end, counts as one structure that cannot be read. Of a
    folder with shards of converted data, nothing else is taken.

    Args:
        inputs: Files, folders and glob patterns. Besides what ASE reads: JSON lines (``.jsonl``, also compressed) whose
            objects hold a structure as pymatgen writes it, archives (``.zip``) of extended XYZ files, and converted
            data in both formats (``.aselmdb``, ``.lmdb``; the latter are pickles, to be read only if trusted).
        ids: Entry that identifies a structure: of ``info``, of a database's key-value pairs, or of a JSON line. None
            takes ``material_id``, and the file's name and the number in it where there is none.
        form: Name of the format of all files; None recognises each.
        exclude: Folder that is being written into; None: nothing is written.
        limit: Take this many structures at most, the first ones.

    Raises:
        DataError: An input matches nothing.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        *,
        exclude: Path | None,
        ids: str | None = None,
        form: str | None = None,
        limit: int | None = None,
    ) -> None:
        self.ids, self.form, self.limit = ids, form, limit
        found = find_files(inputs, exclude=Path(os.devnull) if exclude is None else exclude, form=form)
        named = {real_path(Path(given).expanduser()) for given in inputs}
        shards = {source.path.parent for source in found if source.path.suffix in _SHARDS}
        self.sources = [
            source for source in found if real_path(source.path) in named or not _is_beside_data(source.path, shards)
        ]
        if not self.sources:
            raise DataError(f"{', '.join(inputs)}: no file with structures; give files, folders or patterns")

    def fingerprint(self) -> list[list[Any]]:
        """Path, size and time of change of every file."""
        states = [(real_path(source.path), _state(source.path)) for source in self.sources]
        return [[str(path), state.st_size, state.st_mtime_ns] for path, state in states]

    def count(self, check: Callable[[Item], None] = lambda item: None) -> int:
        """Read all ids.

        Args:
            check: Sees every structure, and may refuse it by an error.

        Raises:
            DataError: There is no structure, one has no id, two have the same, or the only file cannot be read to its
                end.
        """
        places: dict[str, str] = {}
        for item in self:
            check(item)
            if item.identifier in places:
                raise DataError(
                    f"{item.place}: id {item.identifier!r} is that of {places[item.identifier]} too; name an "
                    "entry with ids that differ (--ids KEY)"
                )
            places[item.identifier] = item.place
        if not places:
            raise DataError(f"{', '.join(source.name for source in self.sources)}: no structure")
        return len(places)

    def __iter__(self) -> Iterator[Item]:
        number = 0
        for source in self.sources:
            for index, atoms in enumerate(self._read_whole(source)):
                if self.limit is not None and number >= self.limit:
                    return
                yield self._item(number, source, index, atoms)
                number += 1

    def _item(self, number: int, source: Source, index: int, atoms: Atoms | Unreadable) -> Item:
        place = f"{source.name}:{index}"
        if isinstance(atoms, Unreadable):
            return Item(number=number, identifier=place, place=place, atoms=None, problem=f"unreadable: {atoms.detail}")
        return Item(number=number, identifier=self._identifier(atoms, place), place=place, atoms=atoms)

    def _identifier(self, atoms: Atoms, place: str) -> str:
        key = MATERIAL_ID if self.ids is None else self.ids
        if key in atoms.info:
            return str(atoms.info[key])
        if self.ids is None:
            return place
        raise DataError(f"{place}: no entry {self.ids!r} to identify it{nearest(self.ids, map(str, atoms.info))}")

    def _read_whole(self, source: Source) -> Iterator[Atoms | Unreadable]:
        try:
            yield from self._read(source)
        except DataError as error:
            if len(self.sources) == 1:  # a download that broke off, say; its rows would pass for the whole list
                raise
            yield Unreadable(describe(error), rest=True)

    def _read(self, source: Source) -> Iterator[Atoms | Unreadable]:
        suffixes = [suffix for suffix in source.path.suffixes if suffix not in _OPENERS]
        if self.form is None and suffixes and suffixes[-1] in _LINES:
            yield from _read_lines(source)
        elif self.form is None and source.path.suffix == ".zip":
            yield from _read_archive(source)
        elif self.form == "lmdb" or (self.form is None and source.path.suffix == CLASSIC):
            yield from read_classic(source.path)
        else:
            yield from self._read_with_ase(source)

    def _read_with_ase(self, source: Source) -> Iterator[Atoms | Unreadable]:
        for chunk in plan_chunks([source], form=self.form):
            for atoms in read_chunk(chunk):
                if isinstance(atoms, Unreadable) and atoms.rest:
                    raise DataError(f"{source.path}: cannot be read (on): {atoms.detail}")
                yield atoms


def _state(path: Path) -> os.stat_result:
    return path.stat() if path.exists() else path.lstat()  # a link to nothing is one of the files that cannot be read


def _is_beside_data(path: Path, shards: set[Path]) -> bool:
    """Whether a file found in a folder holds no structures: sizes for load balancing, locks, reports."""
    if path.suffix in _SHARDS:
        return False
    return path.parent in shards or path.name == "metadata.npz" or path.name.endswith((".lock", "-lock"))


def _read_lines(source: Source) -> Iterator[Atoms | Unreadable]:
    opener: Any = _OPENERS.get(source.path.suffix, open)
    try:
        with opener(source.path, "rt", encoding="utf-8") as file:
            yield from (_line_to_atoms(line) for line in file if line.strip())
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{source.path}: cannot be read (on): {describe(error)}") from error


def _line_to_atoms(line: str) -> Atoms | Unreadable:
    try:
        content = json.loads(line)
        if not isinstance(content, Mapping):
            raise DataError(f"holds {type(content).__name__} where an object is needed")
        found = [key for key, value in content.items() if is_dictionary(value)]
        if is_dictionary(content):
            atoms = from_dictionary(content)
        elif len(found) == 1:
            atoms = from_dictionary(content[found[0]])
        else:
            which = (
                f"several structures ({', '.join(found)})" if found else f"no structure (keys: {', '.join(content)})"
            )
            raise DataError(f"holds {which}; one object with 'sites' and 'lattice' is needed")
    except ValueError as error:  # of JSON, and our own
        return Unreadable(describe(error))
    atoms.info |= {key: value for key, value in content.items() if isinstance(value, str | int | float)}
    return atoms


def _read_archive(source: Source) -> Iterator[Atoms | Unreadable]:
    try:
        with zipfile.ZipFile(source.path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith((".extxyz", ".xyz")))
            for name in names:
                try:
                    yield from ase.io.iread(io.StringIO(archive.read(name).decode()), index=":", format="extxyz")
                except Exception as error:  # noqa: BLE001 (readers of foreign files raise anything; the row says what)
                    yield Unreadable(f"{name}: {describe(error)}")
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{source.path}: cannot be read: {describe(error)}") from error
