"""The LMDB files of a split of OC20: prebuilt ones are linked, rows of raw files joined."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from .prebuilt import link
from .row_files import read_rows
from .schema import IntArray
from .shard_sets import ShardSet
from .shards import Unit
from .writer import write_shard

PREBUILT = ".lmdb"


def is_prebuilt(unit: Unit) -> bool:
    """Tell files that are linked from those that are converted."""
    return unit.source.path.suffix == PREBUILT


@dataclass(kw_only=True)
class Part:
    """One LMDB file of the split: a prebuilt one, or the rows of some pairs of raw files.

    Attributes:
        units: What it is made of.
        rows: Files of rows; of a prebuilt file, itself.
        natoms: Atoms of every row, one array for each of ``units``.
        name: What it is called in the split.
    """

    units: list[Unit]
    rows: list[Path]
    natoms: list[IntArray]
    name: str = ""

    @property
    def prebuilt(self) -> bool:
        """Whether it is linked instead of written."""
        return is_prebuilt(self.units[0])

    def __len__(self) -> int:
        return sum(map(len, self.natoms))

    @property
    def made_of(self) -> str:
        """Name the input files."""
        first, last = self.units[0].source.path, self.units[-1].source.path
        return str(first) if len(self.units) == 1 else f"{first} to {last} ({len(self.units)} files)"


def gather(shards: ShardSet, rows: int) -> list[Part]:
    """Divide the input among files, in its order: pairs of raw files are joined until they make up so many rows."""
    parts: list[Part] = []
    for unit, shard in shards:
        if not len(shard):
            continue
        prebuilt = is_prebuilt(unit)
        if not parts or prebuilt or parts[-1].prebuilt or len(parts[-1]) >= rows:
            parts.append(Part(units=[], rows=[], natoms=[]))
        parts[-1].units.append(unit)
        parts[-1].rows.append(unit.source.path if prebuilt else shards.path(unit, "rows"))
        parts[-1].natoms.append(shard.natoms)
    for number, part in enumerate(parts):
        part.name = f"data.{number:0{max(4, len(str(len(parts))))}d}{PREBUILT}"
    return parts


def place(part: Part, *, folder: Path) -> None:
    """Put an LMDB file of the split into its folder.

    Raises:
        DataError: It cannot be written.
    """
    target = folder / part.name
    if part.prebuilt:
        link(part.rows[0], target)
    else:
        write_shard(target, chain.from_iterable(map(read_rows, part.rows)), "lmdb")
