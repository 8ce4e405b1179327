"""Units of labels in foreign files, as factors to eV, eV/Å and eV/Å³."""

from __future__ import annotations

from collections.abc import Mapping

from ase import units

ENERGY_UNITS: Mapping[str, float] = {
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": units.Hartree,
    "Rydberg": units.Rydberg,
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
}
FORCE_UNITS: Mapping[str, float] = {
    "eV/Ang": 1.0,
    "meV/Ang": 1e-3,
    "Hartree/Bohr": units.Hartree / units.Bohr,
    "Rydberg/Bohr": units.Rydberg / units.Bohr,
    "kcal/mol/Ang": units.kcal / units.mol,
    "kJ/mol/Ang": units.kJ / units.mol,
    "kJ/mol/nm": units.kJ / units.mol / units.nm,
}
STRESS_UNITS: Mapping[str, float] = {
    "eV/Ang^3": 1.0,
    "GPa": units.GPa,
    "kBar": 0.1 * units.GPa,
    "Hartree/Bohr^3": units.Hartree / units.Bohr**3,
}
