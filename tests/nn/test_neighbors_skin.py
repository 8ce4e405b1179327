"""Choosing among remembered candidates gives what a search from scratch gives, to the last bit."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from hypothesis import given, settings
from hypothesis import strategies as st
from neighbor_cases import batch_of
from test_neighbors_reference import SHAPES, assert_equal, random_structure

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn import neighbors_candidates, neighbors_skin
from escaip_fairchem.nn.neighbors import Neighborhoods, StructureError, find_neighbors
from escaip_fairchem.nn.neighbors_skin import SkinSearch

LIMITS = {"cutoff": 6.0, "max_neighbors": 12}


class Counter:
    """Counts searches from scratch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        for module in (neighbors_skin, neighbors_candidates):
            monkeypatch.setattr(module, "find_neighbors", self)

    def __call__(self, *arguments: Any, **limits: Any) -> Neighborhoods:
        self.calls += 1
        return find_neighbors(*arguments, **limits)


def check(search: SkinSearch, structures: list[Atoms], dtype: torch.dtype = torch.float64, **limits: Any) -> None:
    """Compare one call with a search from scratch."""
    arguments, limits = batch_of(structures, dtype), limits or LIMITS
    assert_equal(search(*arguments, **limits), find_neighbors(*arguments, **limits))


def walk(structures: list[Atoms], steps: int, length: float, seed: int) -> Iterator[list[Atoms]]:
    """Let atoms drift and tremble; now and then, wrap one or all of them in another way."""
    rng = np.random.default_rng(seed)
    drifts = [rng.normal(scale=length, size=(len(atoms), 3)) for atoms in structures]
    for _ in range(steps):
        for atoms, drift in zip(structures, drifts, strict=True):
            atoms.positions += drift + rng.normal(scale=length, size=drift.shape)
            kind = rng.integers(5)
            if kind == 0:
                atoms.wrap()
            elif kind == 1:
                steps_taken = rng.integers(-2, 3, size=(len(atoms), 3)) * atoms.pbc
                atoms.positions += steps_taken @ atoms.cell.array
        yield structures


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.lists(st.tuples(st.sampled_from(SHAPES), st.tuples(*[st.booleans()] * 3)), min_size=1, max_size=3),
    cutoff=st.floats(2.0, 7.0),
    max_neighbors=st.integers(1, 40),
    skin=st.floats(0.05, 2.0),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_walk_of_any_structures(
    seed: int, kinds: list, cutoff: float, max_neighbors: int, skin: float, dtype: torch.dtype
) -> None:
    rng = np.random.default_rng(seed)
    search = SkinSearch(skin)
    for structures in walk([random_structure(rng, *kind) for kind in kinds], 8, 0.02, seed):
        check(search, structures, dtype, cutoff=cutoff, max_neighbors=max_neighbors)


def crystal(pbc: bool | tuple[bool, ...] = True) -> Atoms:
    atoms = bulk("Cu", cubic=True).repeat((2, 2, 3))
    atoms.pbc = pbc
    return atoms


MATERIALS = {
    "slab": lambda: [fcc111("Pt", (3, 3, 4), vacuum=8.0)],
    "self-images": lambda: [bulk("Cu"), bulk("Si")],
    "molecules": lambda: [molecule("CH3CH2OH"), molecule("C6H6"), Atoms("He")],
    "wire": lambda: [crystal((False, True, False))],
    "mixed": lambda: [crystal(), molecule("CH4"), fcc111("Al", (2, 2, 3), vacuum=6.0)],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(MATERIALS))
def test_materials_that_start_from_perfect_symmetry(name: str, dtype: torch.dtype) -> None:
    search, structures = SkinSearch(1.0), MATERIALS[name]()
    for _ in range(3):
        check(search, structures, dtype)
    for moved in walk(structures, 25, 0.01, 3):
        check(search, moved, dtype)


def test_candidates_serve_while_atoms_move_little(monkeypatch: pytest.MonkeyPatch) -> None:
    counter, search, atoms = Counter(monkeypatch), SkinSearch(1.0), crystal()
    atoms.rattle(0.05, seed=0)
    rng = np.random.default_rng(0)
    start, direction = atoms.positions.copy(), rng.normal(size=(len(atoms), 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    for step in range(21):  # to just within a quarter of the skin
        atoms.positions = start + 0.0124 * step * direction
        check(search, [atoms])
    assert counter.calls == 2, "one search, and one for the candidates"
    atoms.wrap()
    check(search, [atoms])
    assert counter.calls == 2, "atoms that jump by lattice vectors have not moved"
    atoms.positions[3] += 0.5
    check(search, [atoms])
    assert counter.calls == 3


def test_other_questions_get_their_own_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    counter, search, atoms = Counter(monkeypatch), SkinSearch(1.0), crystal()
    for change in (
        lambda: None,
        lambda: atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=False),
        lambda: atoms.set_pbc((True, False, True)),
    ):
        change()
        check(search, [atoms])
        check(search, [atoms])
    assert counter.calls == 6
    check(search, [atoms], torch.float32)
    check(search, [atoms], cutoff=5.0, max_neighbors=12)
    check(search, [atoms], cutoff=5.0, max_neighbors=14)
    check(search, [atoms, atoms], cutoff=5.0, max_neighbors=14)
    check(search, [atoms[:-1]], cutoff=5.0, max_neighbors=14)
    check(search, [Atoms()], cutoff=5.0, max_neighbors=14)
    check(search, [Atoms()], cutoff=5.0, max_neighbors=14)
    assert counter.calls == 13


def test_changes_in_place_are_noticed() -> None:
    search = SkinSearch(1.0)
    arguments = batch_of([crystal()])
    for _ in range(3):
        search(*arguments, **LIMITS)
    arguments[1].mul_(1.02)
    assert_equal(search(*arguments, **LIMITS), find_neighbors(*arguments, **LIMITS))
    arguments[0][0, 0] += 0.1
    assert_equal(search(*arguments, **LIMITS), find_neighbors(*arguments, **LIMITS))


def test_fast_atoms_cost_one_search_each(monkeypatch: pytest.MonkeyPatch) -> None:
    counter, search = Counter(monkeypatch), SkinSearch(1.0)
    for structures in walk([crystal()], 5, 0.5, 0):
        check(search, structures)
    assert counter.calls == 5


def test_structures_that_become_wrong_are_refused() -> None:
    search, atoms = SkinSearch(1.0), Atoms("H3", positions=[[0, 0, 0], [0, 0, 0.1], [2, 0, 0]])
    for _ in range(3):
        check(search, [atoms])
    atoms.positions[1, 2] = 5e-4
    with pytest.raises(StructureError, match="atoms 0 and 1"):
        search(*batch_of([atoms]), **LIMITS)
    atoms.positions[1, 2] = np.nan
    with pytest.raises(StructureError, match="atom 1 is at"):
        search(*batch_of([atoms]), **LIMITS)


def test_copies_and_pickles_start_without_candidates() -> None:
    search = SkinSearch(0.7)
    small = len(pickle.dumps(search))
    for _ in range(3):
        check(search, [crystal()])
    assert len(pickle.dumps(search)) == small
    for other in (copy.deepcopy(search), pickle.loads(pickle.dumps(search))):
        assert other.skin == 0.7
        check(other, [crystal()])


@pytest.mark.parametrize("skin", [0.0, -1.0, float("nan"), float("inf")])
def test_a_skin_is_a_positive_number(skin: float) -> None:
    with pytest.raises(ConfigError, match="skin"):
        SkinSearch(skin)
