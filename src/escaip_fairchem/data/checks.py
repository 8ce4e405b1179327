"""What makes a structure unusable, each reason with the numbers that show it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from ase.data import chemical_symbols

from escaip_fairchem.errors import DataError, nearest

from . import defaults
from .distances import closest_pair
from .schema import LARGEST_ATOMIC_NUMBER, Structure

LABELS = ("energy", "forces", "stress")


class Reason(str, Enum):
    """Why a structure, or a whole file, is not in the data set."""

    UNREADABLE_FILE = "unreadable file"
    UNREADABLE_FRAME = "unreadable frame"
    EMPTY = "no atoms"
    UNKNOWN_ELEMENT = "unknown element"
    NOT_SELECTED = "outside the selection"
    BAD_CELL = "periodic without a cell"
    MALFORMED = "malformed label"
    NOT_FINITE = "not finite"
    MISSING_ENERGY = "missing energy"
    MISSING_FORCES = "missing forces"
    MISSING_STRESS = "missing stress"
    OVERLAP = "overlapping atoms"
    LARGE_FORCE = "force above the limit"
    MISSING_PARTNER = "missing partner file"
    COUNTS_DIFFER = "frames and lines differ"
    MALFORMED_LINE = "malformed line"
    DUPLICATE = "duplicate id"
    MALFORMED_RECORD = "malformed record"
    UNEXPECTED = "unexpected error"


@dataclass(frozen=True)
class Problem:
    """One reason and its numbers."""

    reason: Reason
    detail: str


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a usable structure must have.

    Attributes:
        require: Labels that must be there.
        min_distance: Two atoms closer than this (Å), images included, overlap. 0 accepts any distance.
        max_force: No atom may feel a larger |F| (eV/Å). Infinity accepts any force.
        elements: Atomic numbers that may occur; None accepts any.
        neutral: The total charge, which is among ``info`` as ``charge``, must be known and zero.
    """

    require: tuple[str, ...] = defaults.REQUIRE
    min_distance: float = defaults.MIN_DISTANCE
    max_force: float = defaults.MAX_FORCE
    elements: tuple[int, ...] | None = None
    neutral: bool = False

    def __post_init__(self) -> None:
        for label in self.require:
            if label not in LABELS:
                raise DataError(f"cannot require {label!r}{nearest(label, LABELS)}")
        if not self.min_distance >= 0 or not self.max_force > 0:
            raise DataError(
                f"--min-distance must be at least 0 and --max-force above 0, "
                f"got {self.min_distance} and {self.max_force}"
            )


def find_problem(structure: Structure, limits: Limits) -> Problem | None:
    """Return the first thing that makes a structure unusable, or None."""
    for check in (_check_contents, _check_selection, _check_finite, _check_labels, _check_distances, _check_forces):
        problem = check(structure, limits)
        if problem is not None:
            return problem
    return None


def _check_contents(structure: Structure, limits: Limits) -> Problem | None:
    if len(structure) == 0:
        return Problem(Reason.EMPTY, "the structure is empty")
    odd = (structure.numbers < 1) | (structure.numbers > LARGEST_ATOMIC_NUMBER)
    if odd.any():
        atom = int(np.argmax(odd))
        return Problem(Reason.UNKNOWN_ELEMENT, f"atom {atom} has atomic number {structure.numbers[atom]}")
    return None


def _check_selection(structure: Structure, limits: Limits) -> Problem | None:
    if limits.elements is not None:
        others = set(structure.numbers.tolist()) - set(limits.elements)
        if others:
            symbols = ", ".join(chemical_symbols[number] for number in sorted(others))
            return Problem(Reason.NOT_SELECTED, f"holds {symbols}")
    if not limits.neutral:
        return None
    charge = structure.info.get("charge")
    if charge is None:
        return Problem(Reason.NOT_SELECTED, "the charge is not known")
    return Problem(Reason.NOT_SELECTED, f"the charge is {charge:+d}") if charge else None


def _check_finite(structure: Structure, limits: Limits) -> Problem | None:
    """Look for NaN and infinity, then for periodicity along vectors that span nothing."""
    for name in ("positions", "cell", "energy", "forces", "stress"):
        value = getattr(structure, name)
        if value is not None and not np.isfinite(value).all():
            return Problem(Reason.NOT_FINITE, f"{name} holds NaN or infinity")
    periodic = structure.cell[structure.pbc]
    if len(periodic) and np.linalg.matrix_rank(periodic) < len(periodic):
        axes = ", ".join(axis for axis, used in zip("abc", structure.pbc, strict=True) if used)
        return Problem(Reason.BAD_CELL, f"periodic along {axes}, but those vectors are zero or dependent")
    return None


def _check_labels(structure: Structure, limits: Limits) -> Problem | None:
    missing = {
        "energy": Reason.MISSING_ENERGY,
        "forces": Reason.MISSING_FORCES,
        "stress": Reason.MISSING_STRESS,
    }
    for label in limits.require:
        if getattr(structure, label) is None:
            return Problem(missing[label], f"no {label}")
    return None


def _check_distances(structure: Structure, limits: Limits) -> Problem | None:
    if limits.min_distance == 0:
        return None
    pair = closest_pair(structure, limits.min_distance)
    if pair is None:
        return None
    names = [f"{atom} ({chemical_symbols[structure.numbers[atom]]})" for atom in (pair.first, pair.second)]
    between = f"atom {names[0]} and its own image" if pair.first == pair.second else f"atoms {' and '.join(names)}"
    return Problem(Reason.OVERLAP, f"{between} are {pair.distance:.3g} Å apart, closer than {limits.min_distance:g} Å")


def _check_forces(structure: Structure, limits: Limits) -> Problem | None:
    if structure.forces is None:
        return None
    sizes = np.linalg.norm(structure.forces, axis=1)
    atom = int(np.argmax(sizes))
    if sizes[atom] <= limits.max_force:
        return None
    symbol = chemical_symbols[structure.numbers[atom]]
    return Problem(
        Reason.LARGE_FORCE, f"{sizes[atom]:.4g} eV/Å on atom {atom} ({symbol}), above {limits.max_force:g} eV/Å"
    )
