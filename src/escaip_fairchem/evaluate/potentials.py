"""What simulations of many structures ask of a potential, and how a bad structure is kept from stopping the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from escaip_fairchem.errors import EScAIPError
from escaip_fairchem.evaluate.labels import FloatArray


class Evaluation(Protocol):
    """What a potential says of a structure of N atoms."""

    @property
    def energy(self) -> float:
        """Of the whole structure, eV."""

    @property
    def forces(self) -> FloatArray:
        """Shape (N, 3), eV/Å; also of fixed atoms."""

    @property
    def stress(self) -> FloatArray | None:
        """ASE's order and sign (xx, yy, zz, yz, xz, xy; tension is positive), eV/Å³; None without."""


class Potential(Protocol):
    """Energies, forces and possibly stresses of several structures at once."""

    @property
    def has_stress(self) -> bool:
        """Whether evaluations hold stresses."""

    def evaluate(self, structures: Sequence[Atoms]) -> Sequence[Evaluation]:
        """Evaluate structures, in their order.

        Raises:
            EScAIPError: At least one of them cannot be evaluated.
        """


@dataclass(frozen=True, kw_only=True)
class Result:
    """A plain evaluation; see :class:`Evaluation`."""

    energy: float
    forces: FloatArray
    stress: FloatArray | None


class CalculatorPotential:
    """Any of ASE's calculators, a fresh one for every structure, so that nothing depends on what came before.

    Args:
        make: Makes a calculator.
        has_stress: Whether to ask it for stresses.
    """

    def __init__(self, make: Callable[[], BaseCalculator], *, has_stress: bool = True) -> None:
        self.make, self.has_stress = make, has_stress

    def evaluate(self, structures: Sequence[Atoms]) -> list[Result]:
        """Evaluate one after the other."""
        return [self._evaluate(structure) for structure in structures]

    def _evaluate(self, structure: Atoms) -> Result:
        atoms = structure.copy()
        atoms.calc = self.make()
        return Result(
            energy=float(atoms.get_potential_energy()),
            forces=np.asarray(atoms.get_forces(apply_constraint=False), dtype=np.float64),
            stress=np.asarray(atoms.get_stress(), dtype=np.float64) if self.has_stress else None,
        )


REFUSALS = (EScAIPError, ValueError, ArithmeticError, AssertionError, LookupError, RuntimeError)
"""What calculators raise for a structure that they cannot handle; see also `is_of_device`."""
_DEVICES = ("cuda", "cudnn", "cublas", "cusparse", "cusolver", "nvrtc", "nccl", "hip error", "out of memory")


def is_of_device(error: Exception) -> bool:
    """Whether an error is the device's own, so that no other structure will fare better."""
    if isinstance(error, EScAIPError) or not isinstance(error, RuntimeError):
        return False
    text = f"{type(error).__name__} {error}".lower()
    return any(name in text for name in _DEVICES)


def refusal(error: Exception) -> str:
    """Why a structure cannot be evaluated, in one line."""
    text = str(error)
    return " ".join(f"{type(error).__name__}{': ' if text else ''}{text}".split())[:300]


def evaluate_each(potential: Potential, structures: Sequence[Atoms]) -> list[Evaluation | str]:
    """Evaluate structures together; where that fails, in halves, until the ones at fault are alone.

    Args:
        potential: The potential.
        structures: Structures.

    Returns:
        For every structure what the potential says, or in words why it says nothing.
    """
    if not structures:
        return []
    try:
        found = potential.evaluate(structures)
    except REFUSALS as error:
        if is_of_device(error):
            raise
        if len(structures) == 1:
            return [refusal(error)]
        half = len(structures) // 2
        return [*evaluate_each(potential, structures[:half]), *evaluate_each(potential, structures[half:])]
    return [_checked(evaluation) for evaluation in found]


def _checked(evaluation: Evaluation) -> Evaluation | str:
    stress = np.zeros(6) if evaluation.stress is None else evaluation.stress
    values = {"energy": np.asarray(evaluation.energy), "forces": evaluation.forces, "stress": stress}
    bad = [name for name, value in values.items() if not np.isfinite(value).all()]
    return f"predicted {', '.join(bad)} not finite" if bad else evaluation
