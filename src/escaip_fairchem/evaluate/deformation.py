"""The coordinates that relaxations move: positions without the deformation, and the logarithm of the deformation.

The same coordinates as ``ase.filters.FrechetCellFilter``: a structure's cell is h = h₀ Fᵀ and its positions are
r = x Fᵀ with F = exp(U); what moves are x (a row of three per atom) and n U (3 rows), n being the number of atoms.
Legend: N atoms and B structures of the batch, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms
from scipy.linalg import expm

from escaip_fairchem.evaluate.labels import FloatArray

_VOIGT = ((0, 5, 4), (5, 1, 3), (4, 3, 2))


class Coordinates:
    """Positions and, where they are relaxed, cells of several structures.

    Args:
        relax_cell: Whether cells move.
    """

    def __init__(self, *, relax_cell: bool) -> None:
        self.relax_cell = relax_cell
        self.natoms_B = np.zeros(0, dtype=np.int64)
        self.undeformed_N3: FloatArray = np.zeros((0, 3))
        self.free_N = np.zeros(0, dtype=bool)
        self.first_cell_B33: FloatArray = np.zeros((0, 3, 3))
        self.logarithm_B33: FloatArray = np.zeros((0, 3, 3))

    @property
    def rows_B(self) -> npt.NDArray[np.int64]:
        """Rows of every structure."""
        return self.natoms_B + 3 * int(self.relax_cell)

    def add(self, structures: Sequence[Atoms], free: Sequence[npt.NDArray[np.bool_]]) -> None:
        """Append structures.

        Args:
            structures: Structures, where they start.
            free: Which of their atoms move relative to the cell.
        """
        count = len(structures)
        self.natoms_B = np.append(self.natoms_B, np.array([len(atoms) for atoms in structures], dtype=np.int64))
        self.undeformed_N3 = np.concatenate([self.undeformed_N3, *(atoms.positions for atoms in structures)])
        self.free_N = np.concatenate([self.free_N, *free])
        self.first_cell_B33 = np.concatenate([self.first_cell_B33, *(atoms.cell.array[None] for atoms in structures)])
        self.logarithm_B33 = np.concatenate([self.logarithm_B33, np.zeros((count, 3, 3))])

    def keep(self, keep_B: npt.NDArray[np.bool_]) -> None:
        """Drop the structures that are not marked."""
        keep_N = np.repeat(keep_B, self.natoms_B)
        self.undeformed_N3, self.free_N = self.undeformed_N3[keep_N], self.free_N[keep_N]
        self.natoms_B = self.natoms_B[keep_B]
        self.first_cell_B33, self.logarithm_B33 = self.first_cell_B33[keep_B], self.logarithm_B33[keep_B]

    def deformation(self) -> FloatArray:
        """F of every structure, shape (B, 3, 3)."""
        return np.asarray(expm(self.logarithm_B33)) if self.relax_cell else self.logarithm_B33 + np.eye(3)

    def positions(self) -> FloatArray:
        """Shape (N, 3), Å."""
        transposed_N33 = np.repeat(self.deformation().transpose(0, 2, 1), self.natoms_B, axis=0)
        return _times(self.undeformed_N3[:, None], transposed_N33)[:, 0]

    def cells(self) -> FloatArray:
        """Shape (B, 3, 3), Å."""
        return _times(self.first_cell_B33, self.deformation().transpose(0, 2, 1))

    def row_forces(self, forces_N3: FloatArray, stress_B6: FloatArray | None) -> FloatArray:
        """Forces on the coordinates: minus the derivatives of the energy.

        Args:
            forces_N3: On atoms, eV/Å; those of fixed atoms do not count.
            stress_B6: In ASE's order and sign, eV/Å³; needed where cells move.

        Returns:
            Shape (R, 3), eV/Å.
        """
        deformation_B33 = self.deformation()
        deformation_N33 = np.repeat(deformation_B33, self.natoms_B, axis=0)
        atoms_N3 = _times((forces_N3 * self.free_N[:, None])[:, None], deformation_N33)[:, 0]
        if not self.relax_cell:
            return atoms_N3
        assert stress_B6 is not None, "the pool has asked for stresses"
        volume_B = np.abs(np.linalg.det(self.cells()))
        virial_B33 = -volume_B[:, None, None] * stress_B6[:, _VOIGT]
        by_deformation_B33 = _times(virial_B33, np.linalg.inv(deformation_B33.transpose(0, 2, 1)))
        by_logarithm_B33 = _pull_back(self.logarithm_B33, by_deformation_B33)
        return self._rows(atoms_N3, by_logarithm_B33 / self.natoms_B[:, None, None])

    def move(self, moves_R3: FloatArray) -> None:
        """Add to the coordinates, shape (R, 3)."""
        of_cell_R = self._cell_rows()
        self.undeformed_N3 = self.undeformed_N3 + moves_R3[~of_cell_R]
        if self.relax_cell:
            self.logarithm_B33 = self.logarithm_B33 + moves_R3[of_cell_R].reshape(-1, 3, 3) / (
                self.natoms_B[:, None, None].astype(np.float64)
            )

    def _rows(self, atoms_N3: FloatArray, cell_B33: FloatArray) -> FloatArray:
        of_cell_R = self._cell_rows()
        rows_R3 = np.empty((len(of_cell_R), 3))
        rows_R3[~of_cell_R], rows_R3[of_cell_R] = atoms_N3, cell_B33.reshape(-1, 3)
        return rows_R3

    def _cell_rows(self) -> npt.NDArray[np.bool_]:
        """Which rows are a cell's: the last three of every structure."""
        rows_B = self.rows_B
        from_end_R = np.repeat(np.cumsum(rows_B), rows_B) - np.arange(rows_B.sum())
        return np.asarray(from_end_R <= 3 * int(self.relax_cell))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything as arrays, to be saved."""
        return {
            "natoms": self.natoms_B,
            "undeformed": self.undeformed_N3,
            "free": self.free_N,
            "first_cell": self.first_cell_B33,
            "logarithm": self.logarithm_B33,
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what :meth:`state` gave."""
        self.natoms_B, self.undeformed_N3, self.free_N = state["natoms"], state["undeformed"], state["free"]
        self.first_cell_B33, self.logarithm_B33 = state["first_cell"], state["logarithm"]


def _times(left: FloatArray, right: FloatArray) -> FloatArray:
    """Products of matrices (…, M, 3) and (…, 3, 3), each by the same operations whatever else is in the batch.

    ``@`` takes other routines, which round otherwise, by the number and the layout of the matrices.
    """
    return sum((left[..., :, k, None] * right[..., None, k, :] for k in range(3)), start=np.zeros(()))


def _pull_back(logarithm_B33: FloatArray, by_deformation_B33: FloatArray) -> FloatArray:
    """From a derivative by exp(U) to the derivative by U.

    The Fréchet derivative L(U, ·) of the exponential has the adjoint L(Uᵀ, ·), and L(A, E) is the upper right block of
    exp([[A, E], [0, A]]).
    """
    # L is linear in E. With elements up to one, E does not force the exponential to scale and square.
    largest_B = np.abs(by_deformation_B33).max(axis=(1, 2))
    scale_B = np.where(largest_B > 0.0, largest_B, 1.0)[:, None, None]
    blocks_B66 = np.zeros((len(logarithm_B33), 6, 6))
    blocks_B66[:, :3, :3] = blocks_B66[:, 3:, 3:] = logarithm_B33.transpose(0, 2, 1)
    blocks_B66[:, :3, 3:] = by_deformation_B33 / scale_B
    return np.asarray(expm(blocks_B66)[:, :3, 3:] * scale_B)
