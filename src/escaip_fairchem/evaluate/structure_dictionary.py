"""Structures as pymatgen writes them to JSON, without needing pymatgen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from escaip_fairchem.errors import DataError


def to_dictionary(atoms: Atoms) -> dict[str, Any]:
    """What ``pymatgen.core.Structure.from_dict`` reads; a structure without a cell becomes a ``Molecule``.

    Args:
        atoms: A structure.
    """
    if atoms.cell.rank < 3:
        sites = [
            {"name": symbol, "species": [{"element": symbol, "occu": 1}], "xyz": xyz, "properties": {}, "label": symbol}
            for symbol, xyz in zip(atoms.symbols, atoms.positions.tolist(), strict=True)
        ]
        return {
            "@module": "pymatgen.core.structure",
            "@class": "Molecule",
            "charge": 0,
            "spin_multiplicity": None,
            "sites": sites,
            "properties": {},
        }
    lengths_angles = atoms.cell.cellpar().tolist()
    names = ("a", "b", "c", "alpha", "beta", "gamma")
    fractions = np.linalg.solve(atoms.cell.array.T, atoms.positions.T).T.tolist()
    return {
        "@module": "pymatgen.core.structure",
        "@class": "Structure",
        "charge": 0,
        "lattice": {
            "matrix": atoms.cell.array.tolist(),
            "pbc": atoms.pbc.tolist(),
            **dict(zip(names, lengths_angles, strict=True)),
            "volume": float(atoms.cell.volume),
        },
        "properties": {},
        "sites": [
            {"species": [{"element": symbol, "occu": 1}], "abc": abc, "xyz": xyz, "properties": {}, "label": symbol}
            for symbol, abc, xyz in zip(atoms.symbols, fractions, atoms.positions.tolist(), strict=True)
        ],
    }


def is_dictionary(value: object) -> bool:
    """Whether a value of a JSON file looks like a structure."""
    return isinstance(value, Mapping) and "sites" in value


def from_dictionary(content: Mapping[str, Any]) -> Atoms:
    """Read a structure.

    Args:
        content: ``sites`` with ``species`` and ``xyz`` or ``abc``, and ``lattice`` with ``matrix``, unless it is a
            molecule.

    Raises:
        DataError: A key is missing or has a value of another kind, or a site is shared by several elements.
    """
    try:
        lattice = content.get("lattice")
        cell = np.zeros((3, 3)) if lattice is None else np.asarray(lattice["matrix"], dtype=np.float64).reshape(3, 3)
        pbc = lattice.get("pbc", (True, True, True)) if lattice is not None else False
        sites = content["sites"]
        numbers = [_element(site["species"], row) for row, site in enumerate(sites)]
        positions = [
            site["xyz"] if "xyz" in site else np.asarray(site["abc"], dtype=np.float64) @ cell for site in sites
        ]
        return Atoms(numbers, positions=np.asarray(positions, dtype=np.float64).reshape(-1, 3), cell=cell, pbc=pbc)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"not a structure as pymatgen writes it ({type(error).__name__}: {error})") from None


def _element(species: Any, row: int) -> int:
    if len(species) != 1 or abs(float(species[0].get("occu", 1)) - 1.0) > 1e-8:
        raise DataError(f"site {row} holds {species}; only sites of one element, fully occupied, can be relaxed")
    symbol = str(species[0]["element"])
    if symbol not in atomic_numbers:
        raise DataError(f"site {row} holds {symbol!r}, which is no element")
    return int(atomic_numbers[symbol])
