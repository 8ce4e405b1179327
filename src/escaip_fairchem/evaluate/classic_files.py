"""Structures of LMDB files in OC20's classic format, to start simulations and rotations from."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms

from escaip_fairchem.data.faults import refuse_fault_of_machine
from escaip_fairchem.data.prebuilt import decode_record
from escaip_fairchem.data.sources import Unreadable, describe
from escaip_fairchem.errors import DataError
from escaip_fairchem.lmdb_files import open_readonly

SUFFIX = ".lmdb"


def read_classic(path: Path) -> Iterator[Atoms | Unreadable]:
    """Read the structures of a file in its order, without labels.

    Records are pickles, and unpickling runs code: read only files from people you trust.

    Args:
        path: Holds graphs under the keys 0 … n − 1, and n under ``length``.

    Yields:
        Structures with tags, fixed atoms, and ``sid`` and ``fid`` in ``info``; periodic along the vectors of their
        cells where a record does not say. A stand-in for each record that cannot be read.

    Raises:
        DataError: The file is something else.
    """
    try:
        with (
            open_readonly(path) as database,
            database.begin() as transaction,
        ):
            for position in range(_count(database, transaction, path)):
                yield _read(transaction.get(str(position).encode()), position, path)
    except lmdb.Error as error:
        refuse_fault_of_machine(error, path)
        raise DataError(f"{path}: cannot be read as LMDB: {describe(error)}") from error


def _count(database: lmdb.Environment, transaction: lmdb.Transaction, path: Path) -> int:
    stored = transaction.get(b"length")
    if stored is None:
        return int(database.stat()["entries"])
    try:
        return int(pickle.loads(stored))
    except Exception as error:
        raise DataError(f"{path}: the key length cannot be read ({describe(error)})") from error


def _read(value: bytes | None, position: int, path: Path) -> Atoms | Unreadable:
    if value is None:
        return Unreadable(f"there is no key {position}")
    try:
        return _structure(decode_record(value))
    except Exception as error:  # noqa: BLE001 (unpickling may raise anything; the message says what)
        refuse_fault_of_machine(error, path)
        return Unreadable(describe(error))


def _structure(fields: dict[str, Any]) -> Atoms:
    missing = [name for name in ("pos", "atomic_numbers") if name not in fields]
    if missing:
        raise DataError(f"has no {missing[0]}")
    numbers = np.rint(np.asarray(fields["atomic_numbers"], dtype=np.float64).reshape(-1)).astype(np.int64)
    cell = np.asarray(fields.get("cell", np.zeros(9)), dtype=np.float64).reshape(3, 3)
    atoms = Atoms(
        numbers,
        positions=np.asarray(fields["pos"], dtype=np.float64),
        cell=cell,
        pbc=np.asarray(fields.get("pbc", cell.any(axis=1))).reshape(3).astype(bool),
        tags=None if "tags" not in fields else np.asarray(fields["tags"]).reshape(-1).astype(np.int64),
    )
    if "fixed" in fields:
        fixed = np.asarray(fields["fixed"]).reshape(-1).astype(bool)
        atoms.set_constraint(FixAtoms(mask=fixed) if fixed.any() else None)
    for name in ("sid", "fid"):
        if name in fields:
            atoms.info[name] = fields[name].item() if hasattr(fields[name], "item") else fields[name]
    return atoms
