"""The neighbour search against fairchem's ``radius_graph_pbc`` on real structures.

One structure at a time, because fairchem uses the first structure's periodicity for a whole batch, and from positions
that AtomsToGraphs has wrapped, because fairchem loses edges of atoms outside the cell. No structure here has atoms
closer than 0.01 Å, which fairchem would take for one atom.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from neighbor_cases import Edge, assert_nearest, batch_of, edges_of, reference
from torch_geometric.data import Batch

import escaip_fairchem  # noqa: F401  (lets fairchem be imported without torch_scatter)
from escaip_fairchem.nn.neighbors import find_neighbors, neighborhoods_from_edges

TIE = 1e-4
FILES = [
    "acac_test_300K",
    "acac_train_300K",
    "atoms_34",
    "aumgo_50",
    "ethanol_test_dimers",
    "hfo2",
    "isolated_atoms_3bpa",
    "isolated_atoms_acac",
    "lips_200",
    "mlearn_Mo_test",
    "mlearn_Mo_train",
    "mlearn_Si_test",
    "mlearn_Si_train",
    "mptrj_random_1k",
    "oc20_3frames",
    "oxides",
    "single_atom_cells",
    "slab_ch3_cu_qe_pbcTTF",
    "spice_63",
    "threebpa_train_300K",
    "vasp_C8Nb16O8_relax_49",
]


def fairchem_batch(atoms: Atoms, **settings: Any) -> Batch:
    """Convert a structure as fairchem's datasets do."""
    from fairchem.core.preprocessing import AtomsToGraphs

    data = AtomsToGraphs(r_pbc=True, **settings).convert(atoms)
    batch = Batch.from_data_list([data])
    batch.natoms = torch.tensor([len(atoms)])
    return batch


def fairchem_edges(batch: Batch, pbc: list[bool], cutoff: float, max_neighbors: int) -> list[set[Edge]]:
    """Run fairchem's search, with its limit of neighbours strict; edges of every atom."""
    from fairchem.core.common.utils import radius_graph_pbc

    edges, offsets, _ = radius_graph_pbc(batch, cutoff, max_neighbors, True, pbc=pbc)
    rows: list[set[Edge]] = [set() for _ in batch.pos]
    for sender, receiver, shift in zip(*edges.tolist(), offsets.long().tolist(), strict=True):
        rows[receiver].add((sender, *shift))
    return rows


def compare(atoms: Atoms, cutoff: float, max_neighbors: int) -> int:
    """Check that both searches find the same edges, ties aside; return how many."""
    batch = fairchem_batch(atoms, r_edges=False)
    pbc, structure = torch.tensor(atoms.pbc).unsqueeze(0), torch.zeros(len(atoms), dtype=torch.int64)
    limits = {"cutoff": cutoff, "max_neighbors": max_neighbors}
    ours = edges_of(find_neighbors(batch.pos, batch.cell, pbc, structure, **limits))
    theirs = fairchem_edges(batch, atoms.pbc.tolist(), cutoff, max_neighbors)
    positions, cell = batch.pos.double(), batch.cell[0].double()
    for receiver, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        assert len(own) == len(other)
        different = sorted(set(own) ^ other)
        if different:
            assert len(own) == max_neighbors
            all_edges = torch.tensor(own + different)
            vectors = positions[all_edges[:, 0]] + all_edges[:, 1:].double() @ cell - positions[receiver]
            distances = vectors.norm(dim=1)
            assert (distances[len(own) :] - distances[: len(own)].max()).abs().max() <= TIE
    return sum(map(len, ours))


@pytest.mark.shared
@pytest.mark.parametrize("name", FILES)
def test_same_edges_as_fairchem_on_real_structures(shared: Path, name: str) -> None:
    structures = ase.io.read(shared / "data" / f"{name}.extxyz", ":")
    chosen = structures[:: max(1, len(structures) // 8)]
    edges = sum(compare(atoms, cutoff, count) for atoms in chosen for cutoff, count in [(6.0, 20), (5.0, 500)])
    assert edges > 0 or "isolated" in name


@pytest.mark.shared
def test_files_are_all_compared(shared: Path) -> None:
    assert sorted(path.stem for path in (shared / "data").glob("*.extxyz")) == FILES


@pytest.mark.shared
def test_where_fairchem_is_wrong_the_reference_decides(shared: Path) -> None:
    """Mixed periodicity in a batch, unwrapped positions: against trying every image."""
    slab = ase.io.read(shared / "data" / "slab_ch3_cu_qe_pbcTTF.extxyz", "0")
    crystal = ase.io.read(shared / "data" / "oxides.extxyz", "0")
    crystal.positions += [
        [3 * (row % 3 - 1) * crystal.cell.array[row % 2][axis] for axis in range(3)] for row in range(len(crystal))
    ]
    structures = [ase.io.read(shared / "data" / "spice_63.extxyz", "0"), slab, crystal]
    rows = iter(edges_of(find_neighbors(*batch_of(structures), cutoff=6.0, max_neighbors=20)))
    first = 0
    for atoms in structures:
        for neighbors in reference(atoms.positions, atoms.cell.array, atoms.pbc, 6.0):
            row = [(sender - first, *shift) for sender, *shift in next(rows)]
            assert_nearest(row, neighbors, 20)
        first += len(atoms)


@pytest.mark.parametrize("max_neighbors", [12, 200])
def test_edges_stored_by_fairchem(max_neighbors: int) -> None:
    """Edges that AtomsToGraphs stores in an LMDB give the neighbourhoods that a search finds."""
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.rattle(0.1, seed=2)
    atoms.cell[2, 0] += 0.7
    batch = fairchem_batch(atoms, r_edges=True, radius=6.0, max_neigh=200)
    structure = torch.zeros(len(atoms), dtype=torch.int64)
    limits = {"cutoff": 6.0, "max_neighbors": max_neighbors}
    taken = neighborhoods_from_edges(batch.edge_index, batch.cell_offsets, batch.pos, batch.cell, structure, **limits)
    found = find_neighbors(batch.pos, batch.cell, torch.ones(1, 3, dtype=torch.bool), structure, **limits)
    assert [set(row) for row in edges_of(taken)] == [set(row) for row in edges_of(found)]
