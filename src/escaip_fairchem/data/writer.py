"""Writing the two LMDB formats that fairchem reads, shard by shard, and never leaving half a file behind.

ASE-LMDB (``format: ase_db``) holds rows of ASE's database as compressed JSON, under the keys 1, 2, … and ``nextid``,
as the back end of ase-db-backends defines them. The classic format of OC20 (``format: lmdb``) holds pickled
``torch_geometric.data.Data`` objects under the keys 0, 1, … and ``length``.

Rows are written without time stamps, user names or random ids, so that equal input gives equal rows.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import lmdb
import numpy as np
from ase.constraints import FixAtoms
from ase_db_backends.aselmdb import decode_bytestream, encode_object

from .defaults import SHARD_ROWS
from .faults import writing
from .schema import Structure

Format = Literal["aselmdb", "lmdb"]
ROWS_PER_TRANSACTION = 1000
FIRST_MAP_SIZE = 1 << 28


def encode_ase_row(structure: Structure) -> bytes:
    """Encode a structure as the value of one row of an ASE-LMDB.

    ``sid``, ``fid`` and the rest of ``info`` go to the row's ``data``, from where fairchem takes the identifiers.
    """
    row: dict[str, Any] = {
        "numbers": structure.numbers,
        "positions": structure.positions,
        "cell": structure.cell,
        "pbc": structure.pbc,
        "tags": structure.tags,
        "calculator": "unknown",
        "calculator_parameters": {},
        "unique_id": _unique_id(structure.sid, structure.fid),
        "ctime": 0.0,
        "mtime": 0.0,
        "user": "",
        "data": {**structure.info, "sid": structure.sid, "fid": structure.fid},
    }
    labels = {"energy": structure.energy, "forces": structure.forces, "stress": structure.stress}
    row |= {name: label for name, label in labels.items() if label is not None}
    if structure.fixed.any():
        row["constraints"] = [FixAtoms(mask=structure.fixed).todict()]
    return bytes(encode_object(row, compress=True, json_encode=True))


def rewrite_ase_row(encoded: bytes, *, sid: str, subtract: float | None = None) -> bytes:
    """Change the identifier of an encoded row and, where asked for, subtract references from its energy.

    Args:
        encoded: The row.
        sid: New identifier of the system.
        subtract: Sum of the references (eV); it is kept in the row's ``data`` as ``reference_energy``.
    """
    row = decode_bytestream(encoded, decompress=True, json_decode=True)
    row["data"]["sid"] = sid
    row["unique_id"] = _unique_id(sid, row["data"]["fid"])
    if subtract is not None:
        row["energy"] -= subtract
        row["data"]["reference_energy"] = subtract
    return bytes(encode_object(row, compress=True, json_encode=True))


def _unique_id(sid: str, fid: int) -> str:
    return hashlib.blake2b(f"{sid}/{fid}".encode(), digest_size=16).hexdigest()


def encode_classic_row(structure: Structure) -> bytes:
    """Encode a structure as OC20's S2EF files hold it: ``y`` and ``force``, float32 atomic numbers.

    A ``sid`` that is a number is stored as an integer. Labels that are missing are left out.
    """
    # torch takes seconds to import, and only this format needs it.
    import torch
    from torch_geometric.data import Data

    count = len(structure)
    data = Data(
        pos=torch.tensor(structure.positions, dtype=torch.float32),
        cell=torch.tensor(structure.cell, dtype=torch.float32).view(1, 3, 3),
        pbc=torch.tensor(structure.pbc, dtype=torch.bool),
        atomic_numbers=torch.tensor(structure.numbers, dtype=torch.float32),
        natoms=count,
        tags=torch.tensor(structure.tags, dtype=torch.long),
        fixed=torch.tensor(structure.fixed, dtype=torch.float32),
        sid=int(structure.sid) if structure.sid.isdecimal() else structure.sid,
        fid=structure.fid,
    )
    if structure.energy is not None:
        data.y = structure.energy
    if structure.forces is not None:
        data.force = torch.tensor(structure.forces, dtype=torch.float32)
    if structure.stress is not None:
        xx, yy, zz, yz, xz, xy = structure.stress
        data.stress = torch.tensor([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]], dtype=torch.float32)
    return pickle.dumps(data, protocol=pickle.HIGHEST_PROTOCOL)


def write_shard(path: Path, rows: Iterable[bytes], form: Format) -> int:
    """Write one LMDB file; it appears under its name only when it is complete.

    Args:
        path: File to write. A file of that name is replaced.
        rows: Encoded rows, in the order in which fairchem will number them.
        form: ``aselmdb`` or ``lmdb``.

    Returns:
        Number of rows.

    Raises:
        DataError: The file cannot be written, because the disk is full for instance.
    """
    temporary = path.with_name(path.name + ".tmp")
    first = 1 if form == "aselmdb" else 0
    count = 0
    with writing(path):
        temporary.unlink(missing_ok=True)
        # The file has one writer and no reader yet: without LMDB's lock no "-lock" file stays beside it.
        environment = lmdb.open(str(temporary), map_size=FIRST_MAP_SIZE, subdir=False, lock=False, sync=False)
    with environment:
        batch: list[tuple[bytes, bytes]] = []
        for count, row in enumerate(rows, start=1):
            batch.append((str(first + count - 1).encode(), row))
            if len(batch) == ROWS_PER_TRANSACTION:
                _put(environment, batch, path)
                batch = []
        _put(environment, [*batch, _count_entry(count, form)], path)
        with writing(path):
            environment.sync(True)
    with writing(path):
        temporary.replace(path)
    return count


def write_split(
    folder: Path, rows: Iterable[bytes], natoms: Sequence[int], form: Format, *, shard_rows: int = SHARD_ROWS
) -> list[Path]:
    """Write one split: shards named ``data.0000.<form>``, …, and the ``metadata.npz`` that load balancing needs.

    Args:
        folder: Folder of the split; made if missing.
        rows: Encoded rows, as many as there are ``natoms``.
        natoms: Atoms of every structure, in the order of ``rows``.
        form: ``aselmdb`` or ``lmdb``.
        shard_rows: Rows per file.

    Returns:
        The shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    iterator = iter(rows)
    shards = []
    for number, start in enumerate(range(0, len(natoms), shard_rows)):
        path = folder / f"data.{number:04d}.{form}"
        wanted = min(shard_rows, len(natoms) - start)
        write_shard(path, islice(iterator, wanted), form)
        shards.append(path)
    save_npz(folder / "metadata.npz", natoms=np.asarray(natoms, dtype=np.int64))
    return shards


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing; it appears under its name only when the block has come to its end.

    Raises:
        DataError: It cannot be made or finished.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        file = temporary.open("wb")
    try:
        yield file
    finally:
        with writing(path):
            file.close()
    with writing(path):
        temporary.replace(path)


def save_npz(path: Path, **arrays: np.ndarray[Any, Any]) -> None:
    """Save arrays under a name that appears only when the file is complete."""
    with new_file(path) as file, writing(path):
        np.savez(file, **arrays)


def save_text(path: Path, text: str) -> None:
    """Save text under a name that appears only when the file is complete."""
    with new_file(path) as file, writing(path):
        file.write(text.encode())


def _count_entry(count: int, form: Format) -> tuple[bytes, bytes]:
    if form == "aselmdb":
        return b"nextid", bytes(encode_object(count + 1, compress=True, json_encode=True))
    return b"length", pickle.dumps(count, protocol=pickle.HIGHEST_PROTOCOL)


def _put(environment: lmdb.Environment, batch: Sequence[tuple[bytes, bytes]], path: Path) -> None:
    """Write one transaction, with a larger map if this one is full."""
    with writing(path):
        while True:
            try:
                with environment.begin(write=True) as transaction:
                    for key, value in batch:
                        transaction.put(key, value)
                return
            except lmdb.MapFullError:
                environment.set_mapsize(2 * environment.info()["map_size"])
