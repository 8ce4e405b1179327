"""OC20's S2EF data, raw or prebuilt, to one split in the classic LMDB format, in parallel.

The All set has 134 million frames, some 5,000 to a pair of files. What is held of each at most is its number of atoms
and its identifiers, 16 bytes. Each pair is read by itself and kept as a file of rows; then some hundred thousand rows
at a time become an LMDB file, because every process of a training opens all of these.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from escaip_fairchem.errors import DataError

from .checks import Limits
from .claims import Claim, abandon, claim, publish
from .defaults import OC20_SHARD_ROWS
from .manifest import Manifest
from .oc20_files import PREBUILT, Part, gather, is_prebuilt, place
from .oc20_raw import RawOptions, find_raw_files, write_raw_shard
from .prebuilt import LABELS, Contract, verify
from .schema import IntArray
from .shard_sets import (
    METADATA,
    OUTPUTS,
    Duplicates,
    ShardSet,
    atoms_in_order,
    fingerprint,
    is_done,
    nothing_usable,
    place_metadata,
    refuse_faults,
    refuse_mixtures,
    run,
    staged_path,
    write_summary,
)
from .shards import Unit
from .sources import Source, real_path
from .tally import Tally


@dataclass(frozen=True, kw_only=True)
class OC20Options:
    """Everything but the input that decides what is written.

    Attributes:
        limits: What is usable of raw frames: all that is finite, unless told otherwise. Prebuilt files are taken as
            they are.
        total_energies: Store total energies of raw frames, instead of adsorption energies.
        test_data: There are no labels, or those of raw frames are to be left out.
        shard_rows: Pairs of raw files are joined until they make up so many rows.
    """

    limits: Limits = field(default_factory=lambda: Limits(min_distance=0.0, max_force=float("inf")))
    total_energies: bool = False
    test_data: bool = False
    shard_rows: int = OC20_SHARD_ROWS

    def __post_init__(self) -> None:
        if self.shard_rows < 1:
            raise DataError(f"--shard-size must be at least 1, got {self.shard_rows}")
        if self.test_data and self.total_energies:
            raise DataError("--test-data stores no energies, so --total-energies makes no sense beside it")

    @property
    def raw(self) -> RawOptions:
        """The part that is about raw frames."""
        limits = Limits(
            require=() if self.test_data else ("energy", "forces"),
            min_distance=self.limits.min_distance,
            max_force=self.limits.max_force,
        )
        return RawOptions(limits=limits, total_energies=self.total_energies, test_data=self.test_data)


def convert_oc20(
    inputs: Sequence[str],
    out: Path,
    options: OC20Options,
    *,
    workers: int = 1,
    overwrite: bool = False,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Write one split, or leave it as it is where the same one is complete already.

    Args:
        inputs: Folders of raw files, folders of LMDB files, or LMDB files.
        out: Folder to write into.
        options: What to write.
        workers: Processes to use; without influence on the result.
        overwrite: Replace a split that was made from other input or with other options.
        show_progress: Report on standard error.

    Returns:
        The summary that ``summary.json`` holds.

    Raises:
        DataError: There is no input, nothing is usable, a prebuilt file has a fault, or the folder holds something
            else.
    """
    units = plan(inputs, out)
    _refuse_total_energies(options, units)
    read_from = [[str(real_path(Path(given).expanduser())), *_fingerprint(units, n)] for n, given in enumerate(inputs)]
    manifest = Manifest.of("escaip data oc20", {**asdict(options), "inputs": read_from}, later=("shard_rows",))
    # Shards of someone else in that folder would become part of the split.
    outputs = (*OUTPUTS, METADATA, *(path.name for path in out.glob(f"*{PREBUILT}")))
    with claim(out, manifest, outputs=outputs, overwrite=overwrite) as claimed:
        if claimed.complete:
            return dict(json.loads((out / "summary.json").read_text(encoding="utf-8")))
        claimed.staged.mkdir(exist_ok=True)
        stage = partial(stage_unit, options=options, staged=claimed.staged)
        run(stage, [(unit, {}) for unit in units], workers, title="reading", show=show_progress)
        shards = ShardSet(units, claimed.staged)
        refuse_faults(claimed, ShardSet([unit for unit in units if is_prebuilt(unit)], claimed.staged).skipped())
        found = Duplicates(shards)
        again = [(unit, found.within[unit.number]) for unit in units if unit.number in found.within]
        raw = [(unit, duplicates) for unit, duplicates in again if not is_prebuilt(unit)]
        if raw:
            run(stage, raw, workers, title="leaving out duplicates", show=show_progress)
        shards = ShardSet(units, claimed.staged, frozenset(unit.number for unit, _ in raw))
        refuse_mixtures(claimed, shards)
        kept = sum(len(duplicates) for unit, duplicates in again if is_prebuilt(unit)) + found.across
        sums = _add_up(shards, options)
        sums.notes += _notes(options, sums, kept)
        claimed.begin_writing()
        run(partial(place, folder=claimed.new), sums.files, workers, title="writing", show=show_progress)
        summary = _finish(claimed, shards, sums)
        publish(claimed)
    return summary


def _refuse_total_energies(options: OC20Options, units: Sequence[Unit]) -> None:
    prebuilt = next((unit for unit in units if is_prebuilt(unit)), None)
    if options.total_energies and prebuilt is not None:
        raise DataError(
            f"--total-energies is about raw frames, and {prebuilt.source.path} is prebuilt: its energies stay as they "
            f"are. Convert from raw files alone, or leave the option out"
        )


