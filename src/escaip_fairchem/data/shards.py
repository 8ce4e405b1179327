"""What is known of one file's worth of structures: numbers to add up and what was left out, never the structures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .checks import Reason
from .linear_references import NormalEquations
from .schema import FrameTable, IntArray, Structure
from .sources import Source
from .tally import Tally
from .writer import save_npz

BATCH_ROWS = 1000
_HALF = 1 << 31
_HASHED = 1 << 62


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A file to look at: the unit of parallel, resumable work.

    Attributes:
        number: Position among all files.
        part: Position of the folder, among those given, that the file is in.
        source: The file. Of a raw file's pair the one with the structures, or the only one that is there.
        partner: The other one of a pair; None where it is missing, or where there are no pairs.
        split: Name of the split that the file belongs to; empty where there is only one.
    """

    number: int
    part: int
    source: Source
    partner: Path | None = None
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What became of a file's structures, n of which are usable.

    Attributes:
        natoms: Atoms, shape (n,).
        identity: A number for each pair of ``sid`` and ``fid``, shape (n,), see `identity_of`.
        position: Number of each in the file, shape (n,).
        read: Structures that were looked at, and files that could not be.
        tally: Statistics of the usable ones.
        skipped: Number in the file, reason and detail of the others.
        fields: Names of what every row holds, sorted.
        examples: For every element, a structure that holds it.
        equations: For fitting references; None where they are not asked for.
        remarks: What else is worth saying about the file.
    """

    natoms: IntArray
    identity: IntArray
    position: IntArray
    read: int
    tally: Tally
    skipped: Sequence[tuple[int, Reason, str]]
    fields: tuple[str, ...] = ()
    examples: dict[int, str] = field(default_factory=dict)
    equations: NormalEquations | None = None
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.natoms)

    def save(self, path: Path) -> None:
        """Write it to a file, which appears only when it is complete."""
        facts = {
            "read": self.read,
            "tally": self.tally.as_json(),
            "skipped": [(position, reason.value, detail) for position, reason, detail in self.skipped],
            "fields": self.fields,
            "examples": self.examples,
            "remarks": self.remarks,
        }
        arrays: dict[str, Any] = {"natoms": self.natoms, "identity": self.identity, "position": self.position}
        if self.equations is not None:
            arrays |= {"products": self.equations.products, "moments": self.equations.moments}
        save_npz(path, facts=np.array(json.dumps(facts)), **arrays)

    @classmethod
    def load(cls, path: Path) -> Shard:
        """Read it from a file."""
        with np.load(path) as saved:
            facts = json.loads(str(saved["facts"]))
            fitted = "products" in saved.files
            return cls(
                natoms=saved["natoms"],
                identity=saved["identity"],
                position=saved["position"],
                read=int(facts["read"]),
                tally=Tally.from_json(facts["tally"]),
                skipped=[(int(position), Reason(reason), detail) for position, reason, detail in facts["skipped"]],
                fields=tuple(facts["fields"]),
                examples={int(number): name for number, name in facts["examples"].items()},
                equations=NormalEquations(saved["products"], saved["moments"]) if fitted else None,
                remarks=tuple(facts["remarks"]),
            )


def identity_of(sid: str, fid: int) -> int:
    """Turn the identifiers of a frame into one number of 63 bits: exact for small numbers, hashed for all else."""
    if sid.isdecimal() and int(sid) < _HALF and 0 <= fid < _HALF:
        return int(sid) << 31 | fid
    digest = hashlib.blake2b(f"{sid}/{fid}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2 | _HASHED


class ShardBuilder:
    """Gathers a shard, structure by structure.

    Args:
        sum_references: Whether to gather the sums that references are fitted to.
    """

    def __init__(self, *, sum_references: bool = False) -> None:
        self._natoms: list[int] = []
        self._identity: list[int] = []
        self._position: list[int] = []
        self._waiting: list[Structure] = []
        self._tally = Tally()
        self._examples: dict[int, str] = {}
        self._equations = NormalEquations.empty() if sum_references else None
        self.skipped: list[tuple[int, Reason, str]] = []
        self.fields: tuple[str, ...] = ()
        self.remarks: list[str] = []

    def __len__(self) -> int:
        return len(self._natoms)

    def add(self, structure: Structure, position: int) -> None:
        """Count a usable structure."""
        self._natoms.append(len(structure))
        self._identity.append(identity_of(structure.sid, structure.fid))
        self._position.append(position)
        for number in np.unique(structure.numbers).tolist():
            self._examples.setdefault(number, f"sid {structure.sid}, fid {structure.fid}")
        self._waiting.append(structure)
        if len(self._waiting) == BATCH_ROWS:
            self._flush()

    def skip(self, position: int, reason: Reason, detail: str) -> None:
        """Note a structure that is not usable."""
        self.skipped.append((position, reason, detail))

    def finish(self, read: int) -> Shard:
        """Close the shard, of whose file so many structures were looked at."""
        self._flush()
        return Shard(
            natoms=np.array(self._natoms, dtype=np.int64),
            identity=np.array(self._identity, dtype=np.int64),
            position=np.array(self._position, dtype=np.int64),
            read=max(read, len(self) + len(self.skipped)),
            tally=self._tally,
            skipped=self.skipped,
            fields=self.fields,
            examples=self._examples,
            equations=self._equations,
            remarks=tuple(self.remarks),
        )

    def _flush(self) -> None:
        table = FrameTable.of(self._waiting)
        self._tally += Tally.of(table)
        if self._equations is not None:
            self._equations += NormalEquations.of(table)
        self._waiting = []
