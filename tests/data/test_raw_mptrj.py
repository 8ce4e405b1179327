"""MPtrj: units, signs, streaming and what is skipped, on files written here and on pieces of the real one."""

from __future__ import annotations

import json
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.units import GPa
from fairchem_side import data_set_content
from raw_cases import mptrj_entry, stored

from escaip_fairchem.data import sources, staging
from escaip_fairchem.data.convert import convert
from escaip_fairchem.data.options import ConvertOptions
from escaip_fairchem.data.published_sets import MPtrjOptions
from escaip_fairchem.data.splits import SplitOptions
from escaip_fairchem.errors import DataError

TRAIN_ONLY = SplitOptions(parts=(1.0,))
OPTIONS = MPtrjOptions(split=TRAIN_ONLY).convert_options()


def write_mptrj(path: Path, materials: dict[str, Any], indent: int | None = None) -> str:
    path.write_text(json.dumps(materials, indent=indent))
    return str(path)


def materials(count: int) -> dict[str, Any]:
    """Materials of 1, 2, 3, 1, 2, … steps."""
    return {
        f"mp-{m}": {
            f"mp-{m}00-0-{step}": mptrj_entry(f"mp-{m}", energy=-10.0 - m - 0.1 * step) for step in range(1 + m % 3)
        }
        for m in range(count)
    }


@pytest.mark.parametrize("indent", [None, 2])
def test_numbers_worked_out_by_hand(tmp_path: Path, indent: int | None):
    file = write_mptrj(tmp_path / "m.json", {"mp-1": {"mp-77-0-3": mptrj_entry("mp-1")}}, indent)
    convert([file], tmp_path / "out", OPTIONS)
    atoms, data = stored(tmp_path / "out")["mp-77-0-3", 0]
    assert atoms.get_chemical_symbols() == ["Na", "Cl"]
    assert atoms.pbc.all()
    np.testing.assert_allclose(atoms.positions[1], [2.8, 2.8, 2.8])
    np.testing.assert_allclose(atoms.cell.array[0], [0.0, 2.8, 2.8])
    # -0.1 GPa per kBar: VASP counts compression as positive, ASE tension.
    expected = np.array([-1.0, 2.0, -3.0, -0.3, -0.2, -0.1]) * GPa
    np.testing.assert_allclose(atoms.get_stress(), expected, rtol=1e-12)
    assert GPa == pytest.approx(1 / 160.21766, rel=1e-6)
    np.testing.assert_allclose(atoms.get_forces(), [[0.1, 0, 0], [-0.1, 0, 0]])
    assert atoms.get_potential_energy() == -10.5
    assert data["uncorrected_total_energy"] == -10.0
    np.testing.assert_allclose(data["magmom"], [0.25, -0.5])
    assert (data["mp_id"], data["bandgap"]) == ("mp-1", 5.0)
    assert not {"force", "structure", "corrected_total_energy"} & set(data)


def test_uncorrected_energies_are_a_choice(tmp_path: Path):
    file = write_mptrj(tmp_path / "m.json", {"mp-1": {"a": mptrj_entry("mp-1", magmom=None, bandgap=None)}})
    convert([file], tmp_path / "out", MPtrjOptions(split=TRAIN_ONLY, energy="uncorrected").convert_options())
    atoms, data = stored(tmp_path / "out")["a", 0]
    assert atoms.get_potential_energy() == -10.0
    assert data["corrected_total_energy"] == -10.5
    assert not {"magmom", "bandgap"} & set(data)
    with pytest.raises(DataError, match="did you mean 'corrected'"):
        MPtrjOptions(energy="correct").convert_options()
    with pytest.raises(DataError, match="there is corrected_total_energy, .*uncorrected_total_energy"):
        convert([file], tmp_path / "plain", ConvertOptions(form="mptrj"))


