"""How far a model's predictions turn with the structure: forces and energies of rotated structures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from ase import Atoms

from escaip_fairchem.errors import ConfigError, DataError
from escaip_fairchem.evaluate.labels import FloatArray
from escaip_fairchem.evaluate.result_table import Column, ResultTable, Row
from escaip_fairchem.evaluate.structure_files import StructureFiles
from escaip_fairchem.plugin.inference import Inference
from escaip_fairchem.plugin.rotations import predict_rotated
from escaip_fairchem.plugin.trainer.training_set import random_rotation

Axis = Literal["x", "y", "z", "random"]
AXES: tuple[Axis, ...] = ("x", "y", "z", "random")
PER_AXIS = 32
"""Rotations about each axis, and as many at random."""
SMALLEST_FORCE = 1e-5
"""Forces below this, eV/Å, have no direction to compare: they are zero by symmetry, but for rounding."""

COLUMNS = (
    Column(key="structures", heading="structures", whole=True),
    Column(key="rotations", heading="rotations", whole=True),
    Column(key="forces_cosine", heading="force cosine", digits=4),
    Column(key="forces_mae", heading="force MAE", unit="meV/Å", digits=2),
    Column(key="energy_std", heading="energy std", unit="meV/atom", digits=3),
    Column(key="energy_range", heading="energy range", unit="meV/atom", digits=3),
)
NOTES = (
    "forces of rotated structures, rotated back, beside those of the structure as it is: mean cosine similarity, and "
    "mean absolute difference of a component, over all atoms; atoms with forces below 1e-5 eV/Å have no cosine",
    "energies over all orientations: standard deviation, and largest minus smallest; means over the structures",
)


@dataclass(frozen=True, kw_only=True)
class RotationErrors:
    """What rotations about one axis did to the predictions of one structure.

    Attributes:
        structure: Its name.
        axis: What it was rotated about.
        rotations: How often.
        forces_cosine: Mean cosine similarity; None where no force is large enough.
        forces_mae: Mean absolute difference of a component, meV/Å.
        energy_std: Standard deviation of the energy over all orientations, meV/atom.
        energy_range: Its largest minus its smallest value, meV/atom.
    """

    structure: str
    axis: Axis
    rotations: int
    forces_cosine: float | None
    forces_mae: float
    energy_std: float
    energy_range: float


def rotations_about(axis: Axis, *, seed: int) -> torch.Tensor:
    """Rotation matrices, shape (PER_AXIS, 3, 3), float64, acting on columns.

    About an axis, angles are spread evenly; they lie between those by which crystals map onto themselves. Random
    rotations are drawn evenly from all.
    """
    if axis == "random":
        generator = torch.Generator().manual_seed(seed)
        return torch.stack([random_rotation(generator) for _ in range(PER_AXIS)])
    place = AXES.index(axis)
    first, second = (place + 1) % 3, (place + 2) % 3
    angles = 2.0 * torch.pi * (torch.arange(PER_AXIS, dtype=torch.float64) + 0.5) / PER_AXIS
    matrices = torch.zeros(PER_AXIS, 3, 3, dtype=torch.float64)
    matrices[:, place, place] = 1.0
    matrices[:, first, first] = matrices[:, second, second] = angles.cos()
    matrices[:, second, first] = angles.sin()
    matrices[:, first, second] = -angles.sin()
    return matrices


def compare(
    energies: FloatArray, forces: FloatArray, rotations: FloatArray, *, structure: str, axis: Axis
) -> RotationErrors:
    """Compare predictions in R orientations, of which the first is the structure as it is.

    Args:
        energies: Shape (R,), eV.
        forces: In the frame of each orientation, shape (R, N, 3), eV/Å.
        rotations: The orientations, shape (R, 3, 3), acting on columns; the first is the identity.
        structure: Name of the structure.
        axis: What it was rotated about.
    """
    back = forces @ rotations  # the inverse of a rotation on columns, written for rows
    first, others = back[0], back[1:]
    length, lengths = np.linalg.norm(first, axis=-1), np.linalg.norm(others, axis=-1)
    usable = (length > SMALLEST_FORCE) & (lengths > SMALLEST_FORCE)
    cosines = (others * first).sum(-1)[usable] / (lengths * length)[usable]
    per_atom = 1000.0 * energies / len(first)
    return RotationErrors(
        structure=structure,
        axis=axis,
        rotations=len(others),
        forces_cosine=float(cosines.mean()) if cosines.size else None,
        forces_mae=1000.0 * float(np.abs(others - first).mean()),
        energy_std=float(per_atom.std()),
        energy_range=float(per_atom.max() - per_atom.min()),
    )


def rotation_errors(
    inference: Inference, structures: Mapping[str, Atoms], *, seed: int, batch_size: int
) -> list[RotationErrors]:
    """Rotate every structure about x, y and z and at random, and compare.

    Args:
        inference: A model of energies and forces.
        structures: By name.
        seed: Decides the random rotations.
        batch_size: Orientations that are computed at a time.

    Raises:
        ConfigError: The model does not predict both, or the batch size cannot be used.
    """
    inference.require_outputs("energy", "forces")
    if batch_size < 1:
        raise ConfigError(f"--batch-size {batch_size}: must be at least 1")
    identity = torch.eye(3, dtype=torch.float64)[None]
    turns = torch.cat([identity, *(rotations_about(axis, seed=seed) for axis in AXES)])
    found = []
    for name, atoms in structures.items():
        energies, forces = predict_rotated(inference, atoms, turns, batch_size=batch_size)
        for number, axis in enumerate(AXES):
            rows = [0, *range(1 + number * PER_AXIS, 1 + (number + 1) * PER_AXIS)]
            found.append(compare(energies[rows], forces[rows], turns[rows].numpy(), structure=name, axis=axis))
    return found


def read_structures(path: Path, limit: int | None = None, *, form: str | None = None) -> dict[str, Atoms]:
    """Read structures from whatever simulations start from too.

    Args:
        path: A file, or a folder, for example with converted data (``*.aselmdb``, ``*.lmdb``).
        limit: Take this many at most, the first ones.
        form: Name of the format of the files; None recognises each.

    Returns:
        By name: number, and the entry ``sid`` of their ``info`` or the formula.

    Raises:
        DataError: There is nothing, or something that cannot be read or has no atoms.
    """
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder of structures; give converted data (*.aselmdb, *.lmdb), or what ASE reads "
            "(extxyz, traj, cif, …)"
        )
    if limit is not None and limit < 1:
        raise DataError(f"--limit {limit}: must be at least 1")
    found: dict[str, Atoms] = {}
    for item in StructureFiles([str(path)], exclude=None, form=form, limit=limit):
        if item.atoms is None or not len(item.atoms):
            what = "has no atoms" if item.atoms is not None else item.problem
            raise DataError(f"{path}: structure {item.number} ({item.place}): {what}; remove it")
        found[f"{item.number}:{item.atoms.info.get('sid', item.atoms.get_chemical_formula())}"] = item.atoms
    if not found:
        raise DataError(f"{path}: holds no structure")
    return found


def table_by_axis(errors: Sequence[RotationErrors]) -> ResultTable:
    """One row per axis, means over the structures, and one of all rotations."""
    rows = [Row(label=axis, values=_mean([error for error in errors if error.axis == axis])) for axis in AXES]
    rows.append(Row(label="all", values=_mean(errors), summary=True))
    return ResultTable(title="Rotated structures", label="axis", columns=COLUMNS, rows=rows, notes=NOTES)


def table_by_structure(errors: Sequence[RotationErrors]) -> ResultTable:
    """One row per structure and axis."""
    rows = [Row(label=f"{error.structure} {error.axis}", values=_mean([error])) for error in errors]
    return ResultTable(title="Rotated structures", label="structure and axis", columns=COLUMNS, rows=rows, notes=NOTES)


def _mean(errors: Sequence[RotationErrors]) -> dict[str, float | int | None]:
    cosines = [error.forces_cosine for error in errors if error.forces_cosine is not None]
    return {
        "structures": len({error.structure for error in errors}),
        "rotations": sum(error.rotations for error in errors),
        "forces_cosine": float(np.mean(cosines)) if cosines else None,
        **{
            key: float(np.mean([getattr(error, key) for error in errors]))
            for key in ("forces_mae", "energy_std", "energy_range")
        },
    }
