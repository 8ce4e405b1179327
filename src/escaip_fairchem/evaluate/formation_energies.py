"""Formation energies per atom, which Matbench-Discovery's table of discovery reads, from energies of structures."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ase.data import atomic_numbers
from ase.formula import Formula

from escaip_fairchem.errors import ConfigError, DataError
from escaip_fairchem.evaluate.structure_files import Item

PREFIX = "e_form_per_atom_"
DEFAULT_MODEL_NAME = "escaip"
REFERENCES, CORRECTIONS, MODEL_NAME = "--element-references", "--energy-corrections", "--model-name"


@dataclass(frozen=True, kw_only=True)
class FormationEnergies:
    """How the energy of a structure becomes its formation energy per atom.

    Attributes:
        model_name: Ends the name of the column.
        references: Energies of elements by symbol, eV per atom.
        corrections: What is added to the energies of whole structures, by id, eV; None adds nothing.

    Raises:
        ConfigError: The name cannot be part of a column's.
    """

    model_name: str
    references: Mapping[str, float]
    corrections: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if not self.model_name or any(letter.isspace() or letter in ",\"'" for letter in self.model_name):
            raise ConfigError(f"{MODEL_NAME} {self.model_name!r}: needs letters, without spaces, commas and quotes")

    @classmethod
    def read(cls, references: Path, *, model_name: str, corrections: Path | None = None) -> FormationEnergies:
        """Read the files of a command line.

        Args:
            references: YAML or JSON: eV per atom by element.
            model_name: Ends the name of the column.
            corrections: YAML or JSON: eV per structure by id.

        Raises:
            ConfigError: A file cannot be read, or holds something else.
        """
        elements = _read_numbers(references, REFERENCES)
        for symbol in elements:
            if symbol not in atomic_numbers or symbol == "X":
                raise ConfigError(f"{REFERENCES} {references}: {symbol!r} is no element; write symbols, such as Fe")
        return cls(
            model_name=model_name,
            references=elements,
            corrections=None if corrections is None else _read_numbers(corrections, CORRECTIONS),
        )

    @property
    def column(self) -> str:
        """Name of the column."""
        return PREFIX + self.model_name

    @property
    def decides(self) -> dict[str, Any]:
        """What decides the column, as JSON holds it; of the corrections, which may be many, a hash."""
        corrections = None if self.corrections is None else json.dumps(dict(self.corrections), sort_keys=True)
        return {
            "column": self.column,
            "element_references": dict(sorted(self.references.items())),
            "corrections_sha256": None if corrections is None else hashlib.sha256(corrections.encode()).hexdigest(),
        }

    def check(self, item: Item) -> None:
        """Refuse a structure whose formation energy could not be computed, before anything is relaxed.

        Raises:
            DataError: An element has no reference, or the structure no correction although others have.
        """
        if item.atoms is None:
            return
        for symbol in sorted(set(item.atoms.symbols)):
            if symbol not in self.references:
                raise DataError(
                    f"{item.place}: {item.identifier!r} holds {symbol}, for which {REFERENCES} has no energy (it has "
                    f"{', '.join(sorted(self.references))}); add it there"
                )
        if self.corrections is not None and item.identifier not in self.corrections:
            raise DataError(
                f"{item.place}: {CORRECTIONS} has nothing for {item.identifier!r} among its {len(self.corrections)} "
                "ids; give 0 where nothing is to be corrected"
            )

    def per_atom(self, identifier: str, formula: str, energy: float) -> float:
        """Formation energy, eV per atom: (energy + correction − Σ references of its atoms) / number of atoms.

        Args:
            identifier: Id of the structure.
            formula: Of all of its atoms, e.g. ``Cu4O2``.
            energy: Of the whole structure, eV.
        """
        counts: dict[str, int] = Formula(formula).count()
        correction = 0.0 if self.corrections is None else self.corrections[identifier]
        elements = math.fsum(count * self.references[symbol] for symbol, count in counts.items())
        return (energy + correction - elements) / sum(counts.values())


def _read_numbers(path: Path, option: str) -> dict[str, float]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be read ({error})") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{option} {path}: is neither YAML nor, by the name *.json, JSON ({error})") from error
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(f"{option} {path}: holds {type(content).__name__}, where names with energies (eV) are needed")
    return {str(name): _energy(value, f"{option} {path}: {name!r}") for name, value in content.items()}


def _energy(value: Any, place: str) -> float:
    try:
        energy = math.nan if isinstance(value, bool) else float(value)  # YAML takes 1e-3 for a word
    except (TypeError, ValueError):
        energy = math.nan
    if not math.isfinite(energy):
        raise ConfigError(f"{place}: {value!r} is no energy in eV")
    return energy
