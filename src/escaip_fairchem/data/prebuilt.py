"""LMDB files in OC20's classic format or OC22's, as they are published: read record by record, and linked.

Records are pickled ``torch_geometric`` graphs, of version 1 or 2 of that library, under the keys 0 … n − 1; a further
key ``length`` holds n. Unpickling runs code, so only files from people one trusts should be read.

Labels are called ``y`` and ``force`` in what was published, ``energy`` and ``forces`` in what the preprocessing of
fairchem-core 1.10 writes. The configurations' ``key_mapping`` renames the former; fairchem passes over names that are
not there.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from escaip_fairchem.errors import DataError
from escaip_fairchem.lmdb_files import cut_off

from .checks import Limits, Problem, Reason, find_problem
from .faults import reading, refuse_fault_of_machine, writing
from .schema import FloatArray, Structure, usable_cell
from .shards import Shard, ShardBuilder, Unit
from .sources import describe, real_path

SYSTEM = ("pos", "cell", "atomic_numbers", "natoms", "fixed", "sid", "fid")
ENERGY = ("y", "energy")
FORCES = ("force", "forces")
LABELS = frozenset({*ENERGY, *FORCES})
OC22 = ("oc22", "nads")
EDGES = frozenset({"edge_index", "cell_offsets", "distances"})
LENGTH = b"length"
# Faults beyond these are counted: a file of another kind would fill pages.
FAULTS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What records must hold.

    Attributes:
        labels: Energy and forces; test sets have none.
        oc22: OC22's format, whose reader in fairchem needs two more fields, knows no other names of labels than the
            published ones, and drops stored edges.
        sum_references: Gather the sums that energies per element are fitted to and judged by.
    """

    labels: bool = True
    oc22: bool = False
    sum_references: bool = False

    @property
    def required(self) -> tuple[tuple[str, ...], ...]:
        """Names of the fields, each with those that may stand in its place."""
        labels = tuple(names[:1] if self.oc22 else names for names in (ENERGY, FORCES)) if self.labels else ()
        return (*((name,) for name in SYSTEM), *labels, *((name,) for name in (OC22 if self.oc22 else ())))


def decode_record(value: bytes) -> dict[str, Any]:
    """Unpickle a graph and return its fields that hold something.

    Raises:
        DataError: It is something else. Unpickling may raise anything besides.
    """
    graph = pickle.loads(value)
    stored = getattr(graph, "__dict__", None)
    if stored is None:
        raise DataError(f"an object of type {type(graph).__name__} instead of a graph")
    fields = stored.get("_store", stored)  # version 1 kept the fields in the object itself
    return {str(name): value for name, value in fields.items() if value is not None}


def verify(unit: Unit, contract: Contract) -> Shard:
    """Read every record of a file, checking that fairchem will find what it needs.

    Args:
        unit: The file.
        contract: What records must hold.

    Returns:
        The shard; its rows are in fairchem's order. Whatever is wrong is among what it calls skipped.

    Raises:
        DataError: The machine fails, which is no fault of the file.
    """
    builder = ShardBuilder(sum_references=contract.sum_references)
    path = unit.source.path
    with reading(path), path.open("rb") as file:
        file.read(1)  # LMDB would say less clearly what the system refuses
    try:
        with _open(path) as environment:
            problem = cut_off(environment, path)
            if problem is not None:
                builder.skip(0, Reason.UNREADABLE_FILE, problem)
                return builder.finish(1)
            with environment.begin() as transaction:
                count = _count(environment, transaction, builder, path)
                for position in range(count):
                    _look_at(transaction.get(str(position).encode()), position, contract, builder, path)
    except (lmdb.Error, OSError, MemoryError) as error:
        refuse_fault_of_machine(error, path)
        builder.skip(0, Reason.UNREADABLE_FILE, describe(error))
        count = 1
    faults = len(builder.skipped)
    if faults > FAULTS_SHOWN:
        del builder.skipped[FAULTS_SHOWN:]
        builder.skip(count, Reason.MALFORMED_RECORD, f"{faults - FAULTS_SHOWN} more faults in this file")
    return builder.finish(count)


def _open(path: Path) -> lmdb.Environment:
    return lmdb.open(str(path), subdir=False, readonly=True, lock=False)


def _count(environment: lmdb.Environment, transaction: lmdb.Transaction, builder: ShardBuilder, path: Path) -> int:
    """Count the records as fairchem does, and compare with what is there."""
    entries = int(environment.stat()["entries"])
    stored = transaction.get(LENGTH)
    if stored is None:
        builder.remarks.append("has no key length; fairchem counts its keys instead")
        return entries
    try:
        count = int(pickle.loads(stored))
    except Exception as error:  # noqa: BLE001 (unpickling may raise anything; the report says what)
        refuse_fault_of_machine(error, path)
        builder.skip(0, Reason.MALFORMED_RECORD, f"the key length cannot be read: {describe(error)}")
        return entries - 1
    if count != entries - 1:
        builder.skip(0, Reason.MALFORMED_RECORD, f"the key length says {count}, and there are {entries - 1} other keys")
    return min(count, entries - 1)


