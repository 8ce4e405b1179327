"""SPICE: units, signs, charges and selection, on files written here and on a piece of the real one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
from fairchem_side import data_set_content
from raw_cases import SPICE_UNITS, spice_group, stored, write_spice, write_spice_2

from escaip_fairchem.data import published_sets, sources
from escaip_fairchem.data.convert import convert
from escaip_fairchem.data.options import ConvertOptions
from escaip_fairchem.data.published_sets import SpiceOptions
from escaip_fairchem.data.raw import spice
from escaip_fairchem.data.raw.spice import formal_charge, without_atom_numbers
from escaip_fairchem.data.raw.spice_families import MACE_OFF, family_of, family_of_all
from escaip_fairchem.data.splits import SplitOptions
from escaip_fairchem.errors import DataError

BOHR, HARTREE = 0.529177, 27.211386
TRAIN_ONLY = SplitOptions(parts=(1.0,))
ALL = SpiceOptions(split=TRAIN_ONLY, selection="all").convert_options()


def test_numbers_worked_out_by_hand(tmp_path: Path):
    group = spice_group(
        "[H:1][H:2]",
        [1, 1],
        frames=2,
        subset=("first", "second"),
        conformations=np.array([[[0, 0, 0], [0, 0, 2]], [[0, 0, 0], [0, 0, 3]]], dtype=np.float32),
        dft_total_gradient=np.array([[[0, 0, -0.1], [0, 0, 0.1]], [[0, 0, 0.2], [0, 0, -0.2]]]),
        dft_total_energy=np.array([-1.25, -1.0]),
        formation_energy=np.array([-0.25, 0.5]),
    )
    write_spice(tmp_path / "s.hdf5", {"hydrogen": group})
    convert([str(tmp_path / "s.hdf5")], tmp_path / "out", SpiceOptions(split=TRAIN_ONLY).convert_options())
    atoms, data = stored(tmp_path / "out")["hydrogen", 0]
    np.testing.assert_allclose(atoms.positions[1], [0, 0, 2 * BOHR], rtol=1e-6)
    np.testing.assert_allclose(atoms.get_forces()[:, 2], [0.1 * HARTREE / BOHR, -0.1 * HARTREE / BOHR], rtol=1e-5)
    assert atoms.get_potential_energy() == pytest.approx(-0.25 * HARTREE, rel=1e-6)
    assert not atoms.pbc.any()
    assert not atoms.cell.any()
    assert (data["charge"], data["subset"], data["smiles"]) == (0, "first; second", "[H:1][H:2]")
    assert data["dft_total_energy"] == pytest.approx(-1.25 * HARTREE, rel=1e-6)
    assert data["converted_from"] == "s.hdf5:0"


def test_texts_are_read_in_any_shape(tmp_path: Path):
    for number, subset in enumerate((b"one", [b"one"], [[b"one"]])):
        write_spice(tmp_path / f"{number}.hdf5", {"a": spice_group("C", [6]) | {"subset": subset}})
        convert([str(tmp_path / f"{number}.hdf5")], tmp_path / f"out{number}", ALL)
        assert stored(tmp_path / f"out{number}")["a", 0][1]["subset"] == "one"


@pytest.mark.parametrize(
    ("subset", "family"),
    [
        ("SPICE PubChem Set 1 Single Points Dataset v1.2", "PubChem"),
        ("SPICE PubChem Set 6 Single Points Dataset v1.2", "PubChem"),
        ("SPICE PubChem Set 10 Single Points Dataset v1.0", "PubChem"),
        ("SPICE DES370K Single Points Dataset v1.0", "DES370K dimers"),
        ("SPICE DES370K Single Points Dataset Supplement v1.0", "DES370K dimers"),
        ("SPICE DES Monomers Single Points Dataset v1.1", "DES370K monomers"),
        ("SPICE Dipeptides Single Points Dataset v1.2", "dipeptides"),
        ("SPICE Solvated Amino Acids Single Points Dataset v1.1", "solvated amino acids"),
        ("SPICE Ion Pairs Single Points Dataset v1.1", "ion pairs"),
        ("SPICE Water Clusters v1.0", "water"),
        ("SPICE PubChem Boron Silicon v1.0", "boron and silicon"),
        ("SPICE Solvated PubChem Set 1 v1.0", "solvated PubChem"),
        ("SPICE Amino Acid Ligand v1.0", "amino acids with ligands"),
        ("qmugs", "QMugs"),
        ("DES370K_Monomers", "DES370K monomers"),
        ("something new, v1.0", "something new, v1.0"),
        ("", ""),
    ],
)
def test_subsets_belong_to_the_families_that_errors_are_reported_for(subset: str, family: str):
    assert family_of(subset) == family


def test_a_molecule_in_several_subsets_has_every_family_once():
    subsets = ["SPICE PubChem Set 1 v1", "SPICE PubChem Set 2 v1", "SPICE Dipeptides v1"]
    assert family_of_all(subsets) == "PubChem; dipeptides"
    assert len({*MACE_OFF}) == 7


def test_version_2_keeps_what_the_rule_selects_and_says_what_was_found(tmp_path: Path):
    file = str(write_spice_2(tmp_path / "SPICE-2.0.1.hdf5"))
    summary = convert([file], tmp_path / "out", SpiceOptions(split=TRAIN_ONLY).convert_options())
    found = {key: data["subset_family"] for key, (_, data) in stored(tmp_path / "out").items()}
    assert found == {
        ("103914790", 0): "PubChem",
        ("103914790", 1): "PubChem",
        ("solvated", 0): "solvated PubChem",
        ("water dimer", 0): "water",
        ("water dimer", 1): "water",
        ("water dimer", 2): "water",
        ("qmugs", 0): "QMugs",
        ("ALA ligand", 0): "amino acids with ligands",
    }
    assert stored(tmp_path / "out")["qmugs", 0][1]["subset"] == "QMugs"
    assert sorted(skip["detail"] for skip in summary["skipped"]) == [
        *["holds B"] * 2,
        "holds K",
        "holds Si",
        *["the charge is +1"] * 2,
    ]
    assert summary["notes"] == [
        published_sets.RULE_ALONE,
        "structures by subset: PubChem 2, QMugs 1, amino acids with ligands 1, solvated PubChem 1, water 3",
        "MACE-OFF's set holds more, of which nothing is among these: DES370K monomers, DES370K dimers, dipeptides, "
        "solvated amino acids",
        "no part of MACE-OFF's set, and kept here: amino acids with ligands, solvated PubChem",
        "not stored: mayer_indices, scf_dipole",
    ]


def test_the_conformations_of_several_molecules_beside_each_other_stay_together(tmp_path: Path):
    file = str(write_spice_2(tmp_path / "SPICE-2.0.1.hdf5"))
    options = SpiceOptions(split=SplitOptions(parts=(0.4, 0.3, 0.3))).convert_options()
    convert([file], tmp_path / "out", options)
    homes = [{sid for sid, _ in stored(tmp_path / "out" / split)} for split in ("train", "val", "test")]
    assert all(homes)
    assert sum(map(len, homes)) == 5  # no molecule is in two of them


def test_without_subsets_nothing_is_said_about_them(tmp_path: Path):
    groups = {
        "a": spice_group("C", [6], subset=()),
        "b": spice_group("CC", [6], subset=("SPICE Dipeptides v1",), seed=1),
    }
    del groups["a"]["subset"]
    options = SpiceOptions(split=TRAIN_ONLY).convert_options()
    notes = convert([str(write_spice(tmp_path / "s.hdf5", groups))], tmp_path / "some", options)["notes"]
    assert "structures by subset: not named 1, dipeptides 1" in notes
    del groups["b"]
    notes = convert([str(write_spice(tmp_path / "t.hdf5", groups))], tmp_path / "none", options)["notes"]
    assert published_sets.RULE_ALONE in notes
    assert not [note for note in notes if "subset" in note or "MACE-OFF's set" in note]


def test_what_is_counted_is_cut_with_the_structures(tmp_path: Path):
    families = ("SPICE PubChem Set 1 v1", "SPICE Dipeptides v1")
    groups = {f"m{k}": spice_group(f"C{k}", [6], subset=(families[k % 2],), seed=k) for k in range(9)}
    write_spice(tmp_path / "s.hdf5", groups)
    options = SpiceOptions(split=SplitOptions(parts=(1.0,)), limit=4).convert_options()
    notes = convert([str(tmp_path / "s.hdf5")], tmp_path / "out", options)["notes"]
    assert "structures by subset: PubChem 2, dipeptides 2" in notes
    assert len(stored(tmp_path / "out")) == 4
    everything = replace(options, limit=None)
    notes = convert([str(tmp_path / "s.hdf5")], tmp_path / "all", everything)["notes"]
    assert "structures by subset: PubChem 5, dipeptides 4" in notes


def test_partial_charges_are_kept_for_every_conformation(tmp_path: Path):
    charges = np.array([[[0.25], [-0.25]], [[0.5], [-0.5]]], dtype=np.float32)
    groups = {
        "with": spice_group("[H][F]", [1, 9], frames=2, mbis_charges=charges),
        "flat": spice_group("[H][Cl]", [1, 17], frames=2, mbis_charges=charges[..., 0], seed=1),
        "without": spice_group("[H][H]", [1, 1], frames=2, mbis_charges=None, seed=2),
    }
    summary = convert([str(write_spice(tmp_path / "s.hdf5", groups))], tmp_path / "out", ALL)
    found = stored(tmp_path / "out")
    for name in ("with", "flat"):
        kept = [found[name, fid][1]["mbis_charges"] for fid in range(2)]
        assert [charge.tolist() for charge in kept] == [[0.25, -0.25], [0.5, -0.5]]
        assert found[name, 0][1]["charge"] == 0  # that of the molecule, which is something else
    assert "mbis_charges" not in found["without", 0][1]
    assert summary["notes"] == []


@pytest.mark.parametrize(
    ("charges", "unit", "message"),
    [
        (np.zeros((2, 3, 1)), None, "'mbis_charges' has shape (2, 3, 1) instead of (2, 2, 1)"),
        (np.zeros((1, 2, 1)), None, "'mbis_charges' has shape (1, 2, 1) instead of (2, 2, 1)"),
        (np.zeros((2, 2, 3)), None, "'mbis_charges' has shape (2, 2, 3) instead of (2, 2, 1)"),
        (np.zeros((2, 2, 1)), "coulomb", "the units of 'mbis_charges' are 'coulomb'; known here is elementary_charge"),
    ],
)
def test_partial_charges_that_do_not_fit_are_reported(
    tmp_path: Path, charges: np.ndarray, unit: str | None, message: str
):
    groups = {
        "bad": spice_group("[H][F]", [1, 9], frames=2, mbis_charges=charges),
        "good": spice_group("[H][Cl]", [1, 17], seed=1),
    }
    file = write_spice(tmp_path / "s.hdf5", groups, {**SPICE_UNITS, "mbis_charges": unit})
    if unit is not None:
        with h5py.File(file, "a") as content:
            content["good/mbis_charges"].attrs["units"] = "elementary_charge"
    summary = convert([str(file)], tmp_path / "out", ALL)
    assert list(stored(tmp_path / "out")) == [("good", 0)]
    assert [skip["detail"] for skip in summary["skipped"]] == [f"bad: {message}"] * 2


def test_what_is_not_read_is_named(tmp_path: Path):
    further = {"mbis_dipoles": np.zeros((1, 1, 3)), "scf_quadrupole": np.zeros((1, 3, 3)), "a new one": [1.0]}
    groups = {"a": spice_group("C", [6]) | further, "b": spice_group("CC", [6], seed=1)}
    summary = convert([str(write_spice(tmp_path / "s.hdf5", groups))], tmp_path / "out", ALL)
    assert summary["notes"] == ["not stored: a new one, mbis_dipoles, scf_quadrupole"]
    assert not {"mbis_dipoles", "a new one"} & set(stored(tmp_path / "out")["a", 0][1])


def test_total_energies_get_references_and_formation_energies_none(tmp_path: Path):
    file = str(write_spice(tmp_path / "s.hdf5", {"w": spice_group("O", [8, 1, 1], frames=4)}))
    convert([file], tmp_path / "formation", SpiceOptions(split=TRAIN_ONLY).convert_options())
    convert([file], tmp_path / "total", SpiceOptions(split=TRAIN_ONLY, energy="total").convert_options())
    assert not (tmp_path / "formation/element_references.npz").exists()
    assert (tmp_path / "total/element_references.npz").exists()
    atoms, data = stored(tmp_path / "total")["w", 1]
    assert atoms.get_potential_energy() == pytest.approx(-40 * HARTREE, abs=1.0)
    assert data["formation_energy"] == pytest.approx(-0.5 * HARTREE, abs=1.0)


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [
        ("CCO", 0),
        ("[H:1][C:2]#[C:3][H:4].[Na+:5]", 1),
        ("[NH3+]CC(=O)[O-]", 0),
        ("[Ca+2]", 2),
        ("[Ca++:7]", 2),
        ("[O-2:1].[Mg+2].[Cl-:3]", -1),
        ("[C@@H:1](F)(Cl)[13C@H-:12]", -1),
        ("C-C=C[H]", 0),
    ],
)
def test_charge_is_the_sum_over_brackets(smiles: str, charge: int):
    assert formal_charge(smiles) == charge


def test_atom_numbers_are_taken_off_and_nothing_else():
    assert without_atom_numbers("[H:10][C@@:1]1([O-:2])[N+2]C1") == "[H][C@@]1([O-])[N+2]C1"


def test_the_selection_names_what_it_leaves_out(tmp_path: Path):
    groups = {
        "water": spice_group("[H:2][O:1][H:3]", [8, 1, 1]),
        "salt": spice_group("[Na+:1].[Cl-:2]", [11, 17]),
        "ammonium": spice_group("[NH4+]", [7, 1, 1, 1, 1]),
        "unknown": spice_group(None, [8, 1, 1]),
    }
    write_spice(tmp_path / "s.hdf5", groups)
    summary = convert([str(tmp_path)], tmp_path / "out", SpiceOptions(split=TRAIN_ONLY).convert_options())
    assert {skip["reason"] for skip in summary["skipped"]} == {"outside the selection"}
    # HDF5 lists groups by name.
    assert [skip["detail"] for skip in summary["skipped"]] == [
        "the charge is +1",
        "holds Na",
        "the charge is not known",
    ]
    assert list(stored(tmp_path / "out")) == [("water", 0)]
    assert summary["notes"][:4] == [
        published_sets.RULE_ALONE,
        "structures by subset: a subset 1",
        "MACE-OFF's set holds more, of which nothing is among these: PubChem, DES370K monomers, DES370K dimers, "
        "dipeptides, solvated amino acids, water, QMugs",
        "no part of MACE-OFF's set, and kept here: a subset",
    ]
    assert "published lists of molecules are not reproduced" in published_sets.RULE_ALONE
    summary = convert([str(tmp_path / "s.hdf5")], tmp_path / "all", ALL)
    assert (summary["usable"], summary["notes"]) == (4, [])
    assert stored(tmp_path / "all")["ammonium", 0][1]["charge"] == 1


def test_a_molecule_never_spans_splits_even_under_two_names(tmp_path: Path):
    groups = {
        f"{name}{k}": spice_group(f"[C:{number}]{'C' * k}", [6], frames=5, seed=k)
        for k in range(20)
        for number, name in ((1, "m"), (2, "again"))  # numbered differently, but the same molecule
    }
    write_spice(tmp_path / "s.hdf5", groups)
    options = SpiceOptions(split=SplitOptions(parts=(0.6, 0.2, 0.2))).convert_options()
    summary = convert([str(tmp_path / "s.hdf5")], tmp_path / "out", options)
    assert sum(split["structures"] for split in summary["splits"].values()) == 200
    homes = [
        {without_atom_numbers(data["smiles"]) for _, data in stored(tmp_path / "out" / split).values()}
        for split in ("train", "val", "test")
    ]
    assert all(homes)
    assert sum(map(len, homes)) == 20


@pytest.mark.parametrize("name", list(SPICE_UNITS))
@pytest.mark.parametrize("unit", [None, "kcal/mol"])
def test_units_are_checked_and_cost_the_molecule(tmp_path: Path, name: str, unit: str | None):
    bad, good = spice_group("C", [6], frames=3), spice_group("C", [6], frames=2)
    file = write_spice(tmp_path / "s.hdf5", {"bad": bad, "good": good})
    with h5py.File(file, "a") as content:
        del content["bad"][name].attrs["units"]
        if unit is not None:
            content["bad"][name].attrs["units"] = unit
    summary = convert([str(file)], tmp_path / "out", ALL)
    assert (summary["usable"], summary["skipped_by_reason"]) == (2, {"unreadable frame": 3})
    assert f"the units of '{name}' are {unit!r}" in summary["skipped"][0]["detail"]


def test_other_lengths_are_converted(tmp_path: Path):
    for unit, factor in (("angstrom", 1.0), ("nanometers", 10.0)):
        group = spice_group("[H][H]", [1, 1], conformations=np.array([[[0, 0, 0], [0, 0, 0.75]]]))
        write_spice(tmp_path / f"{unit}.hdf5", {unit: group}, {**SPICE_UNITS, "conformations": unit})
        convert([str(tmp_path / f"{unit}.hdf5")], tmp_path / unit, ALL)
        assert stored(tmp_path / unit)[unit, 0][0].positions[1, 2] == pytest.approx(0.75 * factor)


def test_odd_groups_are_reported_and_cost_no_other(tmp_path: Path):
    groups = {
        "a": spice_group("C", [6], frames=2),
        "b/c=C/d": spice_group("C", [6]),  # a slash in a name makes groups within groups
        "no_labels": spice_group("C", [6], formation_energy=None, dft_total_gradient=None),
        "no_gradient": spice_group("C", [6], dft_total_gradient=None),
        "shape": spice_group("C", [6], frames=2, formation_energy=np.zeros(3)),
        "nothing": {"smiles": ["C"]},
        "empty": spice_group("C", [6], frames=0),
        "nan": spice_group("C", [6], formation_energy=np.array([np.nan])),
    }
    write_spice(tmp_path / "s.hdf5", groups)
    summary = convert([str(tmp_path / "s.hdf5")], tmp_path / "out", ALL)
    assert set(stored(tmp_path / "out")) == {("a", 0), ("a", 1), ("b/c=C/d", 0)}
    details = {skip["position"]: (skip["reason"], skip["detail"]) for skip in summary["skipped"]}
    assert details == {
        3: ("unreadable frame", "empty: there is no conformation"),
        4: ("not finite", "energy holds NaN or infinity"),
        5: ("missing forces", "no forces"),
        6: ("missing energy", "no energy under 'formation_energy'; there is dft_total_energy (--energy-key)"),
        7: ("unreadable frame", "nothing: there is no 'atomic_numbers' (there is smiles)"),
        8: ("unreadable frame", "shape: 'formation_energy' has shape (3,) instead of (2,)"),
        9: ("unreadable frame", "shape: 'formation_energy' has shape (3,) instead of (2,)"),
    }


def test_a_group_that_cannot_be_opened_costs_no_other(tmp_path: Path):
    file = write_spice(tmp_path / "s.hdf5", {"a": spice_group("C", [6]), "z": spice_group("CC", [6], frames=2)})
    with h5py.File(file, "a") as content:
        content["m"] = h5py.SoftLink("/nowhere")
        content["n/inner"] = h5py.ExternalLink("absent.hdf5", "/a")
        content.create_group("o")["conformations"] = h5py.SoftLink("/nowhere")
    summary = convert([str(file)], tmp_path / "out", ALL)
    assert set(stored(tmp_path / "out")) == {("a", 0), ("z", 0), ("z", 1)}
    found = {skip["position"]: skip["detail"].split(":")[0] for skip in summary["skipped"]}
    assert found == {1: "m", 2: "n/inner", 3: "o"}


def test_where_the_list_of_groups_breaks_off_what_was_found_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write_spice(tmp_path / "s.hdf5", {f"m{k}": spice_group(f"C{k}", [6], frames=2, seed=k) for k in range(4)})
    original = spice._molecules

    def breaking(*arguments: object) -> Iterator[str]:
        yield from list(original(*arguments))[:3]
        raise RuntimeError("the list is broken")

    monkeypatch.setattr(spice, "_molecules", breaking)
    monkeypatch.setattr(sources, "CHUNK_FRAMES", 4)
    summary = convert([str(file)], tmp_path / "out", ALL)
    assert summary["usable"] == 6
    (skip,) = summary["skipped"]
    assert (skip["position"], skip["reason"]) == (6, "unreadable frame")
    assert "the list is broken; nothing after it was read" in skip["detail"]


def test_what_the_report_says_does_not_decide_whether_a_set_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = write_spice(tmp_path / "s.hdf5", {"a": spice_group("C", [6])})
    options = SpiceOptions(split=TRAIN_ONLY)
    first = convert([str(file)], tmp_path / "out", options.convert_options())
    monkeypatch.setattr(published_sets, "RULE_ALONE", "put otherwise")
    assert convert([str(file)], tmp_path / "out", options.convert_options()) == first


def test_no_hdf5_file_is_an_unreadable_file(tmp_path: Path):
    (tmp_path / "s.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n truncated")
    with pytest.raises(DataError, match="unreadable file"):
        convert([str(tmp_path / "s.hdf5")], tmp_path / "out", ALL)
    with pytest.raises(DataError, match="no file of the format spice matches"):
        convert([str(tmp_path / "*.h5x")], tmp_path / "out", ALL)


def test_workers_and_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    groups = {f"m{k}": spice_group(f"C{k}", [6, 1], frames=1 + k % 4, seed=k) for k in range(12)}
    write_spice(tmp_path / "s.hdf5", groups)
    options = SpiceOptions(split=SplitOptions(parts=(0.6, 0.4))).convert_options()
    convert([str(tmp_path / "s.hdf5")], tmp_path / "aa", options)
    monkeypatch.setattr(sources, "CHUNK_FRAMES", 5)
    convert([str(tmp_path / "s.hdf5")], tmp_path / "bb", options, workers=2)
    assert _rows(tmp_path / "aa") == _rows(tmp_path / "bb")
    limited = SpiceOptions(split=TRAIN_ONLY, limit=7).convert_options()
    assert convert([str(tmp_path / "s.hdf5")], tmp_path / "cc", limited)["read"] == 7


def _rows(folder: Path) -> dict[str, object]:
    return {name: rows for name, rows in data_set_content(folder).items() if name.endswith(("lmdb", "npz"))}


def test_h5py_is_imported_only_for_spice():
    code = "import sys; import escaip_fairchem.data.published_sets; sys.exit('h5py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_plain_command_reads_it_too(tmp_path: Path):
    write_spice(tmp_path / "s.hdf5", {"a": spice_group("C", [6])})
    with pytest.raises(DataError, match="there is dft_total_energy, formation_energy"):
        convert([str(tmp_path / "s.hdf5")], tmp_path / "out", ConvertOptions(form="spice"))


def test_a_piece_of_the_real_file_agrees_with_its_conversion_by_others(tmp_path: Path, shared: Path):
    file = shared / "data/raw_formats/spice/SPICE-1.1.4_n2.hdf5"
    options = SpiceOptions(split=TRAIN_ONLY, selection="all", energy="total").convert_options()
    summary = convert([str(file)], tmp_path / "out", options)
    found = stored(tmp_path / "out")
    assert len(found) == 55
    assert [note for note in summary["notes"] if note.startswith("not stored")] == [
        "not stored: mayer_indices, mbis_dipoles, mbis_octupoles, mbis_quadrupoles, scf_dipole, scf_quadrupole, "
        "wiberg_lowdin_indices"
    ]
    assert {data["subset_family"] for _, data in found.values()} == {"PubChem", "DES370K dimers"}
    charged = [data for _, data in found.values() if "mbis_charges" in data]
    assert len(charged) >= 5
    for data in charged:
        assert data["mbis_charges"].sum() == pytest.approx(data["charge"], abs=1e-3)
    compared = 0
    for other in ase.io.read(shared / "data/spice_63.extxyz", ":"):
        key = (str(other.info["name"]), int(other.info["conformer"]))
        if key not in found:
            continue
        atoms, data = found[key]
        np.testing.assert_array_equal(atoms.numbers, other.numbers)
        np.testing.assert_allclose(atoms.positions, other.positions, atol=1e-6)
        np.testing.assert_allclose(atoms.get_forces(), other.get_forces(), atol=1e-4)
        assert atoms.get_potential_energy() == pytest.approx(other.get_potential_energy(), rel=1e-8)
        assert data["formation_energy"] == pytest.approx(other.info["formation_energy"], rel=1e-6)
        assert (data["charge"], data["subset"]) == (other.info["charge"], other.info["subset"])
        compared += 1
    assert compared >= 5


def test_a_real_file_without_labels_is_refused_with_the_reason(tmp_path: Path, shared: Path):
    file = shared / "data/raw_formats/spice/ions_geometry_only.hdf5"
    with pytest.raises(DataError, match="there is no 'atomic_numbers'"):
        convert([str(file)], tmp_path / "out", ALL)
