"""The demonstration set: valid, OC20-like, the same for everyone, and readable by fairchem in both formats."""

from __future__ import annotations

import pickle
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from fairchem_side import lmdb_content, open_split, section

from escaip_fairchem.data import emt_demo
from escaip_fairchem.data.demo_set import DemoOptions, write_demo
from escaip_fairchem.data.schema import FrameTable, Structure
from escaip_fairchem.errors import DataError

SMALL = DemoOptions(train=12, val=4, test=2, seed=1)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "set"
    write_demo(folder, SMALL, workers=1)
    return folder


@pytest.fixture(scope="module")
def structures() -> list[Structure]:
    return emt_demo.make_frames(emt_demo.SlabTask(seed=0, split="train", number=0))


def test_it_depends_on_the_seed_and_not_on_the_workers(demo: Path, tmp_path: Path):
    write_demo(tmp_path / "again", SMALL, workers=2)
    for split in ("train", "val", "test"):
        name = f"aselmdb/{split}/data.0000.aselmdb"
        assert lmdb_content(demo / name) == lmdb_content(tmp_path / "again" / name)
    for name in ("summary.json", "relax_start.extxyz", "relax_emt.extxyz"):
        assert (demo / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    other = emt_demo.make_frames(emt_demo.SlabTask(seed=2, split="test", number=0))
    same = emt_demo.make_frames(emt_demo.SlabTask(seed=2, split="test", number=0))
    np.testing.assert_array_equal(other[0].positions, same[0].positions)


def test_sizes_are_those_asked_for(demo: Path):
    for form in ("lmdb", "aselmdb"):
        sections = section(demo / form / "dataset.yml")
        assert [len(open_split(sections, split)) for split in ("train", "val", "test")] == [12, 4, 2]


def test_both_formats_hold_the_same(demo: Path):
    sections = [section(demo / form / "dataset.yml") for form in ("lmdb", "aselmdb")]
    for split in ("train", "val"):
        for classic, modern in zip(*(open_split(part, split) for part in sections), strict=True):
            for key in ("cell", "forces", "pbc"):
                torch.testing.assert_close(classic[key], modern[key], msg=key)
            for key in ("atomic_numbers", "tags", "fixed"):
                torch.testing.assert_close(classic[key].long(), modern[key].long(), msg=key)
            assert classic.energy == modern.energy
            assert (str(classic.sid), classic.fid) == (modern.sid, modern.fid)
            fractional = (classic.pos - modern.pos) @ torch.linalg.inv(classic.cell[0])  # fairchem wraps one of them
            torch.testing.assert_close(fractional, fractional.round(), atol=1e-5, rtol=0)


def test_the_classic_format_is_that_of_oc20(demo: Path):
    content = lmdb_content(demo / "lmdb" / "train" / "data.0000.lmdb")
    assert pickle.loads(content.pop(b"length")) == 12
    assert sorted(map(int, content)) == list(range(12))
    data = pickle.loads(content[b"0"])
    expected = {"pos", "cell", "pbc", "atomic_numbers", "natoms", "tags", "fixed", "sid", "fid", "y", "force"}
    assert set(data.keys()) == expected
    assert data.cell.shape == (1, 3, 3)
    assert data.pos.dtype == data.force.dtype == torch.float32
    assert isinstance(data.sid, int)
    assert isinstance(data.y, float)


def test_metadata_counts_the_atoms(demo: Path):
    for form in ("lmdb", "aselmdb"):
        dataset = open_split(section(demo / form / "dataset.yml"), "train")
        stored = dataset.get_metadata("natoms", list(range(12)))[0]
        assert [int(count) for count in stored] == [data.natoms for data in dataset]


def test_frames_are_adsorbates_on_slabs(structures: list[Structure]):
    assert len(structures) == emt_demo.FRAMES_PER_SYSTEM * emt_demo.SYSTEMS_PER_SLAB
    assert len({(item.sid, item.fid) for item in structures}) == len(structures)
    for item in structures:
        assert set(item.tags) == {0, 1, 2}
        np.testing.assert_array_equal(item.fixed, item.tags == 0)
        heights = [item.positions[item.tags == tag, 2] for tag in (0, 1, 2)]
        assert heights[0].max() < heights[1].mean() < heights[2].mean()
        assert item.pbc.all()
        assert 15 <= len(item) <= 60


def test_fixed_atoms_never_move_and_feel_forces(structures: list[Structure]):
    systems: dict[str, list[Structure]] = {}
    for item in structures:
        systems.setdefault(item.sid, []).append(item)
    for frames in systems.values():
        held = [frame.positions[frame.fixed] for frame in frames]
        assert all((positions == held[0]).all() for positions in held)
        assert np.abs(frames[3].forces[frames[3].fixed]).max() > 1e-3


def test_labels_are_those_of_the_potential(structures: list[Structure]):
    """Forces are EMT's, and energies of one system differ by what EMT's do."""
    offsets: dict[str, set[float]] = {}
    for item in structures[:12]:
        atoms = item.to_atoms()
        atoms.calc = EMT()
        np.testing.assert_allclose(atoms.get_forces(apply_constraint=False), item.forces, atol=1e-9)
        offsets.setdefault(item.sid, set()).add(round(atoms.get_potential_energy() - item.energy, 8))
    assert all(len(values) == 1 for values in offsets.values())


def test_numbers_are_like_those_of_oc20(structures: list[Structure]):
    """Targets of the size of adsorption energies; forces neither tiny nor absurd."""
    table = FrameTable.of(structures)
    components = 3 * table.free_atoms.sum()
    assert 0.4 < np.sqrt(table.force_squares.sum() / components) < 2.0
    assert table.force_largest.max() < 2 * emt_demo.LARGEST_FORCE
    assert abs(table.energy.mean()) < 4
    assert 0.3 < table.energy.std() < 4


def test_held_out_pairs_occur_in_validation_only():
    def pairs(split: str) -> set[tuple[str, str]]:
        found = set()
        for number in range(8):
            task = emt_demo.SlabTask(seed=0, split=split, number=number)
            for metal in emt_demo.METALS:
                found |= {(metal, name) for name in emt_demo._choose_adsorbates(task, metal, task.generator())}
        return found

    assert not pairs("train") & emt_demo.HELD_OUT
    assert pairs("val") >= emt_demo.HELD_OUT


def test_the_start_of_a_relaxation_is_unseen_and_relaxes(demo: Path):
    start, relaxed = (ase.io.read(demo / name) for name in ("relax_start.extxyz", "relax_emt.extxyz"))
    assert start.symbols[start.get_tags() == 2].get_chemical_formula() == "HN"
    assert "NH" not in emt_demo.ADSORBATES
    np.testing.assert_array_equal(start.constraints[0].index, np.flatnonzero(start.get_tags() == 0))
    assert relaxed.get_potential_energy() < start.get_potential_energy() - 0.05
    free = relaxed.get_tags() > 0
    assert np.linalg.norm(relaxed.get_forces(apply_constraint=False)[free], axis=1).max() < 0.02
    assert relaxed.get_distance(-1, -2, mic=True) < 2.2
    assert (relaxed.positions[-2:, 2] - relaxed.positions[:-2, 2].max() < 3).all()
    assert (relaxed.positions[-2:, 2] - relaxed.positions[:-2, 2].max() > 0).all()
    adsorption = relaxed.get_potential_energy() - relaxed.info["reference_energy"]
    assert -3 < adsorption < 1


def test_a_finished_set_is_kept_and_another_refused(demo: Path):
    stamp = (demo / "summary.json").stat().st_mtime_ns
    write_demo(demo, SMALL)
    assert (demo / "summary.json").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="train: 12 there, 13 now"):
        write_demo(demo, DemoOptions(train=13, val=4, test=2, seed=1))


def test_what_an_interrupted_run_left_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = DemoOptions(train=1, val=0, test=0, formats=("aselmdb",))
    monkeypatch.setattr(
        "escaip_fairchem.data.demo_set.publish", lambda claimed: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        write_demo(tmp_path / "set", options)
    monkeypatch.undo()
    write_demo(tmp_path / "set", options)
    assert not (tmp_path / "set" / ".partial").exists()
    assert len(open_split(section(tmp_path / "set" / "aselmdb" / "dataset.yml"), "train")) == 1


def test_a_set_without_training_frames_is_refused():
    with pytest.raises(DataError, match="at least one training frame"):
        DemoOptions(train=0)
