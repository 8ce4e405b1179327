"""Sets of shards, one per input file: made in parallel, resumed file by file, described without holding their rows."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from escaip_fairchem.errors import DataError

from .claims import Claim, keep
from .collection import Skipped
from .pool import ordered_map
from .prebuilt import field_differences, link
from .progress import track
from .report import full_text, skip_table
from .schema import IntArray
from .shards import Shard, Unit
from .sources import file_state
from .writer import save_npz, save_text

METADATA = "metadata.npz"
OUTPUTS = ("summary.json", "report.txt")


def fingerprint(paths: Sequence[Path]) -> list[Any]:
    """Say which files are read, in a few words that change when a file does: how many, their bytes, and a digest."""
    digest = hashlib.blake2b(digest_size=16)
    size = 0
    for path in paths:
        place, bytes_, changed = file_state(path)
        size += bytes_
        digest.update(f"{place}\0{bytes_}\0{changed}\n".encode())
    return [f"{len(paths)} files", f"{size} bytes", digest.hexdigest()]


def staged_path(staged: Path, unit: Unit, end: str, *, without_duplicates: bool = False) -> Path:
    """Name the file that says what became of an input file (``npz``), or that holds its rows (``rows``)."""
    return staged / f"shard-{unit.number:06d}{'-unique' if without_duplicates else ''}.{end}"


def is_done(facts: Path, *, prebuilt: bool) -> bool:
    """Tell whether an earlier run has read a file; prebuilt ones with faults are read again, to see whether they stay.

    Args:
        facts: The file that says what became of it.
        prebuilt: Whether nothing can be left out of the file.
    """
    return facts.exists() and not (prebuilt and Shard.load(facts).skipped)


def run(stage: Callable[[Any], Any], tasks: Sequence[Any], workers: int, *, title: str, show: bool) -> None:
    """Work through all files; ``stage`` leaves its outcome on disk."""
    finished = ordered_map(stage, tasks, workers)
    for _ in track(finished, total=len(tasks), title=title, unit="files", show=show):
        pass


class ShardSet:
    """The outcome of all files; one at a time is in memory.

    Args:
        units: The files.
        staged: Folder of outcomes.
        renewed: Numbers of the files that were read again without their duplicates.
    """

    def __init__(self, units: Sequence[Unit], staged: Path, renewed: frozenset[int] = frozenset()) -> None:
        self.units = units
        self._staged = staged
        self._renewed = renewed

    def path(self, unit: Unit, end: str) -> Path:
        """Name one of the two files of an outcome."""
        return staged_path(self._staged, unit, end, without_duplicates=unit.number in self._renewed)

    def __iter__(self) -> Iterator[tuple[Unit, Shard]]:
        for unit in self.units:
            yield unit, Shard.load(self.path(unit, "npz"))

    def skipped(self) -> list[Skipped]:
        """List everything that is left out."""
        return [
            Skipped(str(unit.source.path), position, reason, detail)
            for unit, shard in self
            for position, reason, detail in shard.skipped
        ]


class Duplicates:
    """Frames whose identifiers occurred before, in the order of the files.

    Attributes:
        within: By the number of a file and the position in it, where they occurred before in the same folder.
        across: How many occurred before in another of the folders given, and nowhere in their own.
    """

    def __init__(self, shards: ShardSet) -> None:
        self.within: dict[int, dict[int, str]] = {}
        self.across = 0
        repeated = _repeated(shards)
        first: dict[tuple[int, int], str] = {}
        seen: set[int] = set()
        for unit, shard in shards if len(repeated) else ():
            for row in np.flatnonzero(np.isin(shard.identity, repeated)).tolist():
                position, identity = int(shard.position[row]), int(shard.identity[row])
                if (unit.part, identity) in first:
                    self.within.setdefault(unit.number, {})[position] = first[unit.part, identity]
                else:
                    self.across += identity in seen
                    first[unit.part, identity] = f"{unit.source.name}:{position}"
                    seen.add(identity)


def _repeated(shards: ShardSet) -> IntArray:
    """Return every number of a frame that occurs more than once: eight bytes per frame are all that is held."""
    identities = [shard.identity for _, shard in shards]
    ordered = np.concatenate([*identities, np.empty(0, dtype=np.int64)])
    identities.clear()
    ordered.sort()
    repeated: IntArray = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    return repeated


def refuse_faults(claimed: Claim, skipped: Sequence[Skipped]) -> None:
    """Stop where prebuilt files have faults: they are linked as they are, so nothing can be left out of them.

    Raises:
        DataError: Lists the faults.
    """
    if skipped:
        keep(claimed)
        shown = "\n".join(f"  {skip.file}:{skip.position}: {skip.reason.value}: {skip.detail}" for skip in skipped[:20])
        more = f"\n  … and {len(skipped) - 20} more" if len(skipped) > 20 else ""
        raise DataError(
            f"{len({skip.file for skip in skipped})} prebuilt files cannot be used as they are:\n{shown}{more}\n"
            f"Download them again, or leave them out; the next run reads them again"
        )


def refuse_mixtures(claimed: Claim, shards: ShardSet) -> None:
    """Stop where rows of different files cannot share a batch, which fairchem would find out during training.

    Raises:
        DataError: Names two such files and the fields that only one of them has.
    """
    known: tuple[Path, tuple[str, ...]] | None = None
    for unit, shard in shards:
        if not len(shard):
            continue
        if known is None:
            known = (unit.source.path, shard.fields)
        elif shard.fields != known[1]:
            keep(claimed)
            raise DataError(
                f"{known[0]} and {unit.source.path} cannot be mixed, because fairchem puts their rows into one batch: "
                f"{field_differences(known[1], shard.fields)}. Convert both from raw files, or keep them apart"
            )


def atoms_in_order(counts: Mapping[str, IntArray]) -> IntArray:
    """Line up the atoms of all rows as fairchem numbers them: by the sorted names of the files, shape (n,)."""
    return np.concatenate([*(counts[name] for name in sorted(counts)), np.empty(0, dtype=np.int64)])


def place_metadata(folder: Path, natoms: IntArray, published: Path | None) -> str | None:
    """Write the numbers of atoms that load balancing needs, or link what was published, if it is right.

    Args:
        folder: Folder of the split.
        natoms: Atoms of every row, in fairchem's order, shape (n,).
        published: Where a file of that kind may lie beside the shards, if that is one folder.

    Returns:
        A remark, if one was there and was wrong.
    """
    if published is None or not published.is_file():
        save_npz(folder / METADATA, natoms=natoms)
        return None
    try:
        with np.load(published) as saved:
            right = np.array_equal(saved["natoms"], natoms)
    except Exception:  # noqa: BLE001 (whatever it is, it does not hold the numbers)
        right = False
    if right:
        link(published, folder / METADATA)
        return None
    save_npz(folder / METADATA, natoms=natoms)
    return f"{published} does not fit the data; it was not taken over, and one that fits was written"


def write_summary(
    claimed: Claim, splits: Mapping[str, Any], skipped: Sequence[Skipped], counts: tuple[int, int], **more: Any
) -> dict[str, Any]:
    """Write ``summary.json`` and ``report.txt``.

    Args:
        claimed: The folder.
        splits: Description of every split.
        skipped: What was left out.
        counts: Structures read, and usable ones.
        more: Further entries.

    Returns:
        The summary.
    """
    reasons = Counter(skip.reason.value for skip in skipped)
    summary = {
        "read": counts[0],
        "usable": counts[1],
        "not_needed": 0,
        "splits": dict(splits),
        "skipped_by_reason": dict(sorted(reasons.items())),
        "skipped": [vars(skip) | {"reason": skip.reason.value} for skip in skipped],
        "element_references_eV": {},
        "notes": [],
        **more,
    }
    save_text(claimed.new / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    save_text(claimed.new / "report.txt", full_text(summary) + "\n")
    return summary


def nothing_usable(skipped: Sequence[Skipped]) -> DataError:
    """Build the error for a set without any usable structure."""
    return DataError(f"nothing usable was found:\n{skip_table(skipped)}")
