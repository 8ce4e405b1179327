"""Every reason for leaving a structure out, said with file, position and numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from fairchem_side import open_split, section
from structure_cases import labelled, molecule, slab

from escaip_fairchem.data import staging
from escaip_fairchem.data.checks import Limits, Reason, find_problem
from escaip_fairchem.data.convert import convert
from escaip_fairchem.data.distances import closest_pair
from escaip_fairchem.data.labels import LabelError, LabelOptions, to_structure
from escaip_fairchem.data.options import ConvertOptions
from escaip_fairchem.data.splits import SplitOptions
from escaip_fairchem.errors import DataError

ALL = SplitOptions(parts=(1.0,), shuffle=False)


def problem(
    atoms: Atoms, limits: Limits | None = None, labels: LabelOptions | None = None
) -> tuple[Reason, str] | None:
    try:
        found = find_problem(to_structure(atoms, "file", 0, labels or LabelOptions()), limits or Limits())
    except LabelError as error:
        found = error.problem
    return None if found is None else (found.reason, found.detail)


def without(label: str) -> Atoms:
    atoms = slab(0)
    del atoms.calc.results[label]
    return atoms


def with_result(**results: object) -> Atoms:
    atoms = slab(0)
    atoms.calc.results.update(results)
    return atoms


def moved(atom: int, position: object) -> Atoms:
    atoms = slab(0)
    atoms.positions[atom] = position
    return labelled(atoms)


def test_a_good_structure_has_no_problem():
    assert problem(slab(0)) is None
    assert problem(molecule(0)) is None
    assert problem(labelled(Atoms("He"))) is None  # an isolated atom


@pytest.mark.parametrize(
    ("atoms", "reason", "words"),
    [
        (Atoms(), Reason.EMPTY, "empty"),
        (labelled(Atoms("XO", [[0, 0, 0], [0, 0, 2]])), Reason.UNKNOWN_ELEMENT, "atom 0 has atomic number 0"),
        (moved(5, [np.nan, 0, 0]), Reason.NOT_FINITE, "positions"),
        (with_result(energy=np.inf), Reason.NOT_FINITE, "energy"),
        (with_result(forces=np.full((6, 3), np.nan)), Reason.NOT_FINITE, "forces"),
        (with_result(stress=np.array([np.nan] * 6)), Reason.NOT_FINITE, "stress"),
        (labelled(Atoms("H", cell=[4, 4, 0], pbc=True)), Reason.BAD_CELL, "a, b, c"),
        (labelled(Atoms("H", cell=[[4, 0, 0], [8, 0, 0], [0, 0, 4]], pbc=True)), Reason.BAD_CELL, "dependent"),
        (without("energy"), Reason.MISSING_ENERGY, "no energy"),
        (without("forces"), Reason.MISSING_FORCES, "no forces"),
        (with_result(forces=np.zeros((5, 3))), Reason.MALFORMED, "(5, 3) instead of (6, 3)"),
        (with_result(energy=[1.0, 2.0]), Reason.MALFORMED, "2 values"),
        (with_result(energy="high"), Reason.MALFORMED, "'high'"),
        (with_result(stress=np.arange(9.0)), Reason.MALFORMED, "not symmetric"),
        (with_result(stress=np.zeros(5)), Reason.MALFORMED, "(5,)"),
        (with_result(forces=np.eye(6, 3) * 60), Reason.LARGE_FORCE, "60 eV/Å on atom 0 (Cu), above 50"),
        (labelled(Atoms("HO", [[0, 0, 0], [0, 0, 0.3]])), Reason.OVERLAP, "0 (H) and 1 (O) are 0.3 Å apart"),
        (
            labelled(Atoms("HO", [[0, 0, 0.1], [0, 0, 9.9]], cell=[10] * 3, pbc=True)),
            Reason.OVERLAP,
            "are 0.2 Å apart, closer than 0.5 Å",
        ),
        (labelled(Atoms("H", cell=[5, 5, 0.4], pbc=True)), Reason.OVERLAP, "atom 0 (H) and its own image are 0.4 Å"),
    ],
)
def test_each_reason(atoms: Atoms, reason: Reason, words: str):
    found = problem(atoms)
    assert found is not None
    assert found[0] is reason
    assert words in found[1]


def test_the_same_positions_overlap_only_where_there_is_periodicity():
    assert problem(labelled(Atoms("HO", [[0, 0, 0.1], [0, 0, 9.9]], cell=[10] * 3, pbc=[1, 1, 0]))) is None


def test_limits_are_the_users():
    large = with_result(forces=np.eye(6, 3) * 60)
    assert problem(large, Limits(max_force=61)) is None
    close = labelled(Atoms("HO", [[0, 0, 0], [0, 0, 0.3]]))
    assert problem(close, Limits(min_distance=0.2)) is None
    assert problem(close, Limits(min_distance=0)) is None
    assert problem(without("forces"), Limits(require=("energy",))) is None
    assert problem(without("stress"), Limits(require=("energy", "stress")))[0] is Reason.MISSING_STRESS


def test_limits_that_make_no_sense_are_refused():
    with pytest.raises(DataError, match=r"cannot require 'force' \(did you mean 'forces'\?\)"):
        Limits(require=("force",))
    with pytest.raises(DataError, match="--max-force above 0"):
        Limits(max_force=0)


def test_closest_pair_agrees_with_all_images_of_random_cells():
    random = np.random.default_rng(1)
    images = np.stack(np.meshgrid(*[np.arange(-9, 10)] * 3), axis=-1).reshape(-1, 3)
    hits = 0
    for _ in range(60):
        count = int(random.integers(1, 6))
        cell, pbc = random.normal(0, 2, (3, 3)), random.random(3) < 0.6
        if 1 / np.linalg.norm(np.linalg.inv(cell), axis=0).max() < 0.25:
            continue
        atoms = Atoms(f"H{count}", random.random((count, 3)) @ cell, cell=cell, pbc=pbc)
        below = float(random.choice([0.3, 0.6, 1.5]))
        shifts = images[(images[:, ~pbc] == 0).all(axis=1)] @ cell
        vectors = atoms.positions[:, None, None] - atoms.positions[None, :, None] + shifts
        distances = np.linalg.norm(vectors, axis=-1)
        closest = distances[distances > 1e-9].min(initial=np.inf)
        pair = closest_pair(to_structure(atoms, "f", 0, LabelOptions()), below)
        assert (pair is None) == (closest >= below)
        if pair is not None:
            hits += 1
            assert pair.distance == pytest.approx(closest, abs=1e-9)
    assert hits > 10


DEPENDENT_CELLS = [
    ([[4, 0, 0], [8, 0, 0], [0, 0, 4]], [False, False, False]),
    ([[4, 0, 0], [8, 0, 0], [0, 0, 0]], [False, False, False]),
    ([[4, 0, 0], [8, 0, 0], [4, 0, 4]], [True, False, False]),
    ([[4, 0, 0], [0, 4, 0], [4, 4, 0]], [True, True, False]),
]


@pytest.mark.parametrize(("cell", "pbc"), DEPENDENT_CELLS)
def test_vectors_without_periodicity_may_be_anything(tmp_path: Path, cell: list, pbc: list):
    """Such cells cannot be inverted, which fairchem does with the cell of every structure that it reads."""
    close = labelled(Atoms("HO", [[0.1, 0, 0], [3.9, 0.1, 0]], cell=cell, pbc=pbc))
    found = problem(close)
    assert (found is not None and found[0] is Reason.OVERLAP) == pbc[0]
    far = labelled(Atoms("HO", [[0.1, 0, 0], [2.0, 0.1, 0]], cell=cell, pbc=pbc))
    assert problem(far) is None
    write(tmp_path / "in.traj", far)
    convert([str(tmp_path / "in.traj")], tmp_path / "out", ConvertOptions(split=ALL))
    data = open_split(section(tmp_path / "out" / "dataset.yml"), "train")[0]
    np.testing.assert_allclose(data.pos.numpy(), far.positions, atol=1e-6)
    np.testing.assert_allclose(data.cell.numpy()[0][pbc], far.cell.array[pbc])


def test_an_unexpected_error_costs_one_structure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original = staging.find_problem

    def stumbling(structure, limits):
        if structure.info["converted_from"].endswith(":1"):
            raise ZeroDivisionError("one structure in a million")
        return original(structure, limits)

    monkeypatch.setattr(staging, "find_problem", stumbling)
    write(tmp_path / "in.traj", [slab(k) for k in range(3)])
    summary = convert([str(tmp_path / "in.traj")], tmp_path / "out", ConvertOptions(split=ALL))
    assert summary["usable"] == 2
    (skip,) = summary["skipped"]
    assert (Path(skip["file"]).name, skip["position"], skip["reason"]) == ("in.traj", 1, "unexpected error")
    assert skip["detail"] == "ZeroDivisionError: one structure in a million"


def test_large_structures_are_searched_as_well():
    grid = 3.0 * np.stack(np.meshgrid(*[np.arange(9)] * 3), axis=-1).reshape(-1, 3)
    atoms = labelled(Atoms("H729", grid, cell=[27] * 3, pbc=True))
    assert problem(atoms) is None
    atoms.positions[700] = atoms.positions[3] + [0, 0, -0.2]
    assert problem(labelled(atoms)) == (Reason.OVERLAP, "atoms 3 (H) and 700 (H) are 0.2 Å apart, closer than 0.5 Å")


def convert_text(tmp_path: Path, text: str, **options: object) -> dict:
    (tmp_path / "in.extxyz").write_text(text)
    return convert([str(tmp_path / "in.extxyz")], tmp_path / "out", ConvertOptions(split=ALL, **options))


FRAME = '1\nProperties=species:S:1:pos:R:3:forces:R:3 energy={} pbc="F F F"\n{} 0 0 0 0.1 0 0\n'


def test_a_broken_frame_costs_no_other(tmp_path: Path):
    text = FRAME.format(-1, "H") + FRAME.format(-2, "H").replace("0.1", "oops") + FRAME.format(-3, "H")
    summary = convert_text(tmp_path, text)
    assert summary["usable"] == 2
    (skip,) = summary["skipped"]
    assert (skip["position"], skip["reason"]) == (1, "unreadable frame")
    assert "oops" in skip["detail"]


@pytest.mark.parametrize(
    ("rest", "words"),
    [("what is this\n", "'what is this' stands where a number"), ("2\nenergy=1\nH 0 0 0\n", "ends after 1 of 2 atoms")],
)
def test_a_file_that_cannot_be_followed_is_reported_from_there_on(tmp_path: Path, rest: str, words: str):
    summary = convert_text(tmp_path, FRAME.format(-1, "H") * 2 + rest)
    assert summary["usable"] == 2
    (skip,) = summary["skipped"]
    assert (skip["position"], skip["reason"]) == (2, "unreadable frame")
    assert words in skip["detail"]
    assert "nothing after it was read" in skip["detail"]


def test_unreadable_files_of_every_kind_are_reported(tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "good.extxyz", slab(0))
    for name in ("a.traj", "b.db", "c.json", "d.npz", "e.xyz", "OUTCAR", "f.extxyz.gz", "notes.md"):
        (folder / name).write_bytes(b"no such thing\n")
    (folder / "empty.extxyz").write_bytes(b"")
    (folder / ".hidden").write_text("ignored")
    summary = convert([str(folder)], tmp_path / "out", ConvertOptions(split=ALL))
    assert summary["usable"] == 1
    unreadable = sorted(Path(skip["file"]).name for skip in summary["skipped"])
    assert unreadable == [
        "OUTCAR",
        "a.traj",
        "b.db",
        "c.json",
        "d.npz",
        "e.xyz",
        "empty.extxyz",
        "f.extxyz.gz",
        "notes.md",
    ]
    assert {skip["reason"] for skip in summary["skipped"]} == {"unreadable file"}


def test_labels_under_other_names_are_hinted_at_and_taken(tmp_path: Path):
    text = FRAME.replace("energy=", "REF_energy=").replace("forces:R", "dft_forces:R").format(-1, "H")
    with pytest.raises(DataError, match=r"no energy; there is REF_energy \(--energy-key\)"):
        convert_text(tmp_path, text)
    summary = convert_text(tmp_path, text, labels=LabelOptions(energy_key="REF_energy", forces_key="dft_forces"))
    assert summary["usable"] == 1
    assert summary["splits"]["train"]["force_largest_eV_per_A"] == pytest.approx(0.1)


def test_everything_skipped_is_counted_listed_and_in_the_report(tmp_path: Path):
    frames = [slab(0), without("energy"), moved(5, [0.05, 0, 0.2]), with_result(forces=np.eye(6, 3) * 60), slab(4)]
    write(tmp_path / "in.traj", frames)
    summary = convert([str(tmp_path / "in.traj")], tmp_path / "out", ConvertOptions(split=ALL))
    assert summary["read"] == summary["usable"] + len(summary["skipped"]) == 5
    assert summary["skipped_by_reason"] == {"force above the limit": 1, "missing energy": 1, "overlapping atoms": 1}
    report = (tmp_path / "out" / "report.txt").read_text()
    for position, reason in ((1, "missing energy"), (2, "overlapping atoms"), (3, "force above the limit")):
        assert f"in.traj:{position}: {reason}" in report


def test_a_trajectory_frame_without_labels_is_missing_energy_not_an_error(tmp_path: Path):
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.7]])
    write(tmp_path / "in.traj", [atoms, labelled(atoms.copy())])
    summary = convert([str(tmp_path / "in.traj")], tmp_path / "out", ConvertOptions(split=ALL))
    assert [skip["reason"] for skip in summary["skipped"]] == ["missing energy"]


def test_structures_without_forces_are_accepted_when_only_energies_are_required(tmp_path: Path):
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.7]])
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    write(tmp_path / "in.traj", atoms)
    with pytest.raises(DataError, match="--require energy accepts structures without forces"):
        convert([str(tmp_path / "in.traj")], tmp_path / "out", ConvertOptions(split=ALL))
    summary = convert(
        [str(tmp_path / "in.traj")], tmp_path / "out", ConvertOptions(split=ALL, limits=Limits(require=("energy",)))
    )
    assert summary["usable"] == 1
    assert "r_forces: false" in (tmp_path / "out" / "dataset.yml").read_text()


def test_a_label_that_only_some_structures_have_is_left_out_with_a_note(tmp_path: Path):
    write(tmp_path / "in.traj", [slab(0), without("stress"), slab(2)])
    summary = convert([str(tmp_path / "in.traj")], tmp_path / "out", ConvertOptions(split=ALL))
    assert "r_stress: false" in (tmp_path / "out" / "dataset.yml").read_text()
    assert any(note.startswith("2 of 3 structures have stress") for note in summary["notes"])
    assert not any(name.startswith("stress") for name in summary["normalizers"])


@pytest.mark.shared
def test_the_blown_up_step_of_a_relaxation_is_skipped(tmp_path: Path, shared: Path):
    path = shared / "data" / "vasp_C8Nb16O8_relax_49.extxyz"
    summary = convert([str(path)], tmp_path / "out", ConvertOptions())
    (skip,) = summary["skipped"]
    assert (skip["position"], skip["reason"]) == (1, "overlapping atoms")
    assert "0.109 Å" in skip["detail"]
    summary = convert([str(path)], tmp_path / "far", ConvertOptions(limits=Limits(min_distance=0)))
    assert summary["skipped"][0]["reason"] == "force above the limit"
    assert "2.885e+04 eV/Å" in summary["skipped"][0]["detail"]


@pytest.mark.shared
def test_energy_only_dimers_are_reported_unless_energies_suffice(tmp_path: Path, shared: Path):
    path = str(shared / "data" / "ethanol_test_dimers.extxyz")
    with pytest.raises(DataError, match=r"missing forces +429"):
        convert([path], tmp_path / "out", ConvertOptions())
    summary = convert([path], tmp_path / "out", ConvertOptions(limits=Limits(require=("energy",))))
    assert summary["usable"] == 426
    assert summary["skipped_by_reason"] == {"overlapping atoms": 3}


@pytest.mark.shared
def test_isolated_atoms_are_kept(tmp_path: Path, shared: Path):
    paths = [str(shared / "data" / f"isolated_atoms_{name}.extxyz") for name in ("3bpa", "acac")]
    summary = convert(paths, tmp_path / "out", ConvertOptions(split=ALL))
    assert (summary["usable"], summary["skipped"]) == (7, [])


@pytest.mark.shared
def test_published_formats_that_ase_cannot_read_are_reported(tmp_path: Path, shared: Path):
    raw = shared / "data" / "raw_formats"
    summary = convert([str(raw)], tmp_path / "out", ConvertOptions(limits=Limits(max_force=1000)))
    assert summary["skipped_by_reason"] == {"unreadable file": 6}
    assert summary["splits"]["train"]["structures"] > 10  # oc20's trajectory and the aspirin file
