"""Relax many structures with one potential, so that a stopped run can be continued and lists can be shared out.

Everything unfinished lies in ``OUT/.partial``: finished rows, and now and then the whole pool. A run that continues
starts from the last pool that was saved and repeats the steps since then, in the same batches, so that it makes the
same table as one that was never stopped.
"""

from __future__ import annotations

import json
import re
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from escaip_fairchem.data.claims import NAME, WORK, Claim, claim, publish
from escaip_fairchem.data.manifest import Manifest, Record
from escaip_fairchem.data.writer import save_npz, save_text
from escaip_fairchem.errors import ConfigError, DataError
from escaip_fairchem.evaluate.attempts import free_again
from escaip_fairchem.evaluate.formation_energies import FormationEnergies
from escaip_fairchem.evaluate.potentials import Potential
from escaip_fairchem.evaluate.relaxation_pool import RelaxationOptions, RelaxationPool, Relaxed
from escaip_fairchem.evaluate.relaxation_table import (
    COLUMNS,
    LINES,
    TABLE,
    Row,
    RowFile,
    read_table,
    row_of,
    write_table,
)
from escaip_fairchem.evaluate.structure_files import Item, StructureFiles

COMMAND = "escaip evaluate relax"
SUMMARY = "summary.json"
OUTPUTS = (LINES, TABLE, SUMMARY)
_LATER = ("columns", "formation_energies")
"""What decides only how the table is written."""
_FOLDER = re.compile(r"part-(\d+)-of-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A share of the structures: of every ``of`` in a row, the ``number``-th, counted from 1.

    Raises:
        ConfigError: There is no such share.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise ConfigError(f"--part {self.number}/{self.of}: the first number goes from 1 to the second")

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read ``K/N``."""
        first, _, second = text.partition("/")
        if not (first.isdecimal() and second.isdecimal()):
            raise ConfigError(f"--part {text!r}: write K/N, for example 1/4")
        return cls(number=int(first), of=int(second))

    def folder(self, out: Path) -> Path:
        """Where the share's own table goes."""
        return out / f"part-{self.number}-of-{self.of}"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How the work is done; none of it changes what is relaxed or when a relaxation ends.

    Attributes:
        batch_atoms: Atoms in the pool at most; a structure with more is alone in it.
        part: Relax this share only.
        columns: New names of columns of the table.
        formation: Adds formation energies to the table, or None.
        save_every: Seconds between two saves of the pool.
        overwrite: Replace what another run left in the folder.
        identity: What else decides the results, for the manifest: the checkpoint.

    Raises:
        ConfigError: A value is out of range.
    """

    batch_atoms: int = 2000
    part: Part | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    formation: FormationEnergies | None = None
    save_every: float = 60.0
    overwrite: bool = False
    identity: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch_atoms < 1:
            raise ConfigError(f"--batch-atoms {self.batch_atoms}: must be at least 1")
        if self.formation and self.formation.column in {self.columns.get(name, name) for name in COLUMNS}:
            raise ConfigError(f"--columns: a column would be called {self.formation.column!r}, as the added one is")


def relax_files(
    make_potential: Callable[[], Potential],
    files: StructureFiles,
    out: Path,
    options: RelaxationOptions,
    run: RunOptions,
    *,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Relax all structures of some files, or what is left of them.

    Without a part, finished parts in the folder are joined instead of relaxing anything. Where all is done, and only
    columns are to be other ones, the table is written anew from itself.

    Args:
        make_potential: Makes the potential; called only if something has to be relaxed.
        files: The structures.
        out: Folder to write into.
        options: When relaxations end.
        run: How to do it.
        report: Takes lines on the progress.

    Returns:
        What ``summary.json`` holds.

    Raises:
        DataError: The input cannot be used, the folder holds something else, or only some of the parts are there.
        ConfigError: The potential lacks stresses.
    """
    manifest = _manifest(files, options, run)
    folder = out if run.part is None else run.part.folder(out)
    finished = None if run.overwrite else _finished(folder, manifest)
    if finished is not None:
        report(f"{folder}: other columns, written anew from the structures that are relaxed already")
        parts = [(run.part or Part(number=1, of=1), finished)]
    else:
        parts = _parts(out, manifest) if run.part is None else []
    with claim(folder, manifest, outputs=OUTPUTS, overwrite=run.overwrite or finished is not None) as claimed:
        if claimed.complete:
            return _read_summary(folder)
        seconds = None if finished is None else _read_summary(folder)["seconds"]
        with free_again(claimed):
            claimed.staged.mkdir(exist_ok=True)
            rows = RowFile(claimed.staged / "rows.jsonl")
            total = files.count() if run.formation is None else files.count(run.formation.check)
            if parts:
                _join(parts, rows)
            else:
                potential = make_potential()
                attempt = _Run(potential, files, claimed, options, run, rows, _share(total, run.part))
        if not parts:
            seconds = attempt.go(report)
        if len(rows) != _share(total, run.part):
            raise DataError(f"{out}: {len(rows)} rows for {total} structures; start again with --overwrite")
        return _finish(claimed, rows, options, run, seconds)


def _read_summary(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / SUMMARY).read_text(encoding="utf-8")))


