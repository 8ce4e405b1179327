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

ENDLESS = 1e200
"""Period of an axis without periodicity, Å: far beyond any coordinate, but not infinite, which would hide its sign."""


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """The lattices of a batch in their triangular frames.

    Attributes:
        move_B36: What a step along each axis adds to a place (see :class:`Sites`): the lattice vector as a row, lower
            triangular with a positive diagonal, Å, and one step. On axes without periodicity an arbitrary vector
            normal to the periodic ones.
        rotation_B33: Turns row vectors into the triangular frame by ``v @ rotation`` (a reflection may be included).
        period_B3: Diagonal of the lattice vectors, Å; infinite on axes without periodicity.
    """

    move_B36: Tensor
    rotation_B33: Tensor
    period_B3: Tensor


@dataclass(frozen=True, kw_only=True)
class Sites:
    """Atoms or images of atoms in the triangular frames of their structures.

    Attributes:
        atom_I: Row of the atom in the batch, int64.
        place_I6: Position in the triangular frame, Å, and beside it the lattice vectors that were added to the
            atom's position as given; float64. In one tensor, because they are moved and looked up together.
    """

    atom_I: Tensor
    place_I6: Tensor

    @property
    def position_I3(self) -> Tensor:
        """Position in the triangular frame, Å."""
        return self.place_I6[:, :3]

    def part(self, rows: slice) -> Sites:
        """Return consecutive sites, without copying them."""
        return Sites(atom_I=self.atom_I[rows], place_I6=self.place_I6[rows])

    def select(self, rows_I: Tensor) -> Sites:
        """Return the sites in the given rows."""
        # index_select is several times faster than indexing, and here is where most of the time is spent.
        return Sites(atom_I=self.atom_I.index_select(0, rows_I), place_I6=self.place_I6.index_select(0, rows_I))


def rows(mask_I: Tensor) -> Tensor:
    """Return the rows where a mask is True, int64."""
    return mask_I.nonzero().squeeze(1)


def per_site(table_B: Tensor, structure_I: Tensor) -> Tensor:
    """Look up what belongs to the structure of each site; of a single structure, one row that broadcasts.

    Args:
        table_B: A row for each structure, shape (B, …).
        structure_I: Structure of every site, int64.

    Returns:
        Shape (I, …) or (1, …).
    """
    return table_B if len(table_B) == 1 else table_B.index_select(0, structure_I)


def ragged_ranges(start_R: Tensor, count_R: Tensor, total: int | None = None) -> tuple[Tensor, Tensor]:
    """Concatenate the integer ranges [start, start + count).

    Args:
        start_R: First value of each range, shape (R,), int64.
        count_R: Length of each range, shape (R,), int64, ≥ 0.
        total: Sum of the counts where it is known, which saves waiting for an accelerator to say it.

    Returns:
        The range that each value belongs to, and the values; both of shape (sum of counts,), int64.
    """
    owner_V = torch.repeat_interleave(count_R, output_size=total)
    first_R = start_R - (count_R.cumsum(0) - count_R)
    return owner_V, first_R.index_select(0, owner_V) + torch.arange(len(owner_V), device=count_R.device)


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
    diagonal_B3 = upper_B33.diagonal(dim1=1, dim2=2)
    sign_B3 = diagonal_B3.sign()
    steps_B33 = torch.eye(3, dtype=torch.float64).expand_as(cell_B33)
    return Lattice(
        move_B36=torch.cat([(upper_B33 * sign_B3.unsqueeze(-1)).mT, steps_B33], dim=2).to(device),
        rotation_B33=(orthogonal_B33 * sign_B3.unsqueeze(1)).to(device),
        period_B3=torch.where(pbc_B3, diagonal_B3.abs(), torch.inf).to(device),
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
    rotated_N3 = (positions_N3.unsqueeze(-1) * per_site(lattice.rotation_B33, structure_N)).sum(1)
    place_N6 = torch.cat([rotated_N3, torch.zeros_like(rotated_N3)], dim=1)
    move_N36 = per_site(lattice.move_B36, structure_N)
    period_N3 = per_site(lattice.period_B3, structure_N)
    for axis in (2, 1, 0):
        steps_N1 = torch.floor(place_N6[:, axis, None] / period_N3[:, axis, None])
        place_N6 = place_N6 - steps_N1 * move_N36[:, axis]
    return Sites(atom_I=torch.arange(len(positions_N3), device=positions_N3.device), place_I6=place_N6)


def images_within(sites: Sites, structure_N: Tensor, lattice: Lattice, low_B3: Tensor, high_B3: Tensor) -> Sites:
    """List the periodic images of some atoms, themselves included, that lie in a rectangular region.

    Args:
        sites: The atoms.
        structure_N: Structure of every atom of the batch, int64.
        lattice: The lattices of the batch.
        low_B3: Lower corner of each structure's region in its triangular frame, Å.
        high_B3: Upper corner.

    Returns:
        The images inside.
    """
    # An open axis is one with a period so long that no image but the atom itself can be inside. It is orthogonal to
    # all lattice vectors, so that what is outside on it cannot come back by steps on another axis.
    region_B33 = torch.stack([low_B3, high_B3, lattice.period_B3.clamp(max=ENDLESS)], dim=2)
    atom_I, place_I6 = sites.atom_I, sites.place_I6
    structure_I = structure_N.index_select(0, atom_I)
    for axis in (2, 1, 0):
        low_I, high_I, period_I = per_site(region_B33[:, axis], structure_I).unbind(1)
        coordinate_I = place_I6[:, axis]
        first_I = ((low_I - coordinate_I) / period_I).ceil().long()
        after_I = ((high_I - coordinate_I) / period_I).floor().long() + 1
        source_I, steps_I = ragged_ranges(first_I, (after_I - first_I).clamp(min=0))
        atom_I, structure_I = atom_I.index_select(0, source_I), structure_I.index_select(0, source_I)
        move_I6 = per_site(lattice.move_B36[:, axis], structure_I)
        place_I6 = place_I6.index_select(0, source_I) + steps_I.unsqueeze(1) * move_I6
    return Sites(atom_I=atom_I, place_I6=place_I6)
