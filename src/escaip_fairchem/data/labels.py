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

from . import defaults
from .checks import Problem, Reason
from .schema import FloatArray, Structure, fixed_mask, usable_cell
from .units import ENERGY_UNITS, FORCE_UNITS, STRESS_UNITS

# Per-atom arrays that a Structure holds or that labels are made of.
STORED_ARRAYS = frozenset({"numbers", "positions", "tags", "move_mask"})
# Under these names the identifiers that were not taken are kept, because the ones that were are stored as sid and fid.
ORIGINAL = {"sid": "original_sid", "fid": "original_fid"}


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Where the labels are and what they mean.

    Attributes:
        energy_key: Name of the energy among the results, or in ``info``.
        forces_key: Name of the forces among the results, of a per-atom array, or of an array in ``info``.
        stress_key: Name of the stress among the results, or in ``info``.
        id_key: Name in ``info`` of the system's identifier.
        energy_units: Key of ``ENERGY_UNITS``.
        force_units: Key of ``FORCE_UNITS``.
        stress_units: Key of ``STRESS_UNITS``.
        negate_stress: The file counts compression as positive, as VASP does.
    """

    energy_key: str = defaults.ENERGY_KEY
    forces_key: str = defaults.FORCES_KEY
    stress_key: str = defaults.STRESS_KEY
    id_key: str = defaults.ID_KEY
    energy_units: str = defaults.ENERGY_UNITS
    force_units: str = defaults.FORCE_UNITS
    stress_units: str = defaults.STRESS_UNITS
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
    forces = _find(options.forces_key, results, atoms.arrays, _arrays(atoms.info))
    pbc = np.asarray(atoms.pbc, dtype=bool)
    return Structure(
        sid=sid,
        fid=fid,
        numbers=atoms.numbers.astype(np.int64),
        positions=np.asarray(atoms.positions, dtype=np.float64),
        cell=usable_cell(np.asarray(atoms.cell.array, dtype=np.float64), pbc),
        pbc=pbc,
        tags=atoms.get_tags().astype(np.int64),
        fixed=fixed_mask(atoms),
        energy=_energy(_find(options.energy_key, results, atoms.info), options),
        forces=None if forces is None else _forces(forces, len(atoms), options),
        stress=_stress(_find(options.stress_key, results, atoms.info), options),
        info={**_further_info(atoms, options), "converted_from": f"{source}:{index}"},
    )


def left_out(atoms: Atoms, options: LabelOptions) -> set[str]:
    """Name what came with a structure and is not stored: other results, arrays and constraints, unusual ``info``."""
    results = set(atoms.calc.results) if atoms.calc is not None else set()
    labels = {options.energy_key, options.forces_key, options.stress_key}
    unusual = {str(key) for key, value in atoms.info.items() if not storable(value)}
    constraints = {type(item).__name__ for item in atoms.constraints if not isinstance(item, FixAtoms)}
    return ((results | set(atoms.arrays)) - labels - STORED_ARRAYS) | (unusual - labels) | constraints


def similar_keys(atoms: Atoms, label: str) -> list[str]:
    """Name whatever else came with a structure that may be the label it seems to lack: by its name or its shape."""
    results = dict(atoms.calc.results) if atoms.calc is not None else {}
    stem = label.rstrip("s").lower()
    found = {key for key in {*results, *map(str, atoms.info), *atoms.arrays} if stem in key.lower()}
    if label == "forces":
        places = {**_arrays(atoms.info), **atoms.arrays}
        known = {*STORED_ARRAYS, "momenta"}
        found |= {str(key) for key, value in places.items() if key not in known and np.shape(value) == (len(atoms), 3)}
    return sorted(found)


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
    fid = _whole_number(info.get("fid"))
    if sid is None:
        return f"{source}:{index}", 0 if fid is None else fid
    return str(sid), index if fid is None else fid


def _whole_number(value: Any) -> int | None:
    """Read a number of a frame however it was written: 7, 7.0, "7"; None where it is none, or too large to store."""
    if not isinstance(value, str | int | float | np.integer | np.floating):
        return None
    try:
        number = int(value)
        same = isinstance(value, str) or number == value
    except (ValueError, OverflowError):  # letters; NaN and infinity
        return None
    return number if same and abs(number) < 2**63 else None


def _further_info(atoms: Atoms, options: LabelOptions) -> dict[str, Any]:
    """Collect what is kept of ``info`` besides labels and identifiers, with identifiers that were not taken."""
    used = {options.energy_key, options.stress_key, options.id_key, *ORIGINAL}
    if options.forces_key in _arrays(atoms.info):
        used.add(options.forces_key)
    kept = {str(key): value for key, value in atoms.info.items() if key not in used}
    if options.id_key != "sid" and atoms.info.get("sid") is not None:
        kept[ORIGINAL["sid"]] = atoms.info["sid"]
    if atoms.info.get("fid") is not None and _whole_number(atoms.info["fid"]) is None:
        kept[ORIGINAL["fid"]] = atoms.info["fid"]
    return {key: value for key, value in kept.items() if storable(value)}


def _arrays(info: Mapping[Any, Any]) -> dict[Any, Any]:
    """Select from ``info`` what has entries of its own, as forces do."""
    return {key: value for key, value in info.items() if isinstance(value, np.ndarray | list | tuple)}


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
