"""Periodic geometry: wrapping atoms and listing their images near a region.

Everything happens in a rotated frame of each structure in which its lattice vectors form a lower triangular matrix:
the first along x, the second in the xy plane. There a lattice is handled axis by axis from z to x, however skewed it
is, because what is added on one axis no longer moves the axes before it. A structure's atoms wrap into a rectangular
box, and the images inside a rectangular region are listed with no waste.

Legend: N atoms in the batch, B structures, I images of atoms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from escaip_fairchem.nn.neighbors_checks import check_volume


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """The lattices of a batch in their triangular frames.

    Attributes:
        vectors_B33: Lattice vectors as rows, lower triangular with a positive diagonal, Å. On axes without
            periodicity an arbitrary vector normal to the periodic ones.
        rotation_B33: Turns row vectors into the triangular frame by ``v @ rotation`` (a reflection may be included).
        periodic_B3: True on periodic axes.
    """

    vectors_B33: Tensor
    rotation_B33: Tensor
    periodic_B3: Tensor


@dataclass(frozen=True, kw_only=True)
class Sites:
    """Atoms or images of atoms in the triangular frames of their structures.

    Attributes:
        atom_I: Row of the atom in the batch, int64.
        position_I3: Position in the triangular frame, Å, float64.
        shift_I3: Lattice vectors that were added to the atom's position as given, int64.
    """

    atom_I: Tensor
    position_I3: Tensor
    shift_I3: Tensor

    def select(self, rows_I: Tensor) -> Sites:
        """Return the sites in the given rows."""
        return Sites(
            atom_I=self.atom_I.index_select(0, rows_I),
            position_I3=self.position_I3.index_select(0, rows_I),
            shift_I3=self.shift_I3.index_select(0, rows_I),
        )


def rows(mask_I: Tensor) -> Tensor:
    """Return the rows where a mask is True, int64."""
    return mask_I.nonzero().squeeze(1)


def ragged_ranges(start_R: Tensor, count_R: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate the integer ranges [start, start + count).

    Args:
        start_R: First value of each range, shape (R,), int64.
        count_R: Length of each range, shape (R,), int64, ≥ 0.

    Returns:
        The range that each value belongs to, and the values; both of shape (sum of counts,), int64.
    """
    ranges = torch.arange(len(count_R), device=count_R.device)
    owner_V = ranges.repeat_interleave(count_R)
    first_R = start_R - (count_R.cumsum(0) - count_R)
    return owner_V, first_R[owner_V] + torch.arange(len(owner_V), device=count_R.device)


def triangular_lattice(cell_B33: Tensor, pbc_B3: Tensor) -> Lattice:
    """Bring the cells of a batch into lower triangular form.

    Args:
        cell_B33: Lattice vectors as rows, Å, float64. Rows of axes that are not periodic are ignored.
        pbc_B3: True on periodic axes, bool.

    Returns:
        The lattices, on the device of ``cell_B33``.

    Raises:
        StructureError: If a structure's periodic lattice vectors are linearly dependent.
    """
    device = cell_B33.device
    cell_B33, pbc_B3 = cell_B33.cpu(), pbc_B3.cpu()  # 3×3 decompositions are slow on accelerators
    periodic_vectors_B33 = cell_B33 * pbc_B3.unsqueeze(-1)
    _, singular_B3, right_B33 = torch.linalg.svd(periodic_vectors_B33)
    dimensions_B1 = pbc_B3.sum(1, keepdim=True)
    spanned_B3 = torch.arange(3) < dimensions_B1
    check_volume(singular_B3.masked_fill(~spanned_B3, torch.inf).amin(1), cell_B33, pbc_B3)

    # The last right singular vectors span what the periodic lattice vectors do not: one for each open axis.
    open_axis_B3 = (dimensions_B1 + (~pbc_B3).cumsum(1) - 1).clamp(0, 2)
    normals_B33 = right_B33.gather(1, open_axis_B3.unsqueeze(-1).expand(-1, -1, 3))
    complete_B33 = torch.where(pbc_B3.unsqueeze(-1), periodic_vectors_B33, normals_B33)

    orthogonal_B33, upper_B33 = torch.linalg.qr(complete_B33.mT)
    sign_B3 = upper_B33.diagonal(dim1=1, dim2=2).sign()
    return Lattice(
        vectors_B33=(upper_B33 * sign_B3.unsqueeze(-1)).mT.to(device),
        rotation_B33=(orthogonal_B33 * sign_B3.unsqueeze(1)).to(device),
        periodic_B3=pbc_B3.to(device),
    )


def wrap(positions_N3: Tensor, structure_N: Tensor, lattice: Lattice) -> Sites:
    """Move every atom into the rectangular box that its lattice's diagonal spans.

    Args:
        positions_N3: Positions as given, Å, float64.
        structure_N: Structure of every atom, int64.
        lattice: The lattices of the batch.

    Returns:
        One site per atom, in the order of the atoms. Open axes are not wrapped.
    """
    # Written out instead of a matrix product: an atom's result must not depend on how many others there are.
    wrapped_N3 = (positions_N3.unsqueeze(-1) * lattice.rotation_B33[structure_N]).sum(1)
    shift_N3 = torch.zeros_like(wrapped_N3)
    for axis in (2, 1, 0):
        vector_N3 = lattice.vectors_B33[structure_N, axis]
        steps_N = -torch.floor(wrapped_N3[:, axis] / vector_N3[:, axis]) * lattice.periodic_B3[structure_N, axis]
        wrapped_N3 = wrapped_N3 + steps_N.unsqueeze(-1) * vector_N3
        shift_N3[:, axis] = steps_N
    atoms_N = torch.arange(len(positions_N3), device=positions_N3.device)
    return Sites(atom_I=atoms_N, position_I3=wrapped_N3, shift_I3=shift_N3.long())


def images_within(sites: Sites, structure_N: Tensor, lattice: Lattice, low_B3: Tensor, high_B3: Tensor) -> Sites:
    """List the periodic images of some atoms, themselves included, that lie in a rectangular region.

    Args:
        sites: The atoms.
        structure_N: Structure of every atom of the batch, int64.
        lattice: The lattices of the batch.
        low_B3: Lower corner of each structure's region in its triangular frame, Å.
        high_B3: Upper corner.

    Returns:
        The images inside; on open axes every atom counts as inside.
    """
    atom_I, position_I3, shift_I3 = sites.atom_I, sites.position_I3, sites.shift_I3
    for axis in (2, 1, 0):
        structure_I = structure_N[atom_I]
        step_I = lattice.vectors_B33[structure_I, axis, axis]
        first_I = torch.ceil((low_B3[structure_I, axis] - position_I3[:, axis]) / step_I).long()
        last_I = torch.floor((high_B3[structure_I, axis] - position_I3[:, axis]) / step_I).long()
        periodic_I = lattice.periodic_B3[structure_I, axis]
        count_I = torch.where(periodic_I, (last_I - first_I + 1).clamp(min=0), 1)
        source_I, steps_I = ragged_ranges(torch.where(periodic_I, first_I, 0), count_I)
        atom_I = atom_I[source_I]
        vector_I3 = lattice.vectors_B33[structure_N[atom_I], axis]
        position_I3 = position_I3[source_I] + steps_I.unsqueeze(-1) * vector_I3
        shift_I3 = shift_I3[source_I]
        shift_I3[:, axis] += steps_I
    return Sites(atom_I=atom_I, position_I3=position_I3, shift_I3=shift_I3)
