"""SPICE: conformations of molecules in HDF5, one group per molecule, in atomic units.

h5py takes a while to import and only this format needs it, so it is imported where it is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray

from escaip_fairchem.data import sources
from escaip_fairchem.data.faults import refuse_fault_of_machine
from escaip_fairchem.data.schema import FloatArray
from escaip_fairchem.data.sources import Chunk, NotStored, RawFormat, Source, Unreadable, describe
from escaip_fairchem.errors import DataError

from .spice_families import family_of_all

if TYPE_CHECKING:
    import h5py

LENGTHS = {"bohr": units.Bohr, "angstrom": 1.0, "nanometers": units.nm}
ENERGIES = {"hartree": units.Hartree}
GRADIENTS = {"hartree/bohr": units.Hartree / units.Bohr}
ENERGY_KEYS = ("formation_energy", "dft_total_energy")
CONFORMATIONS = "conformations"
GRADIENT = "dft_total_gradient"
CHARGES = "mbis_charges"
CHARGE_UNIT = "elementary_charge"
FAMILY = "subset_family"
READ = frozenset({"atomic_numbers", CONFORMATIONS, *ENERGY_KEYS, GRADIENT, CHARGES, "smiles", "subset"})
BRACKET_ATOM = re.compile(r"\[([^\[\]]*)\]")
ATOM_NUMBER = re.compile(r":\d+$")
CHARGE = re.compile(r"(\++|-+)(\d*)$")


def _accepts(path: Path) -> bool:
    return path.suffix in (".hdf5", ".h5")


def plan(source: Source, limit: int | None) -> Iterator[Chunk]:
    """Divide a file into chunks of whole molecules."""
    import h5py

    keys: list[str] = []
    start = count = 0
    try:
        with h5py.File(source.path, "r") as file:
            for key in _molecules(file, source.path):
                keys.append(key)
                count += _count(file, key, source.path)
                if count >= sources.CHUNK_FRAMES:
                    yield _chunk(source, start, count, keys)
                    keys, start, count = [], start + count, 0
                if limit is not None and start + count >= limit:
                    break
    except Exception:
        if keys:  # what was found counts, even where the list of groups breaks off
            yield _chunk(source, start, count, keys)
        raise
    if keys:
        yield _chunk(source, start, count, keys)


def _chunk(source: Source, start: int, count: int, keys: list[str]) -> Chunk:
    return Chunk(number=0, source=source, kind="raw", form=SPICE.name, start=start, count=count, keys=tuple(keys))


def _molecules(parent: h5py.Group, path: Path, prefix: str = "") -> Iterator[str]:
    """Name the groups of molecules; HDF5 makes a group within a group of a name that holds a slash."""
    import h5py

    for name in parent:
        try:
            item = parent[name]
            inner = []
            if isinstance(item, h5py.Group) and CONFORMATIONS not in item:
                inner = list(_molecules(item, path, f"{prefix}{name}/"))
        except Exception as error:  # noqa: BLE001 (a group that cannot be opened must cost no other; `read` reports it)
            refuse_fault_of_machine(error, path)
            yield f"{prefix}{name}"
            continue
        if isinstance(item, h5py.Group):
            yield from inner or [f"{prefix}{name}"]


def _count(file: h5py.File, key: str, path: Path) -> int:
    """Count the conformations; a group without any, or one that cannot be opened, still has a place in the report."""
    try:
        group = file[key]
        shape = group[CONFORMATIONS].shape if CONFORMATIONS in group else ()
    except Exception as error:  # noqa: BLE001 (as above)
        refuse_fault_of_machine(error, path)
        return 1
    return max(shape[0], 1) if shape else 1


def read(chunk: Chunk) -> Iterator[Atoms | Unreadable]:
    """Read the conformations of some molecules, in Å, eV and eV/Å, with forces for the gradient."""
    import h5py

    path = chunk.source.path
    with h5py.File(path, "r") as file:
        for key in chunk.keys:
            try:
                frames = list(_frames(key, file[key]))
            except Exception as error:  # noqa: BLE001 (one odd group must cost no other; the report names it)
                refuse_fault_of_machine(error, path)
                yield from [Unreadable(f"{key}: {describe(error)}")] * _count(file, key, path)
            else:
                yield from frames or [Unreadable(f"{key}: there is no conformation")]


def _frames(key: str, group: h5py.Group) -> Iterator[Atoms]:
    numbers = _dataset(group, "atomic_numbers")[()]
    count = _dataset(group, CONFORMATIONS).shape[0]
    positions = _converted(group, CONFORMATIONS, LENGTHS, (count, len(numbers), 3))
    energies = {name: _converted(group, name, ENERGIES, (count,)) for name in ENERGY_KEYS if name in group}
    forces = -_converted(group, GRADIENT, GRADIENTS, positions.shape) if GRADIENT in group else None
    charges = _charges(group, positions.shape[:2])
    info = _about(key, group)
    for number in range(count):
        atoms = Atoms(numbers=numbers, positions=positions[number])
        atoms.info.update({**info, "fid": number})
        atoms.info.update({name: float(values[number]) for name, values in energies.items()})
        if forces is not None:
            atoms.info["forces"] = forces[number]
        if charges is not None:
            atoms.info[CHARGES] = charges[number]
        yield atoms


def _dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    if name not in group:
        raise DataError(f"there is no {name!r} (there is {', '.join(sorted(group))})")
    return group[name]


def _converted(group: h5py.Group, name: str, known: Mapping[str, float], shape: tuple[int, ...]) -> FloatArray:
    """Read a dataset in the unit that it names itself."""
    dataset = _dataset(group, name)
    unit = _text(dataset.attrs.get("units"))
    if unit is None or unit not in known:
        raise DataError(f"the units of {name!r} are {unit!r}; known here are {', '.join(known)}")
    if dataset.shape != shape:
        raise DataError(f"{name!r} has shape {dataset.shape} instead of {shape}")
    values: FloatArray = np.asarray(dataset[()], dtype=np.float64)
    return values * known[unit]


def _charges(group: h5py.Group, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """Read the atoms' partial charges in the precision of the file, shape (conformations, atoms), if there are any.

    They are in elementary charges, where the file names no unit as well. NaN stands where the file has no charges.
    """
    if CHARGES not in group:
        return None
    dataset = group[CHARGES]
    unit = _text(dataset.attrs.get("units"))
    if unit not in (None, CHARGE_UNIT):
        raise DataError(f"the units of {CHARGES!r} are {unit!r}; known here is {CHARGE_UNIT}")
    if dataset.shape not in (shape, (*shape, 1)):
        raise DataError(f"{CHARGES!r} has shape {dataset.shape} instead of {(*shape, 1)}")
    return np.asarray(dataset[()]).reshape(shape)


def _about(key: str, group: h5py.Group) -> dict[str, Any]:
    """Collect what is known of a molecule: its name, subset, SMILES and charge; and name what is not read."""
    info: dict[str, Any] = {name: NotStored() for name in group if name not in READ}
    info |= {"sid": key, "molecule": key}
    if "subset" in group:
        subsets = _texts(group["subset"])
        info |= {"subset": "; ".join(subsets), FAMILY: family_of_all(subsets)}
    if "smiles" in group:
        smiles = ".".join(_texts(group["smiles"]))
        info |= {"smiles": smiles, "charge": formal_charge(smiles), "molecule": without_atom_numbers(smiles)}
    return info


def _texts(dataset: h5py.Dataset) -> list[str]:
    return [str(_text(item)) for item in np.ravel(dataset[()])]


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value.decode() if isinstance(value, bytes) else str(value)


def formal_charge(smiles: str) -> int:
    """Add up the formal charges of a SMILES, which stand in brackets: ``[NH3+]``, ``[Ca+2]``, ``[O-:7]``."""
    total = 0
    for atom in BRACKET_ATOM.findall(smiles):
        found = CHARGE.search(ATOM_NUMBER.sub("", atom))
        if found is not None:
            signs, digits = found.groups()
            total += (1 if signs[0] == "+" else -1) * (int(digits) if digits else len(signs))
    return total


def without_atom_numbers(smiles: str) -> str:
    """Take the numbers off that map the atoms of a SMILES to coordinates: ``[H:2]`` becomes ``[H]``."""
    return BRACKET_ATOM.sub(lambda found: f"[{ATOM_NUMBER.sub('', found.group(1))}]", smiles)


SPICE = RawFormat(name="spice", accepts=_accepts, plan=plan, read=read)
