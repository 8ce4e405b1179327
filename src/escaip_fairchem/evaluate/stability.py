"""Whether a molecule is still what it was: bonds that broke, atoms that went far away."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import find_mic

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.evaluate.labels import FloatArray

BOND_FACTOR = 1.2
"""Atoms are bonded if they are closer than the sum of their covalent radii times this."""


@dataclass(frozen=True, kw_only=True)
class StabilityLimits:
    """What counts as broken.

    Attributes:
        bond_change: A bond longer or shorter than in the reference geometry by more than this, Å.
        displacement: An atom farther than this from its place in the reference geometry, once that is moved and
            rotated onto the structure (rotated only where nothing is periodic), Å.

    Raises:
        ConfigError: A limit is not positive.
    """

    bond_change: float = 0.5
    displacement: float = 10.0

    def __post_init__(self) -> None:
        for name in ("bond_change", "displacement"):
            if not getattr(self, name) > 0.0:
                raise ConfigError(f"{name}: {getattr(self, name)} must be a positive number of Å; inf sets no limit")


class StabilityCheck:
    """Compares structures with a reference geometry.

    Args:
        reference: The geometry; its bonds are those to be kept.
        limits: What counts as broken.
    """

    def __init__(self, reference: Atoms, limits: StabilityLimits) -> None:
        self.reference, self.limits = reference.copy(), limits
        first, second = np.triu_indices(len(reference), k=1)
        lengths = self._lengths(reference.positions[second] - reference.positions[first])
        radii = covalent_radii[reference.numbers]
        bonded = lengths < BOND_FACTOR * (radii[first] + radii[second])
        self.first, self.second, self.lengths = first[bonded], second[bonded], lengths[bonded]

    @property
    def bonds(self) -> int:
        """Number of bonds of the reference geometry."""
        return len(self.first)

    def problem(self, positions_N3: FloatArray) -> str:
        """Say what is broken, in words; nothing if nothing is.

        Args:
            positions_N3: Å.
        """
        if not np.isfinite(positions_N3).all():
            return "positions are not finite"
        if self.bonds:
            change = self._lengths(positions_N3[self.second] - positions_N3[self.first]) - self.lengths
            worst = int(np.abs(change).argmax())
            if abs(change[worst]) > self.limits.bond_change:
                symbols = self.reference.symbols
                i, j = int(self.first[worst]), int(self.second[worst])
                return (
                    f"bond {symbols[i]}{i}-{symbols[j]}{j} changed from {self.lengths[worst]:.3f} to "
                    f"{self.lengths[worst] + change[worst]:.3f} Å"
                )
        displacement = self._displacements(positions_N3)
        farthest = int(displacement.argmax())
        if displacement[farthest] > self.limits.displacement:
            return f"atom {self.reference.symbols[farthest]}{farthest} is {displacement[farthest]:.2f} Å from its place"
        return ""

    def _lengths(self, vectors: FloatArray) -> FloatArray:
        if self.reference.pbc.any():
            return np.asarray(find_mic(vectors, self.reference.cell, self.reference.pbc)[1])
        return np.asarray(np.linalg.norm(vectors, axis=1))

    def _displacements(self, positions_N3: FloatArray) -> FloatArray:
        # Both about their centres of mass: these drift, as nothing holds them.
        masses = self.reference.get_masses()
        here, there = (
            positions - np.average(positions, axis=0, weights=masses)
            for positions in (positions_N3, self.reference.positions)
        )
        if not self.reference.pbc.any() and len(here) > 1:
            there = there @ _rotation(there, here)
        return np.asarray(np.linalg.norm(here - there, axis=1))


def _rotation(start_N3: FloatArray, end_N3: FloatArray) -> FloatArray:
    """The rotation R for which ``start @ R`` is nearest to ``end`` (Kabsch), shape (3, 3)."""
    left, _, right = np.linalg.svd(start_N3.T @ end_N3)
    proper = np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    return np.asarray(left @ proper @ right)
