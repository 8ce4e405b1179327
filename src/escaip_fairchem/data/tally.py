"""Statistics of data sets of any size: numbers that add up, part by part, without the structures themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from .schema import LARGEST_ATOMIC_NUMBER, FloatArray, FrameTable, IntArray


@dataclass(frozen=True)
class Moments:
    """Number, mean and spread of some values, which sums of squares alone would round away.

    Attributes:
        count: How many.
        mean: Their mean.
        squares: Sum of squared deviations from it.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: FloatArray) -> Moments:
        """Gather them from the finite ones of some values."""
        known = values[np.isfinite(values)]
        if len(known) == 0:
            return cls()
        mean = float(known.mean())
        return cls(len(known), mean, float(((known - mean) ** 2).sum()))

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        if count == 0:
            return self
        distance = other.mean - self.mean
        return Moments(
            count,
            self.mean + distance * other.count / count,
            self.squares + other.squares + distance**2 * self.count * other.count / count,
        )

    def described(self) -> dict[str, float | None]:
        """Mean and standard deviation (that of the whole, not of a sample), for the summary."""
        if self.count == 0:
            return {"mean": None, "spread": None}
        return {"mean": rounded(self.mean), "spread": rounded(np.sqrt(self.squares / self.count))}


def _no_atoms() -> IntArray:
    return np.zeros(LARGEST_ATOMIC_NUMBER + 1, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What a report says about a split.

    Attributes:
        structures: How many.
        smallest: Atoms of the smallest one; 0 where there is none.
        largest: Atoms of the largest one.
        composition: Atoms of every element, shape (119,); entry Z counts element Z.
        energy: Of energies, eV.
        energy_per_atom: Of energies per atom, eV.
        with_forces: Structures that have forces; what follows is about them.
        free_atoms: Atoms that are not fixed.
        force_squares: Sum over free atoms of |F|², (eV/Å)².
        force_absolutes: Sum over free atoms and axes of |F_axis|, eV/Å.
        force_largest: Largest |F| of any atom, eV/Å.
    """

    structures: int = 0
    smallest: int = 0
    largest: int = 0
    composition: IntArray = field(default_factory=_no_atoms)
    energy: Moments = Moments()
    energy_per_atom: Moments = Moments()
    with_forces: int = 0
    free_atoms: int = 0
    force_squares: float = 0.0
    force_absolutes: float = 0.0
    force_largest: float = 0.0

    @classmethod
    def of(cls, table: FrameTable) -> Tally:
        """Gather it from some structures."""
        if len(table) == 0:
            return cls()
        known = np.isfinite(table.force_squares)
        return cls(
            structures=len(table),
            smallest=int(table.natoms.min()),
            largest=int(table.natoms.max()),
            composition=table.composition.sum(axis=0, dtype=np.int64),
            energy=Moments.of(table.energy),
            energy_per_atom=Moments.of(table.energy / table.natoms),
            with_forces=int(known.sum()),
            free_atoms=int(table.free_atoms[known].sum()),
            force_squares=float(table.force_squares[known].sum()),
            force_absolutes=float(table.force_absolutes[known].sum()),
            force_largest=float(table.force_largest[known].max(initial=0.0)),
        )

    def __add__(self, other: Tally) -> Tally:
        if 0 in (self.structures, other.structures):
            return self if other.structures == 0 else other
        return Tally(
            smallest=min(self.smallest, other.smallest),
            largest=max(self.largest, other.largest),
            force_largest=max(self.force_largest, other.force_largest),
            **{name: getattr(self, name) + getattr(other, name) for name in _SUMS},
        )

    def described(self, referenced: Moments | None = None) -> dict[str, Any]:
        """Describe the split as `split_summary` does for one that is in memory.

        Args:
            referenced: Of energies minus their references; None: there are no references.
        """
        if self.structures == 0:
            return {"structures": 0}
        components = 3 * self.free_atoms
        energy = self.energy.described()
        return {
            "structures": self.structures,
            "atoms": {
                "smallest": self.smallest,
                "mean": rounded(self.composition.sum() / self.structures),
                "largest": self.largest,
            },
            "elements": {
                chemical_symbols[number]: int(self.composition[number]) for number in np.flatnonzero(self.composition)
            },
            "energy_eV": energy,
            "referenced_energy_eV": energy if referenced is None else referenced.described(),
            "energy_per_atom_eV": self.energy_per_atom.described(),
            "force_component_rms_eV_per_A": rounded(np.sqrt(self.force_squares / components)) if components else None,
            "force_component_mean_absolute_eV_per_A": rounded(self.force_absolutes / components)
            if components
            else None,
            "force_largest_eV_per_A": rounded(self.force_largest),
            "with_energy": self.energy.count,
            "with_forces": self.with_forces,
        }

    def as_json(self) -> dict[str, Any]:
        """Turn it into what JSON can hold, without loss."""
        return {**asdict(self), "composition": self.composition.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Tally:
        """Undo `as_json`."""
        special = {
            "composition": np.array(content["composition"], dtype=np.int64),
            "energy": Moments(**content["energy"]),
            "energy_per_atom": Moments(**content["energy_per_atom"]),
        }
        return cls(**{**content, **special})


_SUMS = tuple(name for name in Tally.__dataclass_fields__ if name not in ("smallest", "largest", "force_largest"))


def rounded(value: Any) -> float:
    """Round to eight digits, for people."""
    return float(f"{float(value):.8g}")
