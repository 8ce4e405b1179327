"""A checkpoint as a potential for many structures at once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from ase import Atoms
from fairchem.core.datasets import data_list_collater

from escaip_fairchem.errors import CheckpointError, DataError
from escaip_fairchem.plugin.calculator import OCPCalculator, voigt


class Prediction(NamedTuple):
    """What the model says of a structure of N atoms.

    Attributes:
        energy: eV.
        forces: Shape (N, 3), eV/Å.
        stress: ASE's order and sign, eV/Å³; None for models without.
    """

    energy: float
    forces: npt.NDArray[np.float64]
    stress: npt.NDArray[np.float64] | None


class CheckpointPotential:
    """Predictions of a checkpoint for batches of structures.

    Args:
        checkpoint: The file.
        cpu: Whether to run on the CPU.
        trusted: Whether the file may hold other objects than tensors and plain values; see :class:`OCPCalculator`.
        skin: How far beyond the neighbours atoms are remembered between calls, Å; of use only where the same
            structures come again and cells stay.

    Raises:
        CheckpointError: The checkpoint is missing or damaged, or predicts no energy or no forces.
    """

    def __init__(self, checkpoint: Path, *, cpu: bool = True, trusted: bool = False, skin: float = 0.0) -> None:
        self.calculator = OCPCalculator(checkpoint_path=checkpoint, cpu=cpu, trusted=trusted, skin=skin)
        self.outputs = frozenset(self.calculator.trainer.config["outputs"])
        missing = {"energy", "forces"} - self.outputs
        if missing:
            raise CheckpointError(
                f"{checkpoint}: predicts {', '.join(sorted(self.outputs))}; simulations need "
                f"{' and '.join(sorted(missing))}"
            )

    @property
    def has_stress(self) -> bool:
        """Whether the model predicts stresses."""
        return "stress" in self.outputs

    def evaluate(self, structures: Sequence[Atoms]) -> list[Prediction]:
        """Predict structures in one batch.

        Raises:
            DataError: One of them cannot be used, or they do not fit into the GPU's memory together.
            NonFiniteError: A prediction is not finite.
        """
        graphs = [self.calculator.a2g.convert(atoms, sid=str(row)) for row, atoms in enumerate(structures)]
        batch = data_list_collater(graphs, otf_graph=True)
        try:
            predictions = self.calculator.trainer.predict(batch, per_image=False, disable_tqdm=True)
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            count = sum(map(len, structures))
            warnings.warn(f"{count} atoms do not fit into the GPU's memory at once; choose fewer", stacklevel=2)
            raise DataError(f"{count} atoms do not fit into the GPU's memory at once") from error
        energies = _array(predictions["energy"]).reshape(-1)
        forces = np.split(_array(predictions["forces"]), np.cumsum([len(atoms) for atoms in structures])[:-1])
        stresses: Sequence[npt.NDArray[np.float64] | None] = [None] * len(structures)
        if self.has_stress:
            stresses = [voigt(stress) for stress in _array(predictions["stress"]).reshape(-1, 3, 3)]
        return [
            Prediction(float(energy), own, stress)
            for energy, own, stress in zip(energies, forces, stresses, strict=True)
        ]


def _array(values: Any) -> npt.NDArray[np.float64]:
    array: npt.NDArray[np.float64] = values.detach().cpu().numpy().astype(np.float64)
    return array
