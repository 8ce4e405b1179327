"""One labelled structure, and the table of numbers that statistics, splits and reports are made from.

Units everywhere in this package: Å, eV, eV/Å, and eV/Å³ with ASE's sign for stress (tension is positive).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.geometry import complete_cell
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

LARGEST_ATOMIC_NUMBER = 118


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A structure with its labels, as it is stored.

    Attributes:
        sid: Identifies the system. A string in ASE-LMDB; in the classic format a number where it is one.
        fid: Number of the frame within the system. ``(sid, fid)`` is unique in a data set.
        numbers: Atomic numbers, shape (N,).
        positions: Shape (N, 3), Å.
        cell: Rows are the cell vectors, shape (3, 3), Å. Rows may be zero where there is no periodicity.
        pbc: Periodicity along each cell vector, shape (3,).
        tags: Shape (N,). In OC20: 0 below the surface, 1 at the surface, 2 adsorbate.
        fixed: True for atoms held in place, shape (N,).
        energy: eV, or None.
        forces: Shape (N, 3), eV/Å, with the real forces of fixed atoms; or None.
        stress: xx, yy, zz, yz, xz, xy, shape (6,), eV/Å³, tension positive; or None.
        info: Further values that travel with the structure.
    """

    sid: str
    fid: int
    numbers: IntArray
    positions: FloatArray
    cell: FloatArray
    pbc: BoolArray
    tags: IntArray
    fixed: BoolArray
    energy: float | None = None
    forces: FloatArray | None = None
    stress: FloatArray | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    def to_atoms(self) -> Atoms:
        """Build ASE's object, with the labels as results of a ``SinglePointCalculator``."""
        atoms = Atoms(numbers=self.numbers, positions=self.positions, cell=self.cell, pbc=self.pbc, tags=self.tags)
        atoms.info.update({**self.info, "sid": self.sid, "fid": self.fid})
        if self.fixed.any():
            atoms.set_constraint(FixAtoms(mask=self.fixed))
        results = {"energy": self.energy, "forces": self.forces, "stress": self.stress}
        atoms.calc = SinglePointCalculator(atoms, **{key: value for key, value in results.items() if value is not None})
        return atoms


def fixed_mask(atoms: Atoms) -> BoolArray:
    """Tell which atoms every ``FixAtoms`` constraint of a structure holds, shape (N,)."""
    mask = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            mask[constraint.index] = True
    return mask


def spanning_cell(cell: FloatArray, pbc: BoolArray) -> FloatArray:
    """Put vectors at right angles to the periodic ones, which are independent, in place of all others."""
    return np.asarray(complete_cell(np.where(pbc[:, None], cell, 0.0)), dtype=np.float64)


def usable_cell(cell: FloatArray, pbc: BoolArray) -> FloatArray:
    """Return the cell as fairchem can read it: it inverts cells, whether they are periodic or not.

    Vectors without periodicity become zero, which stands for "none", where the cell has no volume because of them.
    """
    vectors = cell[cell.any(axis=1)]
    if len(vectors) == 0 or not np.isfinite(cell).all() or np.linalg.matrix_rank(vectors) == len(vectors):
        return cell
    return np.where(pbc[:, None], cell, 0.0)


@dataclass(frozen=True, kw_only=True)
class FrameTable:
    """Numbers about n structures, one row each; NaN where a label is missing.

    Attributes:
        sid: Shape (n,), strings.
        fid: Shape (n,).
        natoms: Atoms per structure, shape (n,).
        composition: Atoms of every element, shape (n, 119); column Z counts element Z.
        energy: eV, shape (n,).
        free_atoms: Atoms that are not fixed, shape (n,).
        force_squares: Sum over free atoms of |F|², (eV/Å)², shape (n,).
        force_absolutes: Sum over free atoms and axes of |F_axis|, eV/Å, shape (n,).
        force_largest: Largest |F| of any atom, eV/Å, shape (n,).
        stress: xx, yy, zz, yz, xz, xy, eV/Å³, shape (n, 6).
    """

    sid: NDArray[np.str_]
    fid: IntArray
    natoms: IntArray
    composition: NDArray[np.uint32]
    energy: FloatArray
    free_atoms: IntArray
    force_squares: FloatArray
    force_absolutes: FloatArray
    force_largest: FloatArray
    stress: FloatArray

    def __len__(self) -> int:
        return len(self.natoms)

    def take(self, rows: IntArray) -> FrameTable:
        """Select rows, in the order asked for."""
        return FrameTable(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})

    @classmethod
    def of(cls, structures: Sequence[Structure]) -> FrameTable:
        """Gather the numbers of some structures."""
        rows = [numbers_of(structure) for structure in structures]
        columns = {name: [row[name] for row in rows] for name in cls.__dataclass_fields__}
        return cls.from_columns(columns)

    @classmethod
    def from_columns(cls, columns: Mapping[str, Sequence[Any]]) -> FrameTable:
        """Build the table from one sequence per column; no rows at all are fine."""
        count = len(columns["natoms"])
        shapes = {"composition": (count, LARGEST_ATOMIC_NUMBER + 1), "stress": (count, 6)}
        kinds: dict[str, Any] = {"sid": np.str_, "composition": np.uint32}
        kinds |= dict.fromkeys(("fid", "natoms", "free_atoms"), np.int64)
        arrays = {
            name: np.asarray(columns[name], dtype=kinds.get(name, np.float64)).reshape(shapes.get(name, (count,)))
            for name in cls.__dataclass_fields__
        }
        return cls(**arrays)

    @classmethod
    def concatenate(cls, tables: Sequence[FrameTable]) -> FrameTable:
        """Put tables one after the other."""
        if not tables:
            return cls.of([])
        return cls(
            **{name: np.concatenate([getattr(table, name) for table in tables]) for name in cls.__dataclass_fields__}
        )


def numbers_of(structure: Structure) -> dict[str, Any]:
    """Return a structure's row of the table, by column."""
    nothing = float("nan")
    squares = absolutes = largest = nothing
    if structure.forces is not None:
        free = structure.forces[~structure.fixed]
        squares, absolutes = float((free**2).sum()), float(np.abs(free).sum())
        largest = float(np.linalg.norm(structure.forces, axis=1).max(initial=0.0))
    return {
        "sid": structure.sid,
        "fid": structure.fid,
        "natoms": len(structure),
        "composition": np.bincount(structure.numbers, minlength=LARGEST_ATOMIC_NUMBER + 1).astype(np.uint32),
        "energy": nothing if structure.energy is None else structure.energy,
        "free_atoms": int((~structure.fixed).sum()),
        "force_squares": squares,
        "force_absolutes": absolutes,
        "force_largest": largest,
        "stress": np.full(6, nothing) if structure.stress is None else structure.stress,
    }
