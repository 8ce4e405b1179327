"""The neighbour search against trying every image, in float64, on cells of every kind."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st
from neighbor_cases import assert_nearest, batch_of, edges_of, reference, search

from escaip_fairchem.nn.neighbors import Neighborhoods, find_neighbors, search_radii

SHAPES = ["plain", "left-handed", "flat", "skewed", "primitive"]


def random_structure(rng: np.random.Generator, shape: str, pbc: tuple[bool, ...]) -> Atoms:
    """Draw a random triclinic structure whose atoms are up to two cells away from the cell."""
    while True:
        cell = rng.normal(size=(3, 3)) * rng.uniform(2, 5)
        if (np.linalg.det(cell) < 0) != (shape == "left-handed"):
            cell[2] *= -1
        if shape == "flat":
            cell[2] *= 0.2
        if shape == "skewed":
            cell[1] += cell[0] * rng.integers(-3, 4)
            cell[2] += cell[0] * rng.integers(-2, 3)
        if not any(pbc) or np.linalg.svd(cell[list(pbc)])[1].min() > 0.7:
            break
    count = 1 if shape == "primitive" else int(rng.integers(2, 7))
    positions = rng.uniform(-2, 3, size=(count, 3)) @ cell
    cell[[not periodic for periodic in pbc]] *= rng.integers(0, 2)  # open axes: any vector or none
    return Atoms(f"H{count}", positions=positions, cell=cell, pbc=pbc)


@pytest.mark.parametrize("pbc", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("shape", SHAPES)
def test_nearest_neighbors_of_random_cells(shape: str, pbc: tuple[bool, ...]) -> None:
    rng = np.random.default_rng([SHAPES.index(shape), *map(int, pbc)])
    structures = [random_structure(rng, shape, pbc) for _ in range(4)]
    for cutoff, max_neighbors in [(3.0, 1000), (5.5, 8), (7.0, 20)]:
        found = search(structures, cutoff=cutoff, max_neighbors=max_neighbors)
        for atoms, rows in zip(structures, found, strict=True):
            expected = reference(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
            for row, neighbors in zip(rows, expected, strict=True):
                assert_nearest(row, neighbors, max_neighbors)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.lists(st.tuples(st.sampled_from(SHAPES), st.tuples(*[st.booleans()] * 3)), min_size=1, max_size=4),
    cutoff=st.floats(1.0, 6.0),
    max_neighbors=st.integers(1, 60),
)
def test_any_mixture_of_structures(seed: int, kinds: list, cutoff: float, max_neighbors: int) -> None:
    rng = np.random.default_rng(seed)
    structures = [random_structure(rng, shape, pbc) for shape, pbc in kinds]
    found = search(structures, cutoff=cutoff, max_neighbors=max_neighbors)
    for atoms, rows in zip(structures, found, strict=True):
        expected = reference(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
        for row, neighbors in zip(rows, expected, strict=True):
            assert_nearest(row, neighbors, max_neighbors)


def test_atoms_that_need_every_search_radius() -> None:
    """A dense cluster, a chain and a lone pair in one structure: small, middle and full radius."""
    rng = np.random.default_rng(3)
    cluster = rng.uniform(0, 4, size=(30, 3))
    chain = np.arange(12)[:, None] * np.array([0.0, 1.7, 0.0]) + np.array([15.0, 0.0, 0.0])
    pair = np.array([[0.0, 0.0, 40.0], [0.0, 0.0, 51.9]])
    atoms = Atoms("H44", positions=np.concatenate([cluster, chain, pair]))
    assert len(search_radii(12.0, 8)) >= 3
    rows = search([atoms], cutoff=12.0, max_neighbors=8)[0]
    for row, neighbors in zip(rows, reference(atoms.positions, np.zeros((3, 3)), atoms.pbc, 12.0), strict=True):
        assert_nearest(row, neighbors, 8)


def test_search_in_bundles_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = bulk("Cu", cubic=True).repeat(3)
    atoms.rattle(0.2, seed=1)
    whole = find_neighbors(*batch_of([atoms]), cutoff=6.0, max_neighbors=20)
    for budget in (1, 1000):
        monkeypatch.setattr("escaip_fairchem.nn.neighbors_pairs.PAIR_BUDGET", budget)
        assert_equal(find_neighbors(*batch_of([atoms]), cutoff=6.0, max_neighbors=20), whole)


def assert_equal(left: Neighborhoods, right: Neighborhoods) -> None:
    """Check that two results agree bit for bit."""
    assert torch.equal(left.sender_NK, right.sender_NK)
    assert torch.equal(left.shift_NK3, right.shift_NK3)
    assert torch.equal(left.mask_NK, right.mask_NK)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_is_the_concatenation_of_its_structures(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(5)
    structures = [bulk("Po", "sc", a=2.5), bulk("Si", cubic=True).repeat(2), Atoms("He")]
    structures += [random_structure(rng, shape, (True, bool(rng.integers(2)), True)) for shape in SHAPES]
    structures += [Atoms("H2", positions=[[0, 0, 0], [0, 0, 100]]), bulk("Cu").repeat(4)]
    together = search(structures, dtype, cutoff=6.0, max_neighbors=25)
    assert together == [search([atoms], dtype, cutoff=6.0, max_neighbors=25)[0] for atoms in structures]


def test_isolated_atoms_and_far_dimers_have_empty_slots() -> None:
    structures = [Atoms("He"), Atoms("H2", positions=[[0, 0, 0], [0, 0, 6.1]])]
    found = find_neighbors(*batch_of(structures), cutoff=6.0, max_neighbors=20)
    assert edges_of(found) == [[], [], []]
    assert found.mask_NK.shape == (3, 1)


def test_single_atom_sees_its_own_images_but_not_itself() -> None:
    atoms = Atoms("Po", positions=[[7.0, -8.0, 9.0]], cell=[2, 2, 2], pbc=True)
    rows = search([atoms], cutoff=2.1, max_neighbors=20)[0]
    steps = [(0, *step) for step in itertools.product([-1, 0, 1], repeat=3) if sum(map(abs, step)) == 1]
    assert set(rows[0]) == set(steps)


def test_zero_cell_means_molecule_and_open_axes_have_no_images() -> None:
    molecule = Atoms("H2", positions=[[0, 0, 0], [0, 0, 1]], cell=np.zeros((3, 3)))
    layer = Atoms("H", positions=[[0, 0, 0]], cell=[[2, 0, 0], [0, 2, 0], [0, 0, 0]], pbc=[True, True, False])
    wire = Atoms("H", positions=[[0, 0, 0]], cell=[[1, 1, 1], [0, 2, 0], [0, 0, 0]], pbc=[False, True, False])
    found = search([molecule, layer, wire], cutoff=2.5, max_neighbors=20)
    assert found[0] == [[(1, 0, 0, 0)], [(0, 0, 0, 0)]]
    assert set(found[1][0]) == {(0, 1, 0, 0), (0, -1, 0, 0), (0, 0, 1, 0), (0, 0, -1, 0)}
    assert set(found[2][0]) == {(0, 0, 1, 0), (0, 0, -1, 0)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbor_exactly_at_the_cutoff_counts_wherever_the_crystal_lies(dtype: torch.dtype) -> None:
    """The second images of a simple cubic crystal are at 6 Å up to rounding."""
    for shift in (0.0, 1e-3, 0.1, 7.77):
        atoms = bulk("Po", "sc", a=3.0).repeat(3)
        atoms.positions += shift * np.array([1.0, 0.3, -0.7])
        rows = search([atoms], dtype, cutoff=6.0, max_neighbors=100)[0]
        assert {len(row) for row in rows} == {6 + 12 + 8 + 6}
    assert {len(row) for row in search([atoms], dtype, cutoff=5.9999, max_neighbors=100)[0]} == {26}


def test_vectors_point_where_the_docstring_says() -> None:
    rng = np.random.default_rng(8)
    atoms = random_structure(rng, "left-handed", (True, True, True))
    positions, cell, pbc, structure = batch_of([atoms])
    found = find_neighbors(positions, cell, pbc, structure, cutoff=5.0, max_neighbors=30)
    vectors = positions.unsqueeze(1) - positions[found.sender_NK] - found.shift_NK3.double() @ cell[0]
    distances = vectors.norm(dim=-1)[found.mask_NK]
    expected = [
        d for row in reference(atoms.positions, atoms.cell.array, atoms.pbc, 5.0) for d in sorted(row.values())[:30]
    ]
    assert distances.tolist() == pytest.approx(expected, abs=1e-9)


def test_positions_and_cells_are_left_alone_and_need_no_gradient() -> None:
    positions, cell, pbc, structure = batch_of([bulk("Cu", cubic=True)], torch.float32)
    before = positions.clone(), cell.clone()
    found = find_neighbors(
        positions.requires_grad_(), cell.requires_grad_(), pbc, structure, cutoff=4.0, max_neighbors=5
    )
    assert torch.equal(positions, before[0])
    assert torch.equal(cell, before[1])
    assert not found.sender_NK.requires_grad


def test_batches_without_atoms_or_with_unmentioned_structures() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    cells, open_axes = torch.zeros(2, 3, 3), torch.zeros(2, 3, dtype=torch.bool)
    empty = find_neighbors(torch.zeros(0, 3), cells, open_axes, nothing, cutoff=5.0, max_neighbors=4)
    assert empty.mask_NK.shape == (0, 1)
    lone = find_neighbors(torch.zeros(1, 3), cells, open_axes, nothing.new_ones(1), cutoff=5.0, max_neighbors=4)
    assert edges_of(lone) == [[]]


def test_atoms_extremely_far_apart() -> None:
    positions = torch.tensor([[0.0, 0, 0], [1e9, 0, 0], [1e9, 1.5, 0], [-3e8, 1e10, 1e9]], dtype=torch.float64)
    found = find_neighbors(
        positions,
        torch.zeros(1, 3, 3, dtype=torch.float64),
        torch.zeros(1, 3, dtype=torch.bool),
        torch.zeros(4, dtype=torch.int64),
        cutoff=5.0,
        max_neighbors=3,
    )
    assert edges_of(found) == [[], [(2, 0, 0, 0)], [(1, 0, 0, 0)], []]