def test_what_cannot_be_used_is_named_and_costs_no_other(tmp_path: Path):
    good = mptrj_entry("mp-1")

    def changed(change: Any) -> dict[str, Any]:
        entry = deepcopy(good)
        change(entry)
        return entry

    def site(entry: dict[str, Any]) -> dict[str, Any]:
        return entry["structure"]["sites"][1]

    shared_site = [{"element": "Cl", "occu": 0.5}, {"element": "Br", "occu": 0.5}]
    calculations = {
        "ok": changed(lambda entry: site(entry).pop("xyz")),  # fractional coordinates serve as well
        "shared": changed(lambda entry: site(entry).update(species=shared_site)),
        "half": changed(lambda entry: site(entry).update(species=[{"element": "Cl", "occu": 0.5}])),
        "dummy": changed(lambda entry: site(entry).update(species=[{"element": "X0+", "occu": 1}])),
        "bare": changed(lambda entry: entry.pop("structure")),
        "no cell": changed(lambda entry: entry["structure"]["lattice"].pop("matrix")),
        "no force": changed(lambda entry: entry.update(force=None)),
        "no stress": changed(lambda entry: entry.update(stress=None)),
        "short": changed(lambda entry: entry.update(force=[[0, 0, 0]])),
        "skew": changed(lambda entry: entry.update(stress=[[0, 9, 0], [0, 0, 0], [0, 0, 0]])),
    }
    file = write_mptrj(tmp_path / "m.json", {"mp-1": calculations, "mp-2": {}, "mp-3": 7, "mp-4": {"last": good}})
    summary = convert([file], tmp_path / "out", OPTIONS)
    assert set(stored(tmp_path / "out")) == {("ok", 0), ("last", 0)}
    np.testing.assert_allclose(stored(tmp_path / "out")["ok", 0][0].positions[1], [2.8, 2.8, 2.8])
    assert [(skip["position"], skip["reason"], skip["detail"]) for skip in summary["skipped"]] == [
        (1, "unreadable frame", "mp-1, shared: site 1 is partly occupied (Cl 0.5, Br 0.5)"),
        (2, "unreadable frame", "mp-1, half: site 1 is partly occupied (Cl 0.5)"),
        (3, "unreadable frame", "mp-1, dummy: site 1 holds 'X0+', which is no element"),
        (4, "unreadable frame", "mp-1, bare: there is no structure"),
        (5, "unreadable frame", "mp-1, no cell: the structure has no sites, or no matrix of lattice vectors"),
        (6, "missing forces", "no forces"),
        (7, "missing stress", "no stress"),
        (8, "malformed label", "forces has shape (1, 3) instead of (2, 3)"),
        (9, "malformed label", "stress is not symmetric"),
        (10, "unreadable frame", "mp-2 holds no calculation"),
        (11, "unreadable frame", "mp-3 holds no calculation"),
    ]


def test_broken_json_costs_its_material_and_a_truncated_file_its_end(tmp_path: Path):
    text = json.dumps(materials(4))
    file = tmp_path / "m.json"
    file.write_text(text.replace('"mp-100-0-1": {"structure"', '"mp-100-0-1": {"structure" "oops"', 1))
    summary = convert([str(file)], tmp_path / "broken", OPTIONS)
    assert (summary["usable"], summary["skipped_by_reason"]) == (5, {"unreadable frame": 2})
    assert "mp-1: JSONDecodeError" in summary["skipped"][0]["detail"]
    file.write_text(text[: text.index('"mp-3"') + 200])
    summary = convert([str(file)], tmp_path / "truncated", OPTIONS)
    assert summary["usable"] == 6
    assert [skip["position"] for skip in summary["skipped"]] == [6]
    assert "the file ends within 'mp-3'" in summary["skipped"][0]["detail"]
    assert "nothing after it was read" in summary["skipped"][0]["detail"]
    file.write_text("[]")
    with pytest.raises(DataError, match=r"(?s)unreadable file.*no JSON object"):
        convert([str(file)], tmp_path / "list", OPTIONS)


def test_names_that_occur_twice_are_seen(tmp_path: Path):
    """A parser keeps the last of equal names; here the loss is reported."""
    entry = json.dumps(mptrj_entry("mp-1"))
    (tmp_path / "m.json").write_text(f'{{"mp-1": {{"a": {entry}, "a": {entry}}}, "mp-1": {{"b": {entry}}}}}')
    summary = convert([str(tmp_path / "m.json")], tmp_path / "out", OPTIONS)
    assert set(stored(tmp_path / "out")) == {("a", 0), ("b", 0)}
    assert [skip["detail"] for skip in summary["skipped"]] == ["mp-1: two calculations have the same name"]


def test_materials_stay_together(tmp_path: Path):
    file = write_mptrj(tmp_path / "m.json", materials(60))
    summary = convert([file], tmp_path / "out", MPtrjOptions().convert_options())
    homes = [{data["mp_id"] for _, data in stored(tmp_path / "out" / split).values()} for split in ("train", "val")]
    assert len(homes[0]) + len(homes[1]) == 60
    assert summary["splits"]["train"]["structures"] == pytest.approx(0.95 * 120, abs=2)


def test_chunks_are_whole_materials_read_one_at_a_time_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write_mptrj(tmp_path / "m.json", materials(20))
    options = MPtrjOptions(split=SplitOptions(parts=(0.7, 0.3))).convert_options()
    convert([file], tmp_path / "aa", options)
    monkeypatch.setattr(sources, "CHUNK_FRAMES", 4)
    chunks = sources.plan_chunks(sources.find_files([file], exclude=tmp_path / "x"), form="mptrj")
    assert [chunk.count for chunk in chunks[:4]] == [6, 6, 6, 6]
    assert [chunk.start for chunk in chunks] == [sum(c.count for c in chunks[:n]) for n in range(len(chunks))]
    convert([file], tmp_path / "bb", options, workers=2)
    aa, bb = data_set_content(tmp_path / "aa"), data_set_content(tmp_path / "bb")
    for name in aa:
        assert name.endswith("yml") or aa[name] == bb[name], name
    limited = MPtrjOptions(split=TRAIN_ONLY, limit=5).convert_options()
    assert convert([file], tmp_path / "cc", limited)["read"] == 5


