"""Which of several equally far neighbours stay depends on the structure alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bcc110, bulk, fcc100, fcc111, molecule
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from neighbor_cases import Edge, assert_nearest, mapped, reference, search

from escaip_fairchem.nn.neighbors_ties import TIE_DIRECTION, TIE_TOLERANCE, nearest

CRYSTALS = {
    "fcc": lambda a: bulk("Cu", "fcc", a=a),
    "fcc cubic": lambda a: bulk("Cu", "fcc", a=a, cubic=True),
    "bcc": lambda a: bulk("Fe", "bcc", a=0.8 * a),
    "diamond": lambda a: bulk("Si", "diamond", a=1.5 * a),
    "diamond cubic": lambda a: bulk("Si", "diamond", a=1.5 * a, cubic=True),
    "rock salt": lambda a: bulk("NaCl", "rocksalt", a=1.5 * a, cubic=True),
    "hcp": lambda a: bulk("Mg", "hcp", a=0.9 * a),
    "simple cubic": lambda a: bulk("Po", "sc", a=0.9 * a),
}
SLABS = {
    "fcc(111)": lambda a, n, layers: fcc111("Cu", (n, n, layers), a=a, vacuum=6.0),
    "fcc(100)": lambda a, n, layers: fcc100("Cu", (n, n, layers), a=a, vacuum=6.0),
    "bcc(110)": lambda a, n, layers: bcc110("Fe", (n, n, layers), a=0.8 * a, vacuum=6.0),
}


@st.composite
def symmetric_structures(draw: st.DrawFn) -> Atoms:
    """Draw perfect bulk crystals and slabs, from one atom to some eighty."""
    constant = draw(st.floats(3.2, 4.4))
    if draw(st.booleans()):
        size = draw(st.tuples(*[st.integers(1, 2)] * 3))
        return CRYSTALS[draw(st.sampled_from(sorted(CRYSTALS)))](constant).repeat(size)
    slab = SLABS[draw(st.sampled_from(sorted(SLABS)))](constant, draw(st.integers(1, 3)), draw(st.integers(2, 5)))
    slab.pbc = draw(st.sampled_from([(True, True, True), (True, True, False)]))
    return slab


def no_shell_at(atoms: Atoms, cutoff: float) -> bool:
    """Tell whether all distances differ from the cutoff by more than the rounding of large float32 coordinates."""
    within, around = (
        sum(map(len, reference(atoms.positions, atoms.cell.array, atoms.pbc, cutoff + margin)))
        for margin in (-1e-4, 1e-4)
    )
    return within == around


def sets(rows: list[list[Edge]]) -> list[set[Edge]]:
    """Forget the order of the slots."""
    return [set(row) for row in rows]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    atoms=symmetric_structures(),
    max_neighbors=st.integers(1, 60),
    cutoff=st.floats(3.0, 8.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_same_edges_however_a_symmetric_structure_is_given(
    atoms: Atoms, max_neighbors: int, cutoff: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    limits = {"cutoff": cutoff, "max_neighbors": max_neighbors}
    assume(no_shell_at(atoms, cutoff))
    alone = sets(search([atoms], **limits)[0])

    shifted = atoms.copy()
    direction = rng.normal(size=3)
    shifted.positions += 1e-3 * direction / np.linalg.norm(direction)
    steps = rng.integers(-3, 4, size=(len(atoms), 3)) * atoms.pbc
    wrapped = atoms.copy()
    wrapped.positions += steps @ atoms.cell.array
    order = rng.permutation(len(atoms))
    everything = wrapped[order]
    everything.positions += shifted.positions[0] - atoms.positions[0]
    unmoved, same_order = np.zeros_like(steps), np.arange(len(atoms))
    companions = [bulk("Cu"), molecule("CH3CH2OH"), fcc111("Al", (2, 2, 3), vacuum=8.0)]

    for dtype in (torch.float64, torch.float32):
        assert sets(search([atoms], dtype, **limits)[0]) == alone
        batch = [companions[0], atoms, *companions[1:], atoms]
        found = search(batch, dtype, **limits)
        assert sets(found[1]) == sets(found[-1]) == alone
        assert sets(search([shifted], dtype, **limits)[0]) == alone
        assert mapped(search([wrapped], dtype, **limits)[0], same_order, steps) == alone
        assert mapped(search([atoms[order]], dtype, **limits)[0], order, unmoved) == alone
        assert mapped(search([everything], dtype, **limits)[0], order, steps) == alone


@settings(max_examples=15, deadline=None, derandomize=True)
@given(atoms=symmetric_structures(), max_neighbors=st.integers(1, 60), cutoff=st.floats(3.0, 8.0))
def test_ties_do_not_displace_nearer_neighbors(atoms: Atoms, max_neighbors: int, cutoff: float) -> None:
    expected = reference(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    rows = search([atoms], cutoff=cutoff, max_neighbors=max_neighbors)[0]
    for row, neighbors in zip(rows, expected, strict=True):
        assert_nearest(row, neighbors, max_neighbors)


@pytest.mark.parametrize("max_neighbors", [1, 5, 12, 20])
def test_equivalent_atoms_keep_the_same_directions(max_neighbors: int) -> None:
    """Every atom of a perfect crystal of one kind of site has the same neighbourhood."""
    atoms = bulk("Cu", cubic=True).repeat(2)
    for row in search([atoms], torch.float32, cutoff=6.0, max_neighbors=max_neighbors):
        vectors = [
            {tuple(np.round(atoms.positions[j] + s @ atoms.cell.array - origin, 3) + 0.0) for j, *s in map(list, edges)}
            for origin, edges in zip(atoms.positions, row, strict=True)
        ]
        assert all(vector == vectors[0] for vector in vectors)


def choose(distances: list[float], projections: list[float], count: int, complete: float = torch.inf) -> list[int]:
    """Choose among the neighbours of one receiver."""
    chosen = nearest(
        torch.zeros(len(distances), dtype=torch.int64),
        torch.tensor(distances, dtype=torch.float64),
        torch.tensor(projections, dtype=torch.float64),
        max_neighbors=count,
        complete=complete,
    )
    return chosen.tolist()


def test_the_rule_on_numbers() -> None:
    tie, gap = 0.9 * TIE_TOLERANCE, 1.1 * TIE_TOLERANCE
    assert choose([2.0, 1.0, 3.0], [0.0, 0.0, 0.0], 2) == [1, 0]
    assert choose([1.0, 2.0, 2.0 + tie, 2.0 - tie], [9.0, 2.0, 1.0, 3.0], 3) == [0, 1, 2]
    assert choose([1.0, 2.0, 2.0 + gap], [9.0, 2.0, 1.0], 2) == [0, 1]
    assert choose([1.0, 2.0], [0.0, 0.0], 5) == [0, 1]
    assert choose([], [], 5) == []
    assert choose([2.0, 1.0, 2.0, 2.0], [3.0, 0.0, 1.0, 2.0], 4) == [1, 2, 3, 0]


def test_choices_that_farther_neighbors_could_change_are_put_off() -> None:
    assert choose([1.0, 2.0, 3.0], [0.0] * 3, 2, complete=3.5) == [0, 1]
    assert choose([1.0, 2.0, 3.0], [0.0] * 3, 3, complete=3.0 + 0.5 * TIE_TOLERANCE) == []
    assert choose([1.0, 2.0, 3.0], [0.0] * 3, 4, complete=3.5) == []


def test_the_direction_is_a_unit_vector_that_separates_shells() -> None:
    direction = np.array(TIE_DIRECTION)
    assert np.linalg.norm(direction) == pytest.approx(1.0, abs=1e-4)
    for build in CRYSTALS.values():
        atoms = build(3.6)
        neighbors = reference(atoms.positions, atoms.cell.array, atoms.pbc, 6.0)[0]
        vectors = np.array([atoms.positions[j] + np.array(s) @ atoms.cell.array for j, *s in neighbors])
        vectors -= atoms.positions[0]
        distances = np.array(list(neighbors.values()))
        for distance in np.unique(distances.round(4)):
            shell = vectors[np.abs(distances - distance) < 1e-3] @ direction
            assert np.diff(np.sort(shell)).min(initial=np.inf) > 0.01
