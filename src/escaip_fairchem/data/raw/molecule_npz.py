"""MD22 and rMD17: dynamics of single molecules in npz files, in kcal/mol.

Two layouts are in use: sGDML's (``E``, ``F``, ``R``, ``z``), that of MD22, and rMD17's (``energies``, ``forces``,
``coords``, ``nuclear_charges``). Both formats here read both.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units

from escaip_fairchem.data import sources
from escaip_fairchem.data.schema import FloatArray, IntArray
from escaip_fairchem.data.sources import Chunk, NotStored, RawFormat, Source, Unreadable
from escaip_fairchem.data.units import ENERGY_UNITS
from escaip_fairchem.errors import DataError

Arrays = Mapping[str, np.ndarray[Any, Any]]
ENERGY_UNIT = "kcal/mol"
LENGTH_UNIT = "Ang"
LENGTHS = {"ang": 1.0, "angstrom": 1.0, "bohr": units.Bohr}
# rMD17 keeps more beside its own labels: superseded ones of the same frames, and the frames' numbers in MD17.
SUPERSEDED = "old_"
NUMBERS = "old_indices"
XYZ = (".xyz", ".extxyz")


@dataclass(frozen=True)
class _Layout:
    """Names of the arrays."""

    numbers: str
    positions: str
    energy: str
    forces: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.numbers, self.positions, self.energy, self.forces)


LAYOUTS = (_Layout("z", "R", "E", "F"), _Layout("nuclear_charges", "coords", "energies", "forces"))


@dataclass(frozen=True, kw_only=True)
class _Dynamics:
    """M frames of a molecule of N atoms.

    Attributes:
        numbers: Shape (N,).
        positions: Shape (M, N, 3), Å.
        energy: Shape (M,), eV.
        forces: Shape (M, N, 3), eV/Å.
        info: What holds for all frames.
        old_indices: Numbers of the frames in an earlier set, shape (M,), if the file has them.
    """

    numbers: IntArray
    positions: FloatArray
    energy: FloatArray
    forces: FloatArray
    info: Mapping[str, Any]
    old_indices: IntArray | None


def _accepts(path: Path) -> bool:
    return path.suffix == ".npz"


def plan(source: Source, limit: int | None, *, form: str) -> Iterator[Chunk]:
    """Divide a file into equal chunks.

    Raises:
        DataError: It is none of these files.
    """
    if source.path.suffix in XYZ:
        raise DataError(
            "an xyz file does not say what its units are; if it holds kcal/mol and kcal/mol/Å, as those of MD22 do, "
            "use `escaip data convert` with --energy-units kcal/mol --force-units kcal/mol/Ang"
        )
    total = len(_load_once(source.path).energy)  # the whole file, so that what is wrong with it is said once
    total = total if limit is None else min(total, limit)
    for start in range(0, total, sources.CHUNK_FRAMES):
        count = min(sources.CHUNK_FRAMES, total - start)
        yield Chunk(number=0, source=source, kind="raw", form=form, start=start, count=count)


def read(chunk: Chunk) -> Iterator[Atoms | Unreadable]:
    """Read some frames, in Å, eV and eV/Å."""
    dynamics = _load_once(chunk.source.path)
    for number in range(chunk.start, chunk.start + (chunk.count or 0)):
        atoms = Atoms(numbers=dynamics.numbers, positions=dynamics.positions[number])
        atoms.info.update({**dynamics.info, "energy": dynamics.energy[number], "forces": dynamics.forces[number]})
        if dynamics.old_indices is not None:
            atoms.info[NUMBERS] = int(dynamics.old_indices[number])
        yield atoms


def _layout(arrays: Arrays) -> _Layout:
    layout = next((layout for layout in LAYOUTS if set(layout.names) <= set(arrays)), None)
    if layout is None:
        wanted = " or ".join(", ".join(layout.names) for layout in LAYOUTS)
        raise DataError(f"the file must hold {wanted}; it holds {', '.join(sorted(arrays)) or 'nothing'}")
    return layout


def _load_once(path: Path) -> _Dynamics:
    return _load(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)  # arrays are compressed whole, and many chunks share a file
def _load(path: Path, stamp: int) -> _Dynamics:
    """Load a file; its time of change is given so that another file of that name is not taken for it."""
    with np.load(path, allow_pickle=False) as arrays:
        layout = _layout(arrays)
        if "lattice" in arrays:
            raise DataError("the file has a lattice, and only molecules without periodicity are read here")
        energy_unit, length_unit = _energy_unit(arrays), _length_unit(arrays)
        energy = np.asarray(arrays[layout.energy], dtype=np.float64) * energy_unit
        dynamics = _Dynamics(
            numbers=np.asarray(arrays[layout.numbers], dtype=np.int64),
            positions=np.asarray(arrays[layout.positions], dtype=np.float64) * length_unit,
            energy=energy.reshape(-1),
            forces=np.asarray(arrays[layout.forces], dtype=np.float64) * (energy_unit / length_unit),
            info=_about(arrays),
            old_indices=np.asarray(arrays[NUMBERS], dtype=np.int64) if NUMBERS in arrays else None,
        )
    _check_shapes(dynamics, layout)
    return dynamics


def _check_shapes(dynamics: _Dynamics, layout: _Layout) -> None:
    frames = (len(dynamics.energy), dynamics.numbers.size, 3)
    for name, array in ((layout.positions, dynamics.positions), (layout.forces, dynamics.forces)):
        if array.shape != frames or dynamics.numbers.ndim != 1:
            raise DataError(
                f"{name!r} has shape {array.shape}, which does not fit {layout.numbers!r} of shape "
                f"{dynamics.numbers.shape} and {frames[0]} energies"
            )
    if dynamics.old_indices is not None and dynamics.old_indices.shape != frames[:1]:
        raise DataError(f"{NUMBERS!r} has shape {dynamics.old_indices.shape}, and there are {frames[0]} energies")


def _energy_unit(arrays: Arrays) -> float:
    """Return the energy unit in eV: the file's own, if it names one."""
    unit = _text(arrays, "e_unit") or ENERGY_UNIT
    known = {name.lower(): value for name, value in ENERGY_UNITS.items()}
    if unit.lower() not in known:
        raise DataError(f"e_unit is {unit!r}; known here are {', '.join(ENERGY_UNITS)}")
    return known[unit.lower()]


def _length_unit(arrays: Arrays) -> float:
    unit = _text(arrays, "r_unit") or LENGTH_UNIT
    if unit.lower() not in LENGTHS:
        raise DataError(f"r_unit is {unit!r}; known here are {', '.join(LENGTHS)}")
    return float(LENGTHS[unit.lower()])


def _about(arrays: Arrays) -> dict[str, Any]:
    theory = _text(arrays, "theory")
    superseded = {name: NotStored() for name in arrays if name.startswith(SUPERSEDED) and name != NUMBERS}
    return superseded if theory is None else {**superseded, "theory": theory}


def _text(arrays: Arrays, name: str) -> str | None:
    if name not in arrays:
        return None
    value = arrays[name].item()
    return value.decode() if isinstance(value, bytes) else str(value)


MD22, RMD17 = (
    RawFormat(name=name, accepts=_accepts, plan=partial(plan, form=name), read=read) for name in ("md22", "rmd17")
)
