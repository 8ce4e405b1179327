"""Structures that have no neighbourhoods: what is wrong with them, in words.

Legend: N atoms, B structures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from escaip_fairchem.errors import DataError

MINIMUM_DISTANCE = 1e-3
"""Two atoms closer than this (Å) are an error: the direction between them is noise."""


class StructureError(DataError):
    """A structure of a batch has no well-defined neighbourhoods.

    Attributes:
        structure: Row of the structure in the batch, from which a caller that knows the batch finds the sample's id.
    """

    def __init__(self, structure: int, message: str) -> None:
        super().__init__(f"structure {structure} of the batch: {message}")
        self.structure = structure


def row_in_structure(atom: int, structure_N: Tensor) -> tuple[int, int]:
    """Translate an atom's row in the batch into its structure and its row there."""
    structure = int(structure_N[atom])
    return structure, atom - int(torch.searchsorted(structure_N, structure))


def check_finite(positions_N3: Tensor, cell_B33: Tensor, structure_N: Tensor) -> None:
    """Refuse positions and cells that hold NaN or infinity.

    Raises:
        StructureError: Naming the first such atom or lattice vector.
    """
    # What is not finite spoils the sum. A sum that overflows only makes us look more closely.
    if bool((positions_N3.sum(dtype=torch.float64) + cell_B33.sum(dtype=torch.float64)).isfinite()):
        return
    bad_N = ~positions_N3.isfinite().all(-1)
    if bad_N.any():
        atom = int(bad_N.nonzero()[0])
        structure, row = row_in_structure(atom, structure_N)
        raise StructureError(
            structure,
            f"atom {row} is at {positions_N3[atom].tolist()} Å; every coordinate must be finite. "
            "Correct or leave out this structure.",
        )
    bad_B3 = ~cell_B33.isfinite().all(-1)
    if bad_B3.any():
        structure, axis = bad_B3.nonzero()[0].tolist()
        raise StructureError(
            structure,
            f"lattice vector {axis} is {cell_B33[structure, axis].tolist()} Å; every component must be finite. "
            "Correct or leave out this structure.",
        )


def check_volume(thickness_B: Tensor, cell_B33: Tensor, pbc_B3: Tensor) -> None:
    """Refuse cells whose periodic lattice vectors are zero or lie in one plane or line.

    Args:
        thickness_B: Smallest singular value of the matrix of periodic lattice vectors, shape (B,), Å.
        cell_B33: Lattice vectors as rows, Å.
        pbc_B3: True on periodic axes.

    Raises:
        StructureError: Naming the first such structure.
    """
    flat_B = thickness_B < MINIMUM_DISTANCE
    if flat_B.any():
        structure = int(flat_B.nonzero()[0])
        raise StructureError(
            structure,
            f"pbc {pbc_B3[structure].tolist()} with the cell {cell_B33[structure].tolist()} Å, whose lattice vectors "
            "on periodic axes are zero or linearly dependent. Give them lattice vectors, or set pbc to False there.",
        )


def check_edges(edge_index_2E: Tensor, cell_offsets_E3: Tensor, structure_N: Tensor) -> None:
    """Refuse stored edges that do not belong to the structures of the batch.

    Raises:
        DataError: If the shapes or rows do not fit.
        StructureError: Naming the structure of the first receiver whose edge leads to another structure, or whose
            cell offset is not a whole number.
    """
    edges = edge_index_2E.shape[1]
    if len(cell_offsets_E3) != edges:
        raise DataError(f"{edges} stored edges with {len(cell_offsets_E3)} cell offsets: store one offset per edge.")
    if edges and not 0 <= int(edge_index_2E.min()) <= int(edge_index_2E.max()) < len(structure_N):
        raise DataError(
            f"stored edges hold atoms {int(edge_index_2E.min())} to {int(edge_index_2E.max())}, but the batch has "
            f"{len(structure_N)} atoms. Store the edges of these structures, or set otf_graph: true."
        )
    sender_structure_E, receiver_structure_E = structure_N[edge_index_2E]
    for bad_E, what in (
        (sender_structure_E != receiver_structure_E, "leads to another structure"),
        ((cell_offsets_E3 != cell_offsets_E3.round()).any(1), "has a cell offset that is not a whole number"),
    ):
        if bad_E.any():
            edge = int(bad_E.nonzero()[0])
            raise StructureError(
                int(receiver_structure_E[edge]),
                f"stored edge {edge} {what}. Store the edges of these structures, or set otf_graph: true.",
            )


def check_apart(receiver_E: Tensor, sender_E: Tensor, distance_E: Tensor, structure_N: Tensor) -> None:
    """Refuse pairs of atoms that coincide.

    Args:
        receiver_E: Row in the batch of one atom of each pair, shape (E,).
        sender_E: Row in the batch of the other.
        distance_E: Their distances, Å.
        structure_N: Structure of every atom, shape (N,).

    Raises:
        StructureError: Naming the pair of lowest rows among those closer than ``MINIMUM_DISTANCE``.
    """
    close_E = distance_E < MINIMUM_DISTANCE
    if close_E.any():
        pairs = torch.stack([receiver_E[close_E], sender_E[close_E]], dim=1).tolist()
        distances = distance_E[close_E].tolist()
        (receiver, sender), distance = min(zip(pairs, distances, strict=True))
        structure, row = row_in_structure(receiver, structure_N)
        raise StructureError(
            structure,
            f"atoms {row} and {row_in_structure(sender, structure_N)[1]} are {distance:.2g} Å apart (periodic images "
            f"included); at least {MINIMUM_DISTANCE} Å are needed for a direction. Separate or remove one of them.",
        )
