"""Labels of a data set, for comparison with predictions."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
from numpy.typing import NDArray

from escaip_fairchem.data.schema import fixed_mask
from escaip_fairchem.errors import DataError
from escaip_fairchem.lmdb_files import open_readonly

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels of one structure of N atoms.

    Attributes:
        identifier: ``sid_fid``, as it stands beside predictions.
        energy: eV.
        forces: Shape (N, 3), eV/Å.
        free: True for atoms that are not fixed, shape (N,).
    """

    identifier: str
    energy: float
    forces: FloatArray
    free: NDArray[np.bool_]


def read_labels(folder: Path) -> dict[str, Labels]:
    """Read the energies and forces of a split as ``escaip data`` writes it, in either format.

    Args:
        folder: Holds ``*.lmdb`` or ``*.aselmdb`` files. The former are pickles: read only what you trust.

    Returns:
        Labels by identifier.

    Raises:
        DataError: There are no such files.
    """
    classic, ase_files = sorted(folder.glob("*.lmdb")), sorted(folder.glob("*.aselmdb"))
    if not classic and not ase_files:
        raise DataError(f"{folder}: holds no *.lmdb or *.aselmdb file")
    read = _classic if classic else _ase
    return {labels.identifier: labels for path in classic or ase_files for labels in read(path)}


def _classic(path: Path) -> Iterator[Labels]:
    with open_readonly(path) as database, database.begin() as transaction:
        for row in range(pickle.loads(transaction.get(b"length"))):
            data: Any = pickle.loads(transaction.get(str(row).encode()))
            yield Labels(
                identifier=f"{data.sid}_{data.fid}",
                energy=float(data.y),
                forces=data.force.numpy().astype(np.float64),
                free=data.fixed.numpy() == 0,
            )


def _ase(path: Path) -> Iterator[Labels]:
    with ase.db.connect(str(path), type="aselmdb", readonly=True) as database:
        for row in database.select():
            atoms = row.toatoms()
            yield Labels(
                identifier=f"{row.data['sid']}_{row.data['fid']}",
                energy=float(row.energy),
                forces=np.asarray(row.forces, dtype=np.float64),
                free=~fixed_mask(atoms),
            )