def _share(total: int, part: Part | None) -> int:
    return total if part is None else len(range(part.number - 1, total, part.of))


def _manifest(files: StructureFiles, options: RelaxationOptions, run: RunOptions) -> Manifest:
    decides = {
        **asdict(options),
        **run.identity,
        "structures": files.fingerprint(),
        "ids": files.ids,
        "format": files.form,
        "limit": files.limit,
        "columns": dict(run.columns),
        "formation_energies": None if run.formation is None else run.formation.decides,
        "part": None if run.part is None else f"{run.part.number}/{run.part.of}",
    }
    return Manifest.of(COMMAND, decides, later=_LATER)


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A finished table in a folder, by what its manifest says."""

    folder: Path
    manifest: Manifest

    def __iter__(self) -> Iterator[Row]:
        decides = self.manifest.decides
        formation = decides.get("formation_energies") or {}
        return read_table(self.folder / LINES, decides["columns"], [formation["column"]] if formation else [])


def _finished(folder: Path, manifest: Manifest) -> _Table | None:
    """The table of a finished run that differs in columns alone, unless unfinished work of another lies beside it."""
    record, work = Record.load(folder / NAME), Record.load(folder / WORK)
    if record is None or not record.is_whole(folder) or not manifest.differences(record.manifest):
        return None
    if any(manifest.differences(one.manifest, of_reading=True) for one in (record, work) if one is not None):
        return None
    return _Table(folder=folder, manifest=record.manifest)


def _parts(out: Path, manifest: Manifest) -> list[tuple[Part, _Table]]:
    """The finished parts in a folder.

    Raises:
        DataError: Parts are missing, unfinished, or were made otherwise.
    """
    folders = {path: _FOLDER.fullmatch(path.name) for path in sorted(out.glob("part-*")) if path.is_dir()}
    found = {path: Part.parse(f"{name[1]}/{name[2]}") for path, name in folders.items() if name is not None}
    if not found:
        return []
    counts = {part.of for part in found.values()}
    if len(counts) > 1:
        raise DataError(f"{out} holds parts of different divisions ({', '.join(path.name for path in found)})")
    of = counts.pop()
    joined: list[tuple[Part, _Table]] = []
    for part in (Part(number=number, of=of) for number in range(1, of + 1)):
        record = Record.load(part.folder(out) / NAME)
        if record is None or not record.is_whole(part.folder(out)):
            raise DataError(f"{out}: part {part.number} of {of} is not finished; run it with --part {part.number}/{of}")
        own = {**record.manifest.decides, "part": None, **{key: manifest.decides[key] for key in _LATER}}
        if differences := manifest.differences(Manifest(COMMAND, own, version=record.manifest.version)):
            raise DataError(f"{part.folder(out)} was made differently ({'; '.join(differences)})")
        joined.append((part, _Table(folder=part.folder(out), manifest=record.manifest)))
    return joined


def _join(parts: list[tuple[Part, _Table]], rows: RowFile) -> None:
    for part, table in parts:
        for position, row in enumerate(table):
            number = part.number - 1 + position * part.of
            if number not in rows:
                rows.append(number, row)


def _finish(
    claimed: Claim, rows: RowFile, options: RelaxationOptions, run: RunOptions, seconds: float | None
) -> dict[str, Any]:
    claimed.begin_writing()
    summary = write_table(rows, claimed.new, run.columns, run.formation)
    formation = None if run.formation is None else run.formation.decides
    summary |= {"seconds": seconds, **asdict(options), **run.identity, "formation_energies": formation}
    save_text(claimed.new / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    publish(claimed)
    return summary


class _Run:
    """One attempt at the structures that are left."""

    def __init__(
        self,
        potential: Potential,
        files: StructureFiles,
        claimed: Claim,
        options: RelaxationOptions,
        run: RunOptions,
        rows: RowFile,
        total: int,
    ) -> None:
        self.pool = RelaxationPool(potential, options)
        self.run, self.rows, self.total = run, rows, total
        self.saved = claimed.staged / "pool.npz"
        self.taken, self.seconds = 0, 0.0
        self._restore()
        self.waiting = islice(self._share(files), self.taken, None)
        self.next: Item | None = next(self.waiting, None)

    def _share(self, files: StructureFiles) -> Iterator[Item]:
        part = self.run.part
        return iter(files) if part is None else islice(files, part.number - 1, None, part.of)

    def go(self, report: Callable[[str], None]) -> float:
        """Relax everything; returns the seconds that it took, over all attempts."""
        begin = last_saved = last_told = time.monotonic()
        before = self.seconds
        self._fill()
        while len(self.pool):
            for relaxed in self.pool.step():
                self._finished(relaxed.number, row_of(relaxed))
            self._fill()
            now = time.monotonic()
            self.seconds = before + now - begin
            if now - last_saved >= self.run.save_every:
                self._save()
                last_saved = now
            if now - last_told > 10.0:
                report(f"{len(self.rows)} of {self.total} structures, {len(self.pool)} at work, {self.seconds:.0f} s")
                last_told = now
        return self.seconds

    def _fill(self) -> None:
        """Take structures in, in the order of the input, while they fit."""
        while self.next is not None:
            item = self.next
            size = 0 if item.atoms is None else len(item.atoms)
            if len(self.pool) and self.pool.atoms + size > self.run.batch_atoms:
                return
            self._take(item)
            self.taken += 1
            self.next = next(self.waiting, None)

    def _take(self, item: Item) -> None:
        if item.atoms is None:
            ended: Relaxed | None = Relaxed(
                number=item.number, identifier=item.identifier, status="failed", reason=item.problem
            )
        else:
            ended = self.pool.add(item.number, item.identifier, item.atoms)
        if ended is not None:
            self._finished(ended.number, row_of(ended))

    def _finished(self, number: int, row: dict[str, Any]) -> None:
        if number not in self.rows:
            self.rows.append(number, row)

    def _save(self) -> None:
        members, arrays = self.pool.state()
        notes = json.dumps({"taken": self.taken, "seconds": self.seconds, "members": members})
        save_npz(self.saved, notes=np.array(notes), **arrays)

    def _restore(self) -> None:
        if not self.saved.is_file():
            return
        try:
            with np.load(self.saved, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.saved}: cannot be read ({error}); start again with --overwrite") from error
        notes = json.loads(str(arrays.pop("notes")))
        self.taken, self.seconds = notes["taken"], notes["seconds"]
        self.pool.restore(notes["members"], arrays)
