"""MD22 and rMD17: kcal/mol become eV, one data set per molecule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.units import kcal, mol
from raw_cases import rmd17_arrays, sgdml_arrays, stored

from escaip_fairchem.data import sources
from escaip_fairchem.data.published_sets import MoleculeOptions, convert_molecules, molecule_name
from escaip_fairchem.data.sources import Source
from escaip_fairchem.data.splits import SplitOptions
from escaip_fairchem.errors import DataError

KCAL = 0.0433641
TRAIN_ONLY = SplitOptions(parts=(1.0,), shuffle=False)
AS_IT_IS = MoleculeOptions(form="md22", split=TRAIN_ONLY, subtract_references=False)


@pytest.mark.parametrize("arrays", [sgdml_arrays(), rmd17_arrays(), sgdml_arrays(e_unit="kcal/mol", r_unit="Ang")])
def test_both_layouts_become_electronvolts_without_a_cell(tmp_path: Path, arrays: dict[str, Any]):
    np.savez(tmp_path / "md22_CO.npz", **arrays)
    summary = convert_molecules([str(tmp_path / "md22_CO.npz")], tmp_path / "out", AS_IT_IS)["co"]
    original = sgdml_arrays()
    found = stored(tmp_path / "out/co")
    assert len(found) == 6
    for number in range(6):
        atoms, data = found[f"md22_CO.npz:{number}", 0]
        np.testing.assert_array_equal(atoms.numbers, [6, 8])
        np.testing.assert_allclose(atoms.positions, original["R"][number])
        np.testing.assert_allclose(atoms.get_forces(), original["F"][number] * KCAL, rtol=1e-6)
        assert atoms.get_potential_energy() == pytest.approx(original["E"][number, 0] * KCAL, rel=1e-6)
        assert not atoms.pbc.any()
        assert not atoms.cell.any()
        assert data.get("theory") == (None if "coords" in arrays else "PBE+MBD")
        assert data.get("old_indices") == (50 * (5 - number) + 3 if "coords" in arrays else None)
    expected = ["not stored: old_energies, old_forces"] if "coords" in arrays else []
    assert [note for note in summary["notes"] if "not stored" in note] == expected
    assert not (tmp_path / "out/co/element_references.npz").exists()


def test_units_that_the_file_names_are_obeyed(tmp_path: Path):
    np.savez(tmp_path / "a.npz", **sgdml_arrays(e_unit=np.array(b"eV"), r_unit=np.array("bohr")))
    convert_molecules([str(tmp_path / "a.npz")], tmp_path / "out", AS_IT_IS)
    atoms, _ = stored(tmp_path / "out/a")["a.npz:0", 0]
    original = sgdml_arrays()
    assert atoms.get_potential_energy() == pytest.approx(original["E"][0, 0])
    np.testing.assert_allclose(atoms.positions, original["R"][0] * 0.529177, rtol=1e-6)
    np.testing.assert_allclose(atoms.get_forces(), original["F"][0] / 0.529177, rtol=1e-6)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"F": None}, "must hold z, R, E, F or nuclear_charges.*it holds E, R, md5, name"),
        (
            {"F": np.zeros((6, 3, 3))},
            r"'F' has shape \(6, 3, 3\), which does not fit 'z' of shape \(2,\) and 6 energies",
        ),
        ({"R": np.zeros((5, 2, 3))}, r"'R' has shape \(5, 2, 3\)"),
        ({"e_unit": "kcal"}, "e_unit is 'kcal'; known here are eV"),
        ({"r_unit": "furlong"}, "r_unit is 'furlong'; known here are ang"),
        ({"lattice": np.eye(3)}, "has a lattice"),
        ({"old_indices": np.arange(5)}, r"'old_indices' has shape \(5,\), and there are 6 energies"),
    ],
)
def test_files_that_do_not_fit_say_why(tmp_path: Path, replaced: dict[str, Any], message: str):
    np.savez(tmp_path / "a.npz", **sgdml_arrays(**replaced))
    with pytest.raises(DataError, match=f"(?s)unreadable file.*{message}"):
        convert_molecules([str(tmp_path / "a.npz")], tmp_path / "out", AS_IT_IS)


def test_a_truncated_file_is_reported(tmp_path: Path):
    np.savez(tmp_path / "a.npz", **sgdml_arrays())
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="unreadable file"):
        convert_molecules([str(tmp_path / "a.npz")], tmp_path / "out", AS_IT_IS)


def test_energies_are_stored_relative_to_the_training_mean(tmp_path: Path):
    np.savez_compressed(tmp_path / "rmd17_co.npz", **rmd17_arrays(40))
    options = MoleculeOptions(form="rmd17", split=SplitOptions(parts=(30, 10)))
    convert_molecules([str(tmp_path)], tmp_path / "out", options)
    total = sgdml_arrays(40)["E"].reshape(-1) * (kcal / mol)
    found = {data["converted_from"]: (atoms, data) for atoms, data in stored(tmp_path / "out/co").values()}
    for number in range(40):
        atoms, data = found[f"rmd17_co.npz:{number}"]
        assert atoms.get_potential_energy() + data["reference_energy"] == pytest.approx(total[number], abs=1e-6)
    train = [atoms.get_potential_energy() for atoms, _ in stored(tmp_path / "out/co/train").values()]
    with np.load(tmp_path / "out/co/normalizers/energy.npz") as scale:
        assert scale["mean"] == pytest.approx(0.0, abs=1e-6)
        assert scale["rmsd"] == pytest.approx(np.std(train, ddof=1))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("md22_Ac-Ala3-NHMe.npz", "ac_ala3_nhme"),
        ("md22_DHA.npz", "dha"),
        ("md22_stachyose.npz", "stachyose"),
        ("md22_AT-AT.npz", "at_at"),
        ("md22_AT-AT-CG-CG.npz", "at_at_cg_cg"),
        ("md22_buckyball-catcher.npz", "buckyball_catcher"),
        ("md22_double-walled_nanotube.npz", "double_walled_nanotube"),
        ("rmd17_ethanol.npz", "ethanol"),
        ("md17_aspirin.npz", "aspirin"),
    ],
)
def test_molecules_are_called_as_in_the_configurations(file: str, name: str):
    assert molecule_name(Path(file)) == name
    configurations = Path(__file__).parents[2] / "configs/md22"
    if file.startswith("md22"):
        assert f"data/md22/{name}/train" in (configurations / f"escaip_md22_{name}.yml").read_text(encoding="utf-8")


def test_every_molecule_gets_a_folder_and_names_can_be_given(tmp_path: Path):
    for name in ("md22_DHA", "md22_AT-AT"):
        np.savez(tmp_path / f"{name}.npz", **sgdml_arrays())
    files = [str(tmp_path / "md22_DHA.npz"), str(tmp_path / "md22_AT-AT.npz")]
    convert_molecules(files, tmp_path / "out", AS_IT_IS)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["at_at", "dha"]
    assert list(convert_molecules(files, tmp_path / "named", AS_IT_IS, names=["one", "two"])) == ["one", "two"]
    with pytest.raises(DataError, match="--name gives 1 names for 2 files"):
        convert_molecules(files, tmp_path / "x", AS_IT_IS, names=["one"])
    with pytest.raises(DataError, match="are both called 'one'"):
        convert_molecules(files, tmp_path / "x", AS_IT_IS, names=["one", "one"])
    with pytest.raises(DataError, match="cannot be the name of a folder"):
        convert_molecules(files[:1], tmp_path / "x", AS_IT_IS, names=["../x"])
    assert not (tmp_path / "x").exists()


def test_an_xyz_file_is_refused_with_the_command_that_knows_units(tmp_path: Path):
    (tmp_path / "aspirin.xyz").write_text("1\nenergy=-100\nC 0 0 0\n")
    with pytest.raises(DataError, match="--energy-units kcal/mol --force-units kcal/mol/Ang"):
        convert_molecules([str(tmp_path / "aspirin.xyz")], tmp_path / "out", AS_IT_IS)


def test_a_file_is_loaded_once_for_all_its_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "CHUNK_FRAMES", 4)
    np.savez(tmp_path / "a.npz", **sgdml_arrays(10))
    source = Source(path=tmp_path / "a.npz", name="a.npz")
    chunks = sources.plan_chunks([source], form="md22", limit=9)
    assert [(chunk.start, chunk.count) for chunk in chunks] == [(0, 4), (4, 4), (8, 1)]
    loads, original = [], np.load
    monkeypatch.setattr(np, "load", lambda *words, **options: loads.append(words) or original(*words, **options))
    frames = [atoms for chunk in reversed(chunks) for atoms in sources.read_chunk(chunk)]
    assert (len(frames), loads) == (9, [])  # planning has loaded it
    np.savez(tmp_path / "a.npz", **sgdml_arrays(10, R=np.ones((10, 2, 3))))
    assert next(sources.read_chunk(chunks[0])).positions[0, 0] == 1.0


@pytest.mark.parametrize("file", ["rmd17_ethanol_train_01.npz", "ethanol_ccsd_t-train.npz"])
def test_real_energies_and_forces_belong_together(tmp_path: Path, shared: Path, file: str):
    """Between two similar frames the energy changes by about the work of the mean force."""
    options = MoleculeOptions(form="rmd17", split=TRAIN_ONLY)
    convert_molecules([str(shared / "data/raw_formats/rmd17" / file)], tmp_path / "out", options, names=["x"])
    found = list(stored(tmp_path / "out/x").values())
    frames = [atoms for atoms, _ in found]
    assert len(frames) == 1000
    positions = np.array([atoms.positions for atoms in frames])
    forces = np.array([atoms.get_forces() for atoms in frames])
    energies = np.array([atoms.get_potential_energy() for atoms in frames])
    one, two = np.triu_indices(1000, 1)
    distances = np.linalg.norm((positions[one] - positions[two]).reshape(len(one), -1), axis=1)
    near = np.argsort(distances)[:200]
    one, two = one[near], two[near]
    works = -((forces[one] + forces[two]) / 2 * (positions[two] - positions[one])).sum(axis=(1, 2))
    slope = np.polyfit(works, energies[two] - energies[one], 1)[0]
    assert slope == pytest.approx(1.0, abs=0.1)
    # A carbon nucleus with its electrons has 1028 eV, oxygen 2041 eV: these are electronvolts.
    atoms, data = found[0]
    assert atoms.get_potential_energy() + data["reference_energy"] == pytest.approx(-4200, abs=30)


def test_the_trap_is_shut_for_the_real_xyz_file(tmp_path: Path, shared: Path):
    file = shared / "data/raw_formats/rmd17/aspirin_15_kcal.xyz"
    with pytest.raises(DataError, match="does not say what its units are"):
        convert_molecules([str(file)], tmp_path / "out", AS_IT_IS)
