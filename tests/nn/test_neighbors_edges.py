"""Neighbourhoods from edges that were stored with the structures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from neighbor_cases import batch_of, edges_of
from torch import Tensor

from escaip_fairchem.errors import DataError
from escaip_fairchem.nn.neighbors import StructureError, find_neighbors, neighborhoods_from_edges


def stored(structures: list[Atoms], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return all edges within 7 Å in random order, as fairchem stores them, with positions, cells and structures."""
    positions, cell, pbc, structure = batch_of(structures, dtype)
    found = find_neighbors(positions, cell, pbc, structure, cutoff=7.0, max_neighbors=1000)
    receiver, slot = found.mask_NK.nonzero(as_tuple=True)
    order = torch.randperm(len(receiver), generator=torch.Generator().manual_seed(seed))
    edges = torch.stack([found.sender_NK[receiver, slot], receiver])[:, order]
    return edges, found.shift_NK3[receiver, slot][order], positions, cell, structure


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_neighborhoods_as_searching(dtype: torch.dtype) -> None:
    rattled = bulk("Cu", cubic=True).repeat(2)
    rattled.rattle(0.2, seed=4)
    structures = [rattled, Atoms("He"), fcc111("Pt", (2, 2, 4), vacuum=8.0), bulk("Po", "sc", a=2.8)]
    edges, offsets, *rest = stored(structures, dtype)
    for cutoff, max_neighbors in [(7.0, 20), (4.0, 1000), (5.5, 7)]:
        taken = neighborhoods_from_edges(edges, offsets, *rest, cutoff=cutoff, max_neighbors=max_neighbors)
        found = find_neighbors(*batch_of(structures, dtype), cutoff=cutoff, max_neighbors=max_neighbors)
        assert [set(row) for row in edges_of(taken)] == [set(row) for row in edges_of(found)]


def test_sender_comes_first_and_offsets_move_the_sender() -> None:
    """Of two atoms at 0 and 1 Å in a cell of 10 Å, the second sees the first's image at 10 Å."""
    taken = neighborhoods_from_edges(
        torch.tensor([[0], [1]]),
        torch.tensor([[0.0, 0.0, 1.0]]),
        torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
        10 * torch.eye(3).unsqueeze(0),
        torch.tensor([0, 0]),
        cutoff=9.0,
        max_neighbors=5,
    )
    assert edges_of(taken) == [[], [(0, 0, 0, 1)]]


def test_edges_beyond_the_cutoff_and_of_an_atom_to_itself_are_left_out() -> None:
    arguments = (
        torch.tensor([[0, 0, 0], [0, 1, 0]]),
        torch.tensor([[0, 0, 0], [0, 0, 1], [0, 0, 1]]),
        torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
        10 * torch.eye(3).unsqueeze(0),
        torch.tensor([0, 0]),
    )
    assert edges_of(neighborhoods_from_edges(*arguments, cutoff=8.9, max_neighbors=5)) == [[], []]
    assert edges_of(neighborhoods_from_edges(*arguments, cutoff=10.0, max_neighbors=5)) == [
        [(0, 0, 0, 1)],
        [(0, 0, 0, 1)],
    ]


def test_no_stored_edges() -> None:
    *_, positions, cell, structure = stored([Atoms("He")], torch.float32)
    nothing = torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, 3)
    assert edges_of(neighborhoods_from_edges(*nothing, positions, cell, structure, cutoff=5.0, max_neighbors=5)) == [[]]


def test_edges_that_do_not_fit_are_refused() -> None:
    edges, offsets, positions, cell, structure = stored([bulk("Cu", cubic=True)] * 2, torch.float64)
    limits = {"cutoff": 5.0, "max_neighbors": 20}
    with pytest.raises(DataError, match=r"atoms \d to 8, but the batch has 8"):
        neighborhoods_from_edges(edges.clamp(min=1) + (edges == 7), offsets, positions, cell, structure, **limits)
    with pytest.raises(DataError, match="one offset per edge"):
        neighborhoods_from_edges(edges, offsets[1:], positions, cell, structure, **limits)
    crossed = edges.clone()
    crossed[:, 5] = torch.tensor([0, 6])
    with pytest.raises(StructureError, match="stored edge 5 leads to another structure") as caught:
        neighborhoods_from_edges(crossed, offsets, positions, cell, structure, **limits)
    assert caught.value.structure == 1
    fractions = offsets.double()
    fractions[4, 2] += 0.5
    with pytest.raises(StructureError, match="stored edge 4 has a cell offset that is not a whole number"):
        neighborhoods_from_edges(edges, fractions, positions, cell, structure, **limits)
    positions = positions.clone()
    positions[5] = np.nan
    with pytest.raises(StructureError, match="structure 1 of the batch: atom 1"):
        neighborhoods_from_edges(edges, offsets, positions, cell, structure, **limits)


def test_coinciding_atoms_are_refused() -> None:
    with pytest.raises(StructureError, match="atoms 0 and 1"):
        neighborhoods_from_edges(
            torch.tensor([[1], [0]]),
            torch.zeros(1, 3),
            torch.zeros(2, 3),
            torch.zeros(1, 3, 3),
            torch.tensor([0, 0]),
            cutoff=5.0,
            max_neighbors=5,
        )
