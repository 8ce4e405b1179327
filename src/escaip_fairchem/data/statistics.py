"""Energy references per element and normalisers, fitted to the training split, in the units of the labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .schema import FloatArray, FrameTable

# Spreads below this (eV or eV/Å) are rounding noise, and dividing by them would magnify it.
SMALLEST_SPREAD = 1e-6


def fit_element_references(composition: NDArray[np.uint32], energy: FloatArray) -> FloatArray:
    """Fit one energy per element so that their sums come closest to the energies, in the sense of least squares.

    Structures of equal composition enter as their mean, weighted by their number: the same solution as with one
    equation each, in a fraction of the memory. Where compositions do not determine the references (a single
    compound, say), the solution of least norm is taken. Elements that never occur get 0.

    Args:
        composition: Atoms of every element, shape (n, 119).
        energy: Total energies, shape (n,), eV, all finite.

    Returns:
        Shape (119,), eV per atom, float64; entry Z belongs to element Z.
    """
    references = np.zeros(composition.shape[1])
    if len(energy) == 0:
        return references
    distinct, member, count = np.unique(composition, axis=0, return_inverse=True, return_counts=True)
    mean = np.bincount(member.reshape(-1), weights=energy) / count
    present = distinct.any(axis=0)
    weight = np.sqrt(count)
    matrix = distinct[:, present].astype(np.float64) * weight[:, None]
    references[present] = np.linalg.lstsq(matrix, mean * weight, rcond=None)[0]
    return references


@dataclass(frozen=True)
class Normalizer:
    """Mean and spread that fairchem subtracts and divides by.

    Attributes:
        mean: Subtracted from the target.
        rmsd: What is left is divided by this.
        degenerate: The labels have no spread to speak of, so ``rmsd`` was set to 1.
    """

    mean: float
    rmsd: float
    degenerate: bool = False

    @classmethod
    def of(cls, mean: float, rmsd: float) -> Normalizer:
        """Build it, with 1 in place of a spread that is nothing but rounding."""
        if not rmsd > SMALLEST_SPREAD:
            return cls(mean, 1.0, degenerate=True)
        return cls(mean, rmsd)


def fit_normalizers(table: FrameTable, references: FloatArray | None) -> dict[str, Normalizer]:
    """Fit mean and spread of every target that all structures of the table carry.

    - ``energy``: mean and sample standard deviation of E − Σ references, as fairchem itself fits it;
    - ``forces``: mean 0, root mean square of the components over free atoms, the ones that the loss sees;
    - ``stress``: mean 0, root mean square of the nine components;
    - ``stress_isotropic``, ``stress_anisotropic``: the same labels as fairchem's ``decompose_tensor`` gives them, the
      first being trace/√3 and the second the five components that are left.

    Args:
        table: The training split.
        references: Energy per element, shape (119,), or None.

    Returns:
        By the target's name; targets that some structure lacks are absent.
    """
    if len(table) == 0:
        return {}
    normalizers = {}
    if np.isfinite(table.energy).all():
        energy = referenced_energy(table, references)
        spread = float(energy.std(ddof=1)) if len(energy) > 1 else 0.0
        normalizers["energy"] = Normalizer.of(float(energy.mean()), spread)
    if np.isfinite(table.force_squares).all():
        components = max(3 * int(table.free_atoms.sum()), 1)
        normalizers["forces"] = Normalizer.of(0.0, float(np.sqrt(table.force_squares.sum() / components)))
    if np.isfinite(table.stress).all():
        normalizers |= _stress_normalizers(table.stress)
    return normalizers


def shared_scale(normalizers: Mapping[str, Normalizer]) -> dict[str, Normalizer]:
    """Give every target the spread of the forces.

    A conservative model differentiates its *normalised* energy, so energy, forces and stress must be divided by one
    and the same number, or the forces that fairchem reports are not the derivative of the energy that it reports.
    """
    scale = normalizers["forces"].rmsd
    kept = {name: value for name, value in normalizers.items() if name in ("energy", "forces", "stress")}
    return {name: Normalizer(value.mean if name == "energy" else 0.0, scale) for name, value in kept.items()}


def referenced_energy(table: FrameTable, references: FloatArray | None) -> FloatArray:
    """Compute E − Σ references of every structure, shape (n,), eV."""
    if references is None:
        return table.energy
    return table.energy - table.composition.astype(np.float64) @ references


def float32_loss(energy: FloatArray) -> float:
    """Return the largest rounding error (eV) that float32, in which fairchem collates energies, makes."""
    finite = energy[np.isfinite(energy)]
    return float(np.abs(finite - finite.astype(np.float32)).max(initial=0.0))


def _stress_normalizers(stress: FloatArray) -> dict[str, Normalizer]:
    squares = (stress[:, :3] ** 2).sum(axis=1) + 2 * (stress[:, 3:] ** 2).sum(axis=1)
    isotropic = stress[:, :3].sum(axis=1) / np.sqrt(3)
    anisotropic = np.clip(squares - isotropic**2, 0.0, None)
    spread = float(isotropic.std(ddof=1)) if len(isotropic) > 1 else 0.0
    return {
        "stress": Normalizer.of(0.0, float(np.sqrt(squares.mean() / 9))),
        "stress_isotropic": Normalizer.of(float(isotropic.mean()), spread),
        "stress_anisotropic": Normalizer.of(0.0, float(np.sqrt(anisotropic.mean() / 5))),
    }
