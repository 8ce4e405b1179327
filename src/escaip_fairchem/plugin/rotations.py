"""Predictions for one structure in many orientations, a batch of them at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from fairchem.core.preprocessing import AtomsToGraphs
from numpy.typing import NDArray
from torch import Tensor

from escaip_fairchem.plugin.inference import Inference
from escaip_fairchem.plugin.prepared import seal
from escaip_fairchem.plugin.trainer.loaders import Collater
from escaip_fairchem.plugin.trainer.training_set import turned


def predict_rotated(
    inference: Inference, atoms: Atoms, rotations_R33: Tensor, *, batch_size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predict energies and forces of a structure turned around.

    Args:
        inference: A model of energies and forces.
        atoms: The structure; positions and cell vectors are turned together.
        rotations_R33: Rotation matrices, shape (R, 3, 3), float64; they act on columns.
        batch_size: Orientations at a time.

    Returns:
        Energies (R,), eV, and forces (R, N, 3), eV/Å, in the frame of each orientation.

    Raises:
        NonFiniteError: A prediction is not finite.
    """
    sample = AtomsToGraphs(r_energy=False, r_forces=False, r_distances=False, r_pbc=True, r_edges=False).convert(atoms)
    sample.sid = str(atoms.info.get("sid", atoms.get_chemical_formula()))
    collate = Collater(stored_edges=False)
    energies: list[NDArray[np.float64]] = []
    forces: list[NDArray[np.float64]] = []
    for part in _parts(rotations_R33, batch_size):
        batch = seal(collate([turned(sample, rotation_33) for rotation_33 in part]))
        found = inference.trainer.predict(batch, per_image=False, disable_tqdm=True)
        energies.append(found["energy"].double().cpu().numpy().reshape(-1))
        forces.append(found["forces"].double().cpu().numpy().reshape(len(part), len(atoms), 3))
    return np.concatenate(energies), np.concatenate(forces)


def _parts(rotations_R33: Tensor, size: int) -> Sequence[Tensor]:
    parts: Sequence[Tensor] = torch.split(rotations_R33, size)
    return parts
