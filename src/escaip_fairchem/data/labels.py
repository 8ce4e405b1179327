"""From what ASE read to a ``Structure``: identifiers, labels under any name and in any unit, fixed atoms."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms

from escaip_fairchem.errors import DataError

from .checks import Problem, Reason
from .schema import FloatArray, Structure, fixed_mask
from .units import ENERGY_UNITS, FORCE_UNITS, STRESS_UNITS

# Per-atom arrays that a Structure holds or that labels are made of.
STORED_ARRAYS = frozenset({"numbers", "positions", "tags", "move_mask"})


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Where the labels are and what they mean.

    Attributes:
        energy_key: Name of the energy among the results, or in ``info``.
        forces_key: Name of the forces among the results, or of a per-atom array.
        stress_key: Name of the stress among the results, or in ``info``.
        id_key: Name in ``info`` of the system's identifier.
        energy_units: Key of ``ENERGY_UNITS``.
        force_units: Key of ``FORCE_UNITS``.
        stress_units: Key of ``STRESS_UNITS``.
        negate_stress: The file counts compression as positive, as VASP does.
    """

    energy_key: str = "energy"
    forces_key: str = "forces"
    stress_key: str = "stress"
    id_key: str = "sid"
    energy_units: str = "eV"
    force_units: str = "eV/Ang"
    stress_units: str = "eV/Ang^3"
    negate_stress: bool = False

    def __post_init__(self) -> None:
        for unit, known in (
            (self.energy_units, ENERGY_UNITS),
            (self.force_units, FORCE_UNITS),
            (self.stress_units, STRESS_UNITS),
        ):
            if unit not in known:
                raise DataError(f"unknown unit {unit!r}; known here are {', '.join(known)}")


class LabelError(ValueError):
    """A label has the wrong shape; carries the problem for the report."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def to_structure(atoms: Atoms, source: str, index: int, options: LabelOptions) -> Structure:
    """Build a structure with labels in eV, eV/Å and eV/Å³.

    Labels are taken as they were computed: constraints are not applied to them, so that fixed atoms keep their forces.

    Args:
        atoms: What ASE read.
        source: Name of the file, for the identifier of structures that have none.
        index: Number of the structure in the file.
        options: Where the labels are.

    Raises:
        LabelError: A label has the wrong shape.
    """
    results = dict(atoms.calc.results) if atoms.calc is not None else {}
    sid, fid = _identify(atoms.info, source, index, options)
    forces = _find(options.forces_key, results, atoms.arrays)
    used = {options.energy_key, options.stress_key, options.id_key, "sid", "fid"}
    info = {str(key): value for key, value in atoms.info.items() if key not in used and storable(value)}
    return Structure(
        sid=sid,
        fid=fid,
        numbers=atoms.numbers.astype(np.int64),
        positions=np.asarray(atoms.positions, dtype=np.float64),
        cell=np.asarray(atoms.cell.array, dtype=np.float64),
        pbc=np.asarray(atoms.pbc, dtype=bool),
        tags=atoms.get_tags().astype(np.int64),
        fixed=fixed_mask(atoms),
        energy=_energy(_find(options.energy_key, results, atoms.info), options),
        forces=None if forces is None else _forces(forces, len(atoms), options),
        stress=_stress(_find(options.stress_key, results, atoms.info), options),
        info={**info, "converted_from": f"{source}:{index}"},
    )


def left_out(atoms: Atoms, options: LabelOptions) -> set[str]:
    """Name what came with a structure and is not stored: other results, arrays and constraints, unusual ``info``."""
    results = set(atoms.calc.results) if atoms.calc is not None else set()
    labels = {options.energy_key, options.forces_key, options.stress_key}
    unusual = {str(key) for key, value in atoms.info.items() if not storable(value)}
    constraints = {type(item).__name__ for item in atoms.constraints if not isinstance(item, FixAtoms)}
    return ((results | set(atoms.arrays)) - labels - STORED_ARRAYS) | (unusual - labels) | constraints


def similar_keys(atoms: Atoms, label: str) -> list[str]:
    """Name whatever else came with a structure that may be the label it seems to lack."""
    results = set(atoms.calc.results) if atoms.calc is not None else set()
    stem = label.rstrip("s").lower()
    return sorted(key for key in {*results, *map(str, atoms.info), *atoms.arrays} if stem in key.lower())


def storable(value: Any) -> bool:
    """Tell whether a value survives as JSON: numbers, strings, numeric arrays, and lists and dicts of them."""
    if isinstance(value, np.ndarray):
        return bool(value.dtype.kind in "biufU")
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and storable(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(storable(item) for item in value)
    return value is None or isinstance(value, str | numbers.Real | np.bool_)


def _identify(info: Mapping[str, Any], source: str, index: int, options: LabelOptions) -> tuple[str, int]:
    """Take ``sid`` and ``fid`` from ``info``; without them the file and the position in it identify a structure."""
    sid = info.get(options.id_key)
    fid = info.get("fid")
    if sid is None:
        return f"{source}:{index}", 0
    return str(sid), int(fid) if isinstance(fid, numbers.Integral) else index


def _find(key: str, *places: Mapping[Any, Any]) -> Any:
    return next((place[key] for place in places if place.get(key) is not None), None)


def _energy(value: Any, options: LabelOptions) -> float | None:
    if value is None:
        return None
    array = _numeric(value, options.energy_key)
    if array.size != 1:
        raise LabelError(Problem(Reason.MALFORMED, f"{options.energy_key} has {array.size} values instead of one"))
    return float(array.reshape(-1)[0]) * ENERGY_UNITS[options.energy_units]


def _forces(value: Any, count: int, options: LabelOptions) -> FloatArray:
    array = _numeric(value, options.forces_key)
    if array.shape != (count, 3):
        raise LabelError(
            Problem(Reason.MALFORMED, f"{options.forces_key} has shape {array.shape} instead of ({count}, 3)")
        )
    return array * FORCE_UNITS[options.force_units]


def _stress(value: Any, options: LabelOptions) -> FloatArray | None:
    if value is None:
        return None
    array = _numeric(value, options.stress_key)
    if array.size == 9:
        matrix = array.reshape(3, 3)
        if not np.allclose(matrix, matrix.T, rtol=0, atol=1e-2 * np.abs(matrix).max(), equal_nan=True):
            raise LabelError(Problem(Reason.MALFORMED, f"{options.stress_key} is not symmetric"))
        matrix = (matrix + matrix.T) / 2
        array = matrix[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    if array.shape != (6,):
        raise LabelError(
            Problem(Reason.MALFORMED, f"{options.stress_key} has shape {array.shape} instead of (6,) or (3, 3)")
        )
    return array * STRESS_UNITS[options.stress_units] * (-1.0 if options.negate_stress else 1.0)


def _numeric(value: Any, key: str) -> FloatArray:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise LabelError(Problem(Reason.MALFORMED, f"{key} is not numeric: {str(value)[:60]!r}")) from None