def test_an_interrupted_conversion_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "CHUNK_FRAMES", 4)
    file = write_mptrj(tmp_path / "m.json", materials(12))
    convert([file], tmp_path / "whole", OPTIONS)
    read, original = [], staging.read_chunk

    def stopping(chunk: sources.Chunk) -> Any:
        read.append(chunk.number)
        if len(read) == 3:
            raise KeyboardInterrupt
        return original(chunk)

    monkeypatch.setattr(staging, "read_chunk", stopping)
    with pytest.raises(KeyboardInterrupt):
        convert([file], tmp_path / "out", OPTIONS)
    convert([file], tmp_path / "out", OPTIONS)
    assert read[:4] == [0, 1, 2, 2]
    name = "train/data.0000.aselmdb"
    assert data_set_content(tmp_path / "out")[name] == data_set_content(tmp_path / "whole")[name]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> dict[str, tuple[Atoms, dict[str, Any]]]:
    """Eleven real entries, converted."""
    out = tmp_path_factory.mktemp("mptrj")
    convert([str(shared / "data/raw_formats/mptrj")], out, OPTIONS)
    return {sid: found for (sid, _), found in stored(out).items()}


def test_real_entries_are_all_there(real: dict[str, tuple[Atoms, dict[str, Any]]]):
    assert len(real) == 11
    atoms, data = real["mp-1393488-0-0"]
    assert len(atoms) == len(data["magmom"]) == 30
    assert atoms.get_potential_energy() == pytest.approx(-220.457948)
    assert data["mp_id"] == "mp-1205402"


def test_energy_forces_and_stress_of_a_real_relaxation_belong_together(real: dict[str, tuple[Atoms, dict[str, Any]]]):
    """Between two steps the energy changes by the work of forces, at fixed cell, and of the stress on the cell.

    With stress of the other sign or in another unit the sum would be off by as much as the work of the stress, a third
    of the whole.
    """
    steps = sorted((int(name.rsplit("-", 1)[1]), atoms) for name, (atoms, _) in real.items() if "1095441-1-" in name)
    energies = [atoms.get_potential_energy() for _, atoms in steps]
    works = [_works(before, after) for (_, before), (_, after) in pairwise(steps[2:])]
    changes = np.diff(energies[2:])
    assert len(changes) == 6
    for change, (by_forces, by_stress) in zip(changes, works, strict=True):
        assert by_forces + by_stress == pytest.approx(change, abs=0.1 * abs(change) + 1e-3)
    assert sum(abs(by_stress) for _, by_stress in works) > 0.3 * np.abs(changes).sum()


def _works(before: Atoms, after: Atoms) -> tuple[float, float]:
    cell = (before.cell.array + after.cell.array) / 2
    moved = after.get_scaled_positions(wrap=False) - before.get_scaled_positions(wrap=False)
    moved -= np.round(moved)
    forces = (before.get_forces() + after.get_forces()) / 2
    stress = (before.get_stress(voigt=False) + after.get_stress(voigt=False)) / 2
    strain = np.linalg.inv(cell) @ (after.cell.array - before.cell.array)
    return -float((forces * (moved @ cell)).sum()), abs(np.linalg.det(cell)) * float((stress * strain).sum())


def test_entries_put_back_into_the_layout_come_out_as_they_were(tmp_path: Path, shared: Path):
    others = ase.io.read(shared / "data/mptrj_random_1k.extxyz", ":60")
    content: dict[str, Any] = {}
    for atoms in others:
        entry = mptrj_entry("", energy=atoms.get_potential_energy(), magmom=None)
        entry["structure"] = {
            "lattice": {"matrix": atoms.cell.tolist(), "pbc": [True, True, True]},
            "sites": [
                {"species": [{"element": symbol, "occu": 1}], "xyz": position.tolist()}
                for symbol, position in zip(atoms.symbols, atoms.positions, strict=True)
            ],
        }
        entry["force"] = atoms.get_forces().tolist()
        entry["stress"] = (atoms.get_stress(voigt=False) / (-0.1 * GPa)).tolist()
        content.setdefault(atoms.info["mptrj_traj_id"], {})[atoms.info["mptrj_snapshot_id"]] = entry
    file = write_mptrj(tmp_path / "m.json", content)
    convert([file], tmp_path / "out", MPtrjOptions(split=TRAIN_ONLY, energy="uncorrected").convert_options())
    found = stored(tmp_path / "out")
    assert len(found) == 60
    for atoms in others:
        same, data = found[atoms.info["mptrj_snapshot_id"], 0]
        np.testing.assert_allclose(same.get_stress(), atoms.get_stress(), atol=1e-12)
        np.testing.assert_allclose(same.positions, atoms.positions)
        assert same.get_potential_energy() == atoms.get_potential_energy()
        assert data["mp_id"] == atoms.info["mptrj_traj_id"]
