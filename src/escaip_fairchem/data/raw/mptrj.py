"""MPtrj: relaxations of the Materials Project's crystals, one JSON object of 11 GB.

``{material: {task-calculation-step: {structure, corrected_total_energy, uncorrected_total_energy, force, …}}}``,
structures as pymatgen writes them, stress in kBar with VASP's sign.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from escaip_fairchem.data import sources
from escaip_fairchem.data.faults import refuse_fault_of_machine
from escaip_fairchem.data.json_members import BrokenJSONError, Member, members
from escaip_fairchem.data.schema import FloatArray
from escaip_fairchem.data.sources import Chunk, RawFormat, Source, Span, Unreadable, describe
from escaip_fairchem.data.units import STRESS_UNITS
from escaip_fairchem.errors import DataError

CONVERTED = ("structure", "force", "stress")


def _accepts(path: Path) -> bool:
    return path.suffix == ".json"


def plan(source: Source, limit: int | None) -> Iterator[Chunk]:
    """Divide a file into chunks of whole materials; where the file is broken, the last chunk says so."""
    found: list[Member] = []
    start = count = 0
    failure = ""
    try:
        for member in members(source.path):
            found.append(member)
            count += _count(member)
            if count >= sources.CHUNK_FRAMES:
                yield _chunk(source, start, found)
                found, start, count = [], start + count, 0
            if limit is not None and start + count >= limit:
                break
    except BrokenJSONError as error:
        failure = str(error)
    if found:
        yield _chunk(source, start, found)
    if failure:
        yield Chunk(number=0, source=source, kind="raw", form=MPTRJ.name, start=start + count, failure=failure)


def _count(member: Member) -> int:
    """Count what a material holds; one that holds nothing still has a place in the report."""
    return max(member.size, 1)


def _chunk(source: Source, start: int, found: list[Member]) -> Chunk:
    return Chunk(
        number=0,
        source=source,
        kind="raw",
        form=MPTRJ.name,
        start=start,
        count=sum(map(_count, found)),
        keys=tuple(member.key for member in found),
        spans=tuple(Span(member.start, member.end, _count(member)) for member in found),
    )


def read(chunk: Chunk) -> Iterator[Atoms | Unreadable]:
    """Read the calculations of some materials, in eV, eV/Å and eV/Å³ with ASE's sign; one material at a time."""
    with chunk.source.path.open("rb") as file:
        for material, span in zip(chunk.keys, chunk.spans, strict=True):
            file.seek(span.start)
            text = file.read(span.end - span.start)
            yield from _material(material, text, span.structures, chunk.source.path)


def _material(material: str, text: bytes, count: int, path: Path) -> Iterator[Atoms | Unreadable]:
    try:
        calculations = json.loads(text) if text else None
    except ValueError as error:
        yield from [Unreadable(f"{material}: {describe(error)}")] * count
        return
    if not isinstance(calculations, dict) or not calculations:
        yield from [Unreadable(f"{material} holds no calculation")] * count
        return
    for name, calculation in calculations.items():
        try:
            yield _to_atoms(material, name, calculation)
        except Exception as error:  # noqa: BLE001 (one odd entry must cost no other; the report names it)
            refuse_fault_of_machine(error, path)
            yield Unreadable(f"{material}, {name}: {describe(error)}")
    yield from [Unreadable(f"{material}: two calculations have the same name")] * (count - len(calculations))


def _to_atoms(material: str, name: str, calculation: Any) -> Atoms:
    if not isinstance(calculation, dict) or not isinstance(calculation.get("structure"), dict):
        raise DataError("there is no structure")
    atoms = _structure(calculation["structure"])
    values = {key: value for key, value in calculation.items() if key not in CONVERTED and value is not None}
    atoms.info.update(values)
    atoms.info.update({"sid": name, "fid": 0, "mp_id": material})
    if calculation.get("force") is not None:
        atoms.info["forces"] = np.asarray(calculation["force"], dtype=np.float64)
    if calculation.get("stress") is not None:
        # VASP counts compression as positive, ASE tension.
        atoms.info["stress"] = -STRESS_UNITS["kBar"] * np.asarray(calculation["stress"], dtype=np.float64)
    return atoms


def _structure(structure: Mapping[str, Any]) -> Atoms:
    lattice, sites = structure.get("lattice"), structure.get("sites")
    if not isinstance(lattice, dict) or not isinstance(sites, list) or "matrix" not in lattice:
        raise DataError("the structure has no sites, or no matrix of lattice vectors")
    cell = np.asarray(lattice["matrix"], dtype=np.float64)
    return Atoms(
        numbers=[_atomic_number(number, site) for number, site in enumerate(sites)],
        positions=[_position(site, cell) for site in sites],
        cell=cell,
        pbc=lattice.get("pbc", True),
    )


def _atomic_number(number: int, site: Mapping[str, Any]) -> int:
    """Look up the element of a site that holds one atom."""
    species = site["species"]
    if len(species) != 1 or species[0]["occu"] != 1:
        shown = ", ".join(f"{item['element']} {item['occu']:g}" for item in species)
        raise DataError(f"site {number} is partly occupied ({shown})")
    symbol = species[0]["element"]
    if symbol not in atomic_numbers:
        raise DataError(f"site {number} holds {symbol!r}, which is no element")
    return int(atomic_numbers[symbol])


def _position(site: Mapping[str, Any], cell: FloatArray) -> FloatArray:
    if "xyz" in site:
        return np.asarray(site["xyz"], dtype=np.float64)
    return np.asarray(site["abc"], dtype=np.float64) @ cell


MPTRJ = RawFormat(name="mptrj", accepts=_accepts, plan=plan, read=read)
