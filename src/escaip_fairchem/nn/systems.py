"""A batch of structures as plain tensors: what the network is told about the world.

Shapes: N atoms in the batch, B structures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from escaip_fairchem.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Systems:
    """Structures whose atoms are listed one structure after the other.

    Attributes:
        positions_N3: Cartesian positions in Å, inside the cell or not, shape (N, 3).
        cell_B33: Lattice vectors as rows in Å, shape (B, 3, 3). Zero where there is no periodicity.
        pbc_B3: Whether each lattice vector repeats, shape (B, 3), bool.
        numbers_N: Atomic numbers, shape (N,), int64.
        structure_N: Row of the structure of each atom, shape (N,), int64, non-decreasing.
    """

    positions_N3: Tensor
    cell_B33: Tensor
    pbc_B3: Tensor
    numbers_N: Tensor
    structure_N: Tensor

    @property
    def num_structures(self) -> int:
        """Number of structures B."""
        return self.cell_B33.shape[0]

    def with_geometry(self, positions_N3: Tensor, cell_B33: Tensor) -> Systems:
        """The same atoms at other positions in other cells."""
        return replace(self, positions_N3=positions_N3, cell_B33=cell_B33)

    def check_elements(self, max_num_elements: int) -> None:
        """Refuse atomic numbers that the element embeddings do not hold.

        Args:
            max_num_elements: Rows of the embeddings; the largest allowed number is one less.

        Raises:
            ElementError: Names the structure's row in the batch, the number and the limit.
        """
        wrong_N = (self.numbers_N < 0) | (self.numbers_N >= max_num_elements)
        if bool(wrong_N.any()):
            atom = int(torch.nonzero(wrong_N)[0])
            number, row = int(self.numbers_N[atom]), int(self.structure_N[atom])
            raise ElementError(row, number, max_num_elements)


class ElementError(DataError):
    """An atomic number lies outside the model's element embeddings.

    Attributes:
        structure: Row of the structure in the batch.
    """

    def __init__(self, structure: int, number: int, limit: int) -> None:
        self.structure = structure
        remedy = (
            f"needs max_num_elements ≥ {number + 1}, the model has {limit}" if number >= 0 else "is no atomic number"
        )
        super().__init__(f"structure {structure} of the batch: atomic number {number} {remedy}")


def structure_sum(values_ND: Tensor, structure_N: Tensor, num_structures: int) -> Tensor:
    """Sum per-atom values over each structure; shape (N, D) to (B, D)."""
    total_BD = values_ND.new_zeros((num_structures, *values_ND.shape[1:]))
    return total_BD.index_add(0, structure_N, values_ND)


def structure_mean(values_ND: Tensor, structure_N: Tensor, num_structures: int) -> Tensor:
    """Average per-atom values over each structure; shape (N, D) to (B, D). Empty structures get 0."""
    ones_N1 = torch.ones_like(values_ND[:, :1])
    count_B1 = structure_sum(ones_N1, structure_N, num_structures).clamp(min=1.0)
    return structure_sum(values_ND, structure_N, num_structures) / count_B1