def _look_at(value: bytes | None, position: int, contract: Contract, builder: ShardBuilder, path: Path) -> None:
    if value is None:
        builder.skip(position, Reason.MALFORMED_RECORD, f"there is no key {position}")
        return
    try:
        fields = decode_record(value)
        outcome = _examine(fields, contract, builder)
    except Exception as error:  # noqa: BLE001 (as above)
        refuse_fault_of_machine(error, path)
        outcome = Problem(Reason.MALFORMED_RECORD, describe(error))
    if isinstance(outcome, Problem):
        builder.skip(position, outcome.reason, outcome.detail)
    else:
        builder.add(outcome, position)


def _examine(fields: dict[str, Any], contract: Contract, builder: ShardBuilder) -> Structure | Problem:
    faults = _wrong_fields(fields, contract)
    if faults:
        return Problem(Reason.MALFORMED_RECORD, faults)
    names = tuple(sorted(set(fields) - (EDGES if contract.oc22 else frozenset())))
    builder.fields = builder.fields or names
    if names != builder.fields:
        return Problem(
            Reason.MALFORMED_RECORD,
            f"cannot share a batch with the first record: {field_differences(builder.fields, names)}",
        )
    structure = _structure(fields, contract)
    return find_problem(structure, Limits(require=(), min_distance=0.0, max_force=float("inf"))) or structure


def _wrong_fields(fields: Mapping[str, Any], contract: Contract) -> str:
    """Say which fields are missing, or there under both of their names; empty where nothing is wrong."""
    missing = [names for names in contract.required if fields.keys().isdisjoint(names)]
    if missing:
        others = ", ".join(name for names in missing for name in names[1:])
        return f"has no {', '.join(names[0] for names in missing)}" + (f", nor {others}" if others else "")
    twice = [names for names in (ENERGY, FORCES) if fields.keys() >= set(names)]
    return "; ".join(f"has both {' and '.join(names)}, and fairchem cannot rename one to the other" for names in twice)


def field_differences(first: tuple[str, ...], second: tuple[str, ...]) -> str:
    """Say which fields only one of two kinds of records has."""
    only = [(sorted(set(first) - set(second)), "only the first"), (sorted(set(second) - set(first)), "only the second")]
    return "; ".join(f"{which} has {', '.join(names)}" for names, which in only if names)


def _structure(fields: dict[str, Any], contract: Contract) -> Structure:
    numbers = np.rint(_numbers(fields, "atomic_numbers", (-1,))).astype(np.int64)
    count = len(numbers)
    if int(_scalar(fields, "natoms")) != count:
        raise DataError(f"natoms is {_scalar(fields, 'natoms'):g}, and there are {count} atomic numbers")
    if contract.oc22 and int(_scalar(fields, "oc22")) != 1:
        raise DataError(f"oc22 is {_scalar(fields, 'oc22'):g} instead of 1")
    pbc = _numbers(fields, "pbc", (3,)).astype(bool) if "pbc" in fields else np.ones(3, dtype=bool)
    return Structure(
        sid=_name(fields["sid"]),
        fid=int(_scalar(fields, "fid")),
        numbers=numbers,
        positions=_numbers(fields, "pos", (count, 3)),
        cell=usable_cell(_numbers(fields, "cell", (3, 3)), pbc),
        pbc=pbc,
        tags=np.zeros(count, dtype=np.int64),
        fixed=_numbers(fields, "fixed", (count,)).astype(bool),
        energy=_scalar(fields, _present(fields, ENERGY)) if contract.labels else None,
        forces=_numbers(fields, _present(fields, FORCES), (count, 3)) if contract.labels else None,
    )


def _present(fields: Mapping[str, Any], names: Sequence[str]) -> str:
    return next(name for name in names if name in fields)


def _numbers(fields: dict[str, Any], name: str, shape: tuple[int, ...]) -> FloatArray:
    """Read an array; dimensions of size 1 may stand before its own, as in cells."""
    values = np.asarray(fields[name], dtype=np.float64)
    wanted = np.prod(shape) if -1 not in shape else values.size
    own = values.shape[-len(shape) :]
    if values.size != wanted or (-1 not in shape and own != shape):
        raise DataError(f"{name} has shape {values.shape} instead of {shape}")
    return values.reshape(shape)


def _scalar(fields: dict[str, Any], name: str) -> float:
    return float(_numbers({name: np.asarray(fields[name]).reshape(-1)}, name, (1,))[0])


def _name(sid: Any) -> str:
    return sid if isinstance(sid, str) else str(int(_scalar({"sid": sid}, "sid")))


def link(file: Path, target: Path) -> None:
    """Let a file appear under another name too, without its content being written again where that can be avoided.

    Args:
        file: The file, which must stay where it is; a link is followed.
        target: The new name. A hard link; a symbolic one across file systems; a copy where there are no links.
    """
    real = real_path(file)
    for attempt in (lambda: target.hardlink_to(real), lambda: target.symlink_to(real)):
        with suppress(OSError):
            attempt()
            return
    with writing(target):
        shutil.copy2(real, target)