def plan(inputs: Sequence[str], out: Path) -> list[Unit]:
    """Name the files to read, in the order of the inputs and of the files in them.

    Raises:
        DataError: An input is missing, empty or of two kinds, or is the folder to write into.
    """
    units: list[Unit] = []
    for part, given in enumerate(inputs):
        path = Path(given).expanduser()
        if real_path(path) == real_path(out):
            raise DataError(f"OUT {out} is also an input; write into another folder (files are linked, not copied)")
        files: Sequence[tuple[Path, Path | None]] = [(file, None) for file in _prebuilt_files(path)]
        if path.is_dir():
            raw = find_raw_files(path, exclude=out)
            if files and raw:
                raise DataError(
                    f"{given} holds raw files ({raw[0][0].name}, …) and LMDB files; give them as two folders"
                )
            files = files or raw
        if not files:
            raise DataError(_nothing_in(given, path))
        prefix = f"{path.name}/" if len(inputs) > 1 else ""
        below = path if path.is_dir() else path.parent
        for file, partner in files:
            source = Source(path=file, name=prefix + file.relative_to(below).as_posix())
            units.append(Unit(number=len(units), part=part, source=source, partner=partner))
    return units


def _prebuilt_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob(f"*{PREBUILT}"))
    return [path] if path.is_file() and path.suffix == PREBUILT else []


def _nothing_in(given: str, path: Path) -> str:
    if not path.exists():
        return f"{given} does not exist; give a folder of <n>.extxyz.xz and <n>.txt.xz files, or one of *.lmdb files"
    if path.is_file():
        return f"{given} is a file; give the folder of <n>.extxyz.xz and <n>.txt.xz files that it is in"
    deeper = sorted({file.parent for file in path.rglob(f"*{PREBUILT}")})
    hint = f"; below it, {', '.join(map(str, deeper[:5]))} hold LMDB files: give those that make up one split"
    return f"{given} holds neither <n>.extxyz.xz nor *.lmdb files{hint if deeper else ''}"


def _fingerprint(units: Sequence[Unit], part: int) -> list[Any]:
    own = [unit for unit in units if unit.part == part]
    return fingerprint([path for unit in own for path in (unit.source.path, unit.partner) if path is not None])


def stage_unit(task: tuple[Unit, Mapping[int, str]], *, options: OC20Options, staged: Path) -> int:
    """Read one file, unless an earlier run has done so.

    Rows of raw frames go to ``shard-<number>.rows``, everything else to ``shard-<number>.npz``, whose presence says
    that the file is done with.

    Args:
        task: The file, and duplicates to leave out of it.
        options: What to write.
        staged: Where the two files go.

    Returns:
        The file's number.
    """
    unit, duplicates = task
    facts = staged_path(staged, unit, "npz", without_duplicates=bool(duplicates))
    if is_done(facts, prebuilt=is_prebuilt(unit)):
        return unit.number
    if is_prebuilt(unit):
        shard = verify(unit, Contract(labels=not options.test_data))
    else:
        rows = staged_path(staged, unit, "rows", without_duplicates=bool(duplicates))
        shard = write_raw_shard(unit, rows, options.raw, duplicates)
    shard.save(facts)
    return unit.number


@dataclass(kw_only=True)
class _Sums:
    """What is added up over all files."""

    read: int
    tally: Tally
    files: list[Part]
    prebuilt_labels: bool
    notes: list[str]


def _add_up(shards: ShardSet, options: OC20Options) -> _Sums:
    sums = _Sums(read=0, tally=Tally(), files=[], prebuilt_labels=False, notes=[])
    for unit, shard in shards:
        sums.tally += shard.tally
        sums.read += shard.read
        sums.notes += [f"{unit.source.path} {remark}" for remark in shard.remarks]
        sums.prebuilt_labels |= is_prebuilt(unit) and not LABELS.isdisjoint(shard.fields)
    sums.files = gather(shards, options.shard_rows)
    return sums


def _finish(claimed: Claim, shards: ShardSet, sums: _Sums) -> dict[str, Any]:
    skipped = shards.skipped()
    if not sums.files:
        abandon(claimed)
        raise nothing_usable(skipped)
    counts = {part.name: np.concatenate(part.natoms) for part in sums.files}
    wrong = _place_metadata(claimed, shards, counts)
    return write_summary(
        claimed,
        {real_path(claimed.out).name: sums.tally.described()},
        skipped,
        (sums.read, sums.tally.structures),
        notes=sums.notes + ([] if wrong is None else [wrong]),
        files={part.name: part.made_of for part in sums.files},
    )


def _place_metadata(claimed: Claim, shards: ShardSet, counts: Mapping[str, IntArray]) -> str | None:
    """Keep what was published with one prebuilt folder; several folders, and raw files, have nothing that would fit."""
    first = shards.units[0]
    alone = is_prebuilt(first) and all(unit.part == 0 for unit in shards.units)
    published = first.source.path.parent / METADATA if alone else None
    return place_metadata(claimed.new, atoms_in_order(counts), published)


def _notes(options: OC20Options, sums: _Sums, repeated: int) -> Iterator[str]:
    raw = any(not part.prebuilt for part in sums.files)
    if raw:
        if options.test_data:
            yield "no labels are stored (--test-data)"
        elif options.total_energies:
            yield "energies are totals (--total-energies); OC20's normalisers are for adsorption energies"
        else:
            yield "energies are adsorption energies: the frame's energy minus the reference in its line"
        if len({part.prebuilt for part in sums.files}) == 2 and not options.test_data:
            yield "prebuilt files keep the energies that they hold, which must be adsorption energies, too, to fit in"
    if options.test_data and sums.prebuilt_labels:
        yield "prebuilt files hold labels, and keep them: --test-data only allows for files without"
    if repeated:
        yield (
            f"{repeated} frames have the sid and fid of an earlier one, in another of the folders or in a prebuilt "
            f"file; they are kept, but of predictions for equal ids only one survives"
        )
