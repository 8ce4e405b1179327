"""Frames: where they come from, how many atoms they have, and that a seed decides everything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from escaip_fairchem.bench import frames as module
from escaip_fairchem.bench.frames import (
    draw_atom_counts,
    draw_batches,
    generate_frames,
    join,
    load_pool,
    make_bulk,
    make_slab,
)
from escaip_fairchem.errors import DataError
from escaip_fairchem.nn import find_neighbors


@pytest.fixture
def no_real_frames(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "BESIDE_PROJECT", tmp_path)


def nearest_distance(frame: module.Frame) -> float:
    systems = join([frame]).systems
    found = find_neighbors(
        systems.positions_N3, systems.cell_B33, systems.pbc_B3, systems.structure_N, cutoff=6.0, max_neighbors=1
    )
    offsets = found.shift_NK3.float() @ systems.cell_B33[0]
    return float(
        (systems.positions_N3.unsqueeze(1) - systems.positions_N3[found.sender_NK] - offsets).norm(dim=-1).min()
    )


def test_numbers_of_atoms_are_distributed_as_in_oc20():
    counts = torch.tensor(draw_atom_counts(5000, torch.Generator().manual_seed(1))).double()
    assert counts.min() >= 20
    assert counts.max() <= 220
    assert counts.mean() == pytest.approx(73, abs=2)
    assert counts.std() > 20


@pytest.mark.parametrize("atoms", [20, 21, 44, 45, 73, 220])
def test_a_slab_has_the_atoms_asked_for_and_vacuum_and_tags(atoms: int):
    frame = make_slab(atoms, torch.Generator().manual_seed(atoms))
    structure = frame.structure
    assert len(frame) == len(structure.positions) == len(structure.numbers) == len(frame.tags) == atoms
    assert set(frame.tags.tolist()) == {0, 1, 2}
    assert 1 <= int((frame.tags == 2).sum()) <= 6
    heights = structure.positions[:, 2]
    assert structure.cell[2, 2] - (heights.max() - heights.min()) > 8.0
    assert nearest_distance(frame) > 0.7


def test_generated_frames_follow_the_seed():
    first, again, other = (generate_frames(5, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a.structure.positions, b.structure.positions) for a, b in zip(first, again, strict=True))
    assert [len(frame) for frame in first] != [len(frame) for frame in other]


@pytest.mark.parametrize("atoms", [1, 8, 100, 1000, 1003, 20000])
def test_a_block_of_metal_has_the_atoms_asked_for_at_one_density(atoms: int):
    frame = make_bulk(atoms, seed=0)
    assert len(frame) == atoms
    per_atom = float(torch.linalg.det(frame.structure.cell)) / atoms
    assert per_atom == pytest.approx(module.LATTICE_ANGSTROM**3 / 4, rel=0.1 if atoms >= 100 else 3.0)
    lengths = frame.structure.cell.diagonal()
    assert lengths.max() / lengths.min() <= 2.5
    if atoms <= 1003:
        assert nearest_distance(frame) > 1.8


@pytest.mark.usefixtures("no_real_frames")
def test_without_real_frames_slabs_are_generated_and_the_table_can_say_so():
    pool = load_pool(None, seed=3, count=10)
    assert len(pool.frames) == 10
    assert "10 generated slabs" in pool.source
    assert "seed 3" in pool.source
    assert pool.three_source == "3 generated slabs"
    assert all(20 <= len(frame) <= 220 for frame in pool.frames)


def test_a_named_folder_without_frames_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds no oc20_3frames\.extxyz"):
        load_pool(tmp_path, seed=0)


@pytest.mark.shared
def test_real_frames_are_used_where_they_are(shared: Path):
    pool = load_pool(shared / "data", seed=0)
    assert sum(len(frame) for frame in pool.three) == 199
    assert pool.three_source == "3 OC20 frames"
    assert len(pool.frames) > 3
    assert {0, 1, 2} == set(pool.three[0].tags.tolist())
    assert all(frame.structure.pbc.all() for frame in pool.frames)


@pytest.mark.usefixtures("no_real_frames")
def test_batches_follow_the_seed_and_the_size():
    pool = load_pool(None, seed=0, count=20)
    first, again, other = (draw_batches(pool, size=4, count=16, seed=seed) for seed in (5, 5, 6))
    assert len(first) == 16
    assert all(batch.systems.num_structures == 4 for batch in first)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.systems.positions_N3, b.systems.positions_N3)
        assert torch.equal(a.forces_N3, b.forces_N3)
    assert [batch.atoms for batch in first] != [batch.atoms for batch in other]
    assert all(4 * 20 <= batch.atoms <= 4 * 220 for batch in first)
    assert first[0].systems.positions_N3.dtype == torch.float32
