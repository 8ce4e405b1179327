"""Identifiers and labels in the places and the forms in which files have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write
from fairchem_side import open_split, section
from structure_cases import molecule, slab

from escaip_fairchem.data.convert import convert
from escaip_fairchem.data.labels import LabelOptions, similar_keys, to_structure
from escaip_fairchem.data.options import ConvertOptions
from escaip_fairchem.data.splits import SplitOptions
from escaip_fairchem.errors import DataError

IN_ORDER = SplitOptions(parts=(1.0,), shuffle=False)


def identity(options: LabelOptions | None = None, **info: Any) -> tuple[str, int]:
    structure = to_structure(molecule(0, **info), "f", 5, options or LabelOptions())
    return structure.sid, structure.fid


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({}, ("f:5", 0)),
        ({"fid": 7}, ("f:5", 7)),
        ({"sid": "a"}, ("a", 5)),
        ({"sid": "a", "fid": 7}, ("a", 7)),
        ({"sid": "a", "fid": "7"}, ("a", 7)),
        ({"sid": "a", "fid": 7.0}, ("a", 7)),
        ({"sid": "a", "fid": np.int32(7)}, ("a", 7)),
        ({"sid": "a", "fid": 7.5}, ("a", 5)),
        ({"sid": "a", "fid": "step"}, ("a", 5)),
        ({"sid": "a", "fid": float("nan")}, ("a", 5)),
        ({"sid": "a", "fid": 2**70}, ("a", 5)),
    ],
)
def test_identifiers_are_taken_as_they_are_written(info: dict[str, Any], expected: tuple[str, int]):
    assert identity(**info) == expected


def test_identifiers_that_are_not_taken_are_kept(tmp_path: Path):
    write(tmp_path / "a.extxyz", [slab(0, mol="m", sid="s", fid="step-3"), slab(1, mol="m", sid="t", fid=4)])
    options = ConvertOptions(split=IN_ORDER, labels=LabelOptions(id_key="mol"))
    convert([str(tmp_path / "a.extxyz")], tmp_path / "out", options)
    with connect(tmp_path / "out" / "train" / "data.0000.aselmdb", readonly=True, use_lock_file=False) as database:
        data = [row.data for row in database.select()]
    assert [(item["sid"], item["fid"]) for item in data] == [("m", 0), ("m", 4)]
    assert [item["original_sid"] for item in data] == ["s", "t"]
    assert data[0]["original_fid"] == "step-3"
    assert "original_fid" not in data[1]


def without_calculator(**info: Any) -> Atoms:
    atoms = molecule(0, **info)
    atoms.calc = None
    return atoms


def test_forces_in_the_data_of_a_database_are_found(tmp_path: Path):
    forces = np.arange(9.0).reshape(3, 3) / 10
    atoms = without_calculator()
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    with connect(tmp_path / "a.db") as database:
        database.write(atoms, data={"forces": forces})
    convert([str(tmp_path / "a.db")], tmp_path / "out", ConvertOptions(split=IN_ORDER))
    data = open_split(section(tmp_path / "out" / "dataset.yml"), "train")[0]
    np.testing.assert_allclose(data.forces.numpy(), forces, rtol=1e-6)
    with connect(tmp_path / "out" / "train" / "data.0000.aselmdb", readonly=True, use_lock_file=False) as database:
        assert "forces" not in database.get(1).data  # once is enough


def test_a_word_in_info_is_not_taken_for_forces():
    structure = to_structure(without_calculator(forces="from DFT"), "f", 0, LabelOptions())
    assert structure.forces is None
    assert structure.info["forces"] == "from DFT"


def test_arrays_of_the_shape_of_forces_are_hinted_at(tmp_path: Path):
    atoms = without_calculator(F=np.zeros((3, 3)), other=np.zeros((2, 3)))
    atoms.set_array("minus_gradient", np.ones((3, 3)))
    assert similar_keys(atoms, "forces") == ["F", "minus_gradient"]
    assert similar_keys(atoms, "energy") == []
    with connect(tmp_path / "a.db") as database:
        database.write(without_calculator(), data={"energy": -1.0, "F": np.zeros((3, 3))})
    with pytest.raises(DataError, match=r"no forces; there is F \(--forces-key\)"):
        convert([str(tmp_path / "a.db")], tmp_path / "out", ConvertOptions(split=IN_ORDER))
