"""The seam between fairchem's batches and the network's plain tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from escaip_fairchem.errors import DataError
from escaip_fairchem.nn import Neighborhoods, Systems, find_neighbors, neighborhoods_from_edges
from escaip_fairchem.plugin.samples import SampleNames

if TYPE_CHECKING:
    from torch_geometric.data import Batch


def systems_from_batch(batch: Batch, *, use_pbc: bool, dtype: torch.dtype) -> Systems:
    """Read the structures of a batch.

    Args:
        batch: fairchem's batch: ``pos`` (N, 3), ``cell`` (B, 3, 3), ``atomic_numbers`` (N,), ``natoms`` (B,), and
            ``pbc`` of any shape that holds 3 B values. Data written before fairchem stored ``pbc`` is periodic.
        use_pbc: If false, every structure counts as a molecule.
        dtype: Floating-point type of the network.

    Raises:
        DataError: Sizes contradict each other, or periodic structures have no cell.
    """
    natoms_B = torch.as_tensor(batch.natoms, device=batch.pos.device).reshape(-1)
    count = natoms_B.numel()
    n_atoms = batch.pos.shape[0]
    if natoms_B.device.type == "cpu" and int(natoms_B.sum()) != n_atoms:  # on a GPU, asking would wait for it
        raise DataError(f"batch: natoms add up to {int(natoms_B.sum())}, but there are {n_atoms} positions")
    rows_B = torch.arange(count, device=batch.pos.device)
    structure_N = torch.repeat_interleave(rows_B, natoms_B, output_size=n_atoms)
    pbc_B3 = _periodicity(batch, count, use_pbc)
    return Systems(
        positions_N3=batch.pos.to(dtype),
        cell_B33=_cells(batch, pbc_B3).to(dtype),
        pbc_B3=pbc_B3,
        numbers_N=batch.atomic_numbers.long(),
        structure_N=structure_N,
    )


def _cells(batch: Batch, pbc_B3: Tensor) -> Tensor:
    """Lattice vectors of every structure, shape (B, 3, 3), Å; zero for molecules that were stored without."""
    cell: Tensor | None = batch.get("cell")
    if cell is not None:
        return cell.reshape(-1, 3, 3)
    if pbc_B3.device.type == "cpu" and bool(pbc_B3.any()):  # a GPU need not be asked: the search refuses zero cells
        raise DataError("batch: holds no cell for periodic structures; store cells, or pbc that is false")
    return torch.zeros(len(pbc_B3), 3, 3, dtype=batch.pos.dtype, device=batch.pos.device)


def _periodicity(batch: Batch, count: int, use_pbc: bool) -> Tensor:
    """Periodicity of every structure by itself, shape (B, 3), bool."""
    pbc = batch.get("pbc") if use_pbc else torch.zeros(count, 3, dtype=torch.bool, device=batch.pos.device)
    if pbc is None:
        return torch.ones(count, 3, dtype=torch.bool, device=batch.pos.device)
    if pbc.numel() != 3 * count:
        raise DataError(f"batch: pbc holds {pbc.numel()} values for {count} structures; each needs 3")
    return pbc.reshape(count, 3).to(device=batch.pos.device, dtype=torch.bool)


def neighborhoods_of_batch(
    batch: Batch,
    systems: Systems,
    *,
    cutoff: float,
    max_neighbors: int,
    on_the_fly: bool,
    search: Callable[..., Neighborhoods] = find_neighbors,
) -> Neighborhoods:
    """Search the neighbours of all atoms, or take the edges that the data holds.

    Args:
        batch: fairchem's batch; with ``on_the_fly`` false it should hold ``edge_index`` and ``cell_offsets``.
        systems: The same structures.
        cutoff: Radius in Å.
        max_neighbors: Largest number of neighbours of an atom.
        on_the_fly: Whether to search even if edges are stored.
        search: ``find_neighbors`` or what gives the same results.
    """
    if not on_the_fly:
        edges, offsets = batch.get("edge_index"), batch.get("cell_offsets")
        if edges is not None and offsets is not None:
            return neighborhoods_from_edges(
                edges,
                offsets,
                systems.positions_N3,
                systems.cell_B33,
                systems.structure_N,
                cutoff=cutoff,
                max_neighbors=max_neighbors,
            )
        warnings.warn("otf_graph: false, but the data holds no edges; neighbours are searched", stacklevel=2)
    return search(
        systems.positions_N3,
        systems.cell_B33,
        systems.pbc_B3,
        systems.structure_N,
        cutoff=cutoff,
        max_neighbors=max_neighbors,
    )


@contextmanager
def errors_name_samples(batch: Batch) -> Iterator[None]:
    """Let errors that know a structure by its row in the batch also say its sample id."""
    try:
        yield
    except DataError as error:
        row = getattr(error, "structure", None)
        name = None if row is None else SampleNames.of(batch).name(row)
        if name is None:
            raise
        raise DataError(f"{name}: {error}") from error
