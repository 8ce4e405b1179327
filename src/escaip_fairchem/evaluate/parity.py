"""Predictions beside labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from escaip_fairchem.errors import DataError
from escaip_fairchem.evaluate.labels import FloatArray, Labels


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Labels and predictions of B structures, forces of their n free atoms.

    Attributes:
        energy_label: Shape (B,), eV.
        energy_predicted: Shape (B,), eV.
        forces_label: Shape (n, 3), eV/Å.
        forces_predicted: Shape (n, 3), eV/Å.
    """

    energy_label: FloatArray
    energy_predicted: FloatArray
    forces_label: FloatArray
    forces_predicted: FloatArray

    @property
    def energy_mae(self) -> float:
        """Mean absolute error of the energy, eV."""
        return float(np.abs(self.energy_predicted - self.energy_label).mean())

    @property
    def forces_mae(self) -> float:
        """Mean absolute error of a force component, eV/Å."""
        return float(np.abs(self.forces_predicted - self.forces_label).mean())

    @property
    def forces_ratio(self) -> float:
        """Error of the forces in units of the error that predicting zero makes."""
        return self.forces_mae / mean_absolute_force(self.forces_label)


def mean_absolute_force(forces: FloatArray) -> float:
    """Mean absolute force component (eV/Å): the mean absolute error of predicting zero."""
    return float(np.abs(forces).mean())


def free_forces(labels: Mapping[str, Labels]) -> FloatArray:
    """Forces (eV/Å) of the free atoms of all structures, shape (n, 3)."""
    return np.concatenate([entry.forces[entry.free] for entry in labels.values()])


def read_predictions(path: Path) -> dict[str, tuple[float, FloatArray]]:
    """Read the energies and forces that ``fairchem --mode predict`` wrote.

    Args:
        path: The ``.npz`` file, with the forces of all atoms.

    Returns:
        Energy (eV) and forces (N, 3) (eV/Å) by identifier.
    """
    with np.load(path) as arrays:
        forces = np.split(arrays["forces"].astype(np.float64), arrays["chunk_idx"])
        energies = arrays["energy"].astype(np.float64).reshape(-1)
        return {
            str(name): (float(energy), rows) for name, energy, rows in zip(arrays["ids"], energies, forces, strict=True)
        }


def join(labels: Mapping[str, Labels], predictions: Mapping[str, tuple[float, FloatArray]]) -> Parity:
    """Put predictions beside the labels of the same structures.

    Raises:
        DataError: A structure was not predicted, or predicted with another number of atoms.
    """
    for name, entry in labels.items():
        if name not in predictions or predictions[name][1].shape != entry.forces.shape:
            found = predictions[name][1].shape if name in predictions else "nothing"
            raise DataError(f"structure {name}: forces of shape {entry.forces.shape} expected, predicted: {found}")
    return Parity(
        energy_label=np.array([entry.energy for entry in labels.values()]),
        energy_predicted=np.array([predictions[name][0] for name in labels]),
        forces_label=free_forces(labels),
        forces_predicted=np.concatenate([predictions[name][1][entry.free] for name, entry in labels.items()]),
    )
