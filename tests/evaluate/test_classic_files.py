"""Structures of LMDB files in OC20's classic format, which simulations and rotations start from."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from simulation_cases import crystals, emt, slab
from torch_geometric.data import Data

from escaip_fairchem.data.sources import Unreadable
from escaip_fairchem.errors import DataError
from escaip_fairchem.evaluate.classic_files import read_classic
from escaip_fairchem.evaluate.relaxation_pool import RelaxationOptions
from escaip_fairchem.evaluate.relaxation_table import LINES, read_table
from escaip_fairchem.evaluate.relaxations import RunOptions, relax_files
from escaip_fairchem.evaluate.rotation import read_structures
from escaip_fairchem.evaluate.structure_files import StructureFiles


def graph(atoms: Atoms, sid: Any, **changes: Any) -> Data:
    """As OC20's preprocessing stores it: float32, without an entry for periodicity."""
    fixed = np.zeros(len(atoms))
    for constraint in atoms.constraints:
        fixed[constraint.index] = 1
    fields = {
        "pos": torch.tensor(atoms.positions, dtype=torch.float32),
        "cell": torch.tensor(atoms.cell.array, dtype=torch.float32)[None],
        "atomic_numbers": torch.tensor(atoms.numbers, dtype=torch.float32),
        "natoms": len(atoms),
        "tags": torch.tensor(atoms.get_tags()),
        "fixed": torch.tensor(fixed, dtype=torch.float32),
        "sid": sid,
        "fid": torch.tensor(7),
        "y": 1.0,
    }
    return Data(**{**fields, **changes})


def write(path: Path, records: Sequence[Any], *, length: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        lmdb.open(str(path), map_size=2**24, subdir=False, lock=False) as database,
        database.begin(write=True) as transaction,
    ):
        for row, record in enumerate(records):
            transaction.put(str(row).encode(), record if isinstance(record, bytes) else pickle.dumps(record))
        if length != b"":
            transaction.put(b"length", pickle.dumps(len(records)) if length is None else length)
    return path


def test_structures_are_those_that_were_stored(tmp_path: Path) -> None:
    expected = slab()
    records = [
        graph(expected, "random3"),
        graph(crystals(1)[0], torch.tensor(5), pbc=torch.tensor([[True, True, False]])),
    ]
    first, second = read_classic(write(tmp_path / "a.lmdb", records))
    assert isinstance(first, Atoms)
    assert isinstance(second, Atoms)
    np.testing.assert_allclose(first.positions, expected.positions, atol=1e-5)
    np.testing.assert_allclose(first.cell.array, expected.cell.array, atol=1e-5)
    assert (first.numbers == expected.numbers).all()
    assert (first.get_tags() == expected.get_tags()).all()
    (constraint,) = first.constraints
    assert isinstance(constraint, FixAtoms)
    assert set(constraint.index) == {index for index, tag in enumerate(expected.get_tags()) if tag == 2}
    assert first.pbc.all(), "OC20's files do not say so"
    assert second.pbc.tolist() == [True, True, False]
    assert not second.constraints
    assert (first.info, second.info) == ({"sid": "random3", "fid": 7}, {"sid": 5, "fid": 7})


def test_a_molecule_without_a_cell_is_not_periodic(tmp_path: Path) -> None:
    molecule = Atoms("CO", [[0, 0, 0], [0, 0, 1.1]])
    (found,) = read_classic(write(tmp_path / "a.lmdb", [graph(molecule, "m")]))
    assert isinstance(found, Atoms)
    assert not found.pbc.any()


def test_a_folder_is_relaxed_and_rotated_in_the_order_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "val_id"
    atoms = crystals(3)
    write(folder / "data.0000.lmdb", [graph(atoms[0], 1), graph(atoms[1], 2)])
    write(folder / "data.0001.lmdb", [graph(atoms[2], 3)])
    np.savez(folder / "metadata.npz", natoms=[1])
    (folder / "data.0000.lmdb-lock").touch()
    assert list(read_structures(folder)) == ["0:1", "1:2", "2:3"]
    assert list(read_structures(folder, 2)) == ["0:1", "1:2"]
    assert list(read_structures(folder / "data.0001.lmdb")) == ["0:3"]
    files = StructureFiles([str(folder)], exclude=tmp_path / "out")
    options = RelaxationOptions(fmax=0.2, max_steps=3)
    assert relax_files(emt, files, tmp_path / "out", options, RunOptions())["failed"] == 0
    rows = list(read_table(tmp_path / "out" / LINES, {}))
    assert [row["formula"] for row in rows] == [one.get_chemical_formula() for one in atoms]
    assert rows[2]["material_id"].endswith("data.0001.lmdb:0")
    by_sid = StructureFiles([str(folder)], exclude=None, ids="sid")
    assert [item.identifier for item in by_sid] == ["1", "2", "3"]


def test_records_that_cannot_be_read_say_why_and_others_go_on(tmp_path: Path) -> None:
    good = graph(crystals(1)[0], 1)
    short = graph(crystals(1)[0], 2, pos=torch.zeros(1, 3))
    path = write(tmp_path / "a.lmdb", [b"no pickle", {"pos": 1}, Data(pos=torch.zeros(1, 3)), short, good])
    found = list(read_classic(path))
    assert [isinstance(one, Unreadable) for one in found] == [True, True, True, True, False]
    assert "instead of a graph" in found[1].detail  # type: ignore[union-attr]
    assert "has no atomic_numbers" in found[2].detail  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"a\.lmdb: structure 0 \(a\.lmdb:0\): unreadable: UnpicklingError"):
        read_structures(path)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    (tmp_path / "a.lmdb").write_text("nonsense" * 1000)
    with pytest.raises(DataError, match=r"a\.lmdb: cannot be read as LMDB"):
        read_structures(tmp_path / "a.lmdb")
    whole = write(tmp_path / "whole.lmdb", [graph(crystals(1)[0], 1)]).read_bytes()
    (tmp_path / "half.lmdb").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"half\.lmdb: was cut off"):
        read_structures(tmp_path / "half.lmdb")
    write(tmp_path / "b.lmdb", [graph(crystals(1)[0], 1)], length=b"no number")
    with pytest.raises(DataError, match=r"b\.lmdb: the key length cannot be read"):
        read_structures(tmp_path / "b.lmdb")
    write(tmp_path / "c.lmdb", [graph(crystals(1)[0], 1)], length=pickle.dumps(2))
    with pytest.raises(DataError, match="structure 1 .*there is no key 1"):
        read_structures(tmp_path / "c.lmdb")
    assert len(read_structures(write(tmp_path / "d.lmdb", [graph(crystals(1)[0], 1)], length=b""))) == 1
