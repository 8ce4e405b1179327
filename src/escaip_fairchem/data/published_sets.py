"""Conversions of published data sets, each with the options that its configurations count on.

What such a set holds is kept as it is: neither close atoms nor large forces are sorted out unless somebody asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ase.data import atomic_numbers

from escaip_fairchem.errors import DataError, nearest

from . import defaults
from .checks import Limits
from .convert import convert
from .labels import LabelOptions
from .options import ConvertOptions
from .raw.spice import FAMILY
from .raw.spice_families import MACE_OFF
from .sources import find_files
from .splits import SplitOptions
from .staging import NO_WORD

EVERYTHING = {"min_distance": 0.0, "max_force": float("inf")}
MACE_OFF_ELEMENTS = tuple(atomic_numbers[symbol] for symbol in ("H", "C", "N", "O", "F", "P", "S", "Cl", "Br", "I"))
SPICE_KEYS = {"formation": "formation_energy", "total": "dft_total_energy"}
MPTRJ_KEYS = {"corrected": "corrected_total_energy", "uncorrected": "uncorrected_total_energy"}
RULE_ALONE = (
    "molecules were selected by the rule of MACE-OFF (its ten elements, no charge) and divided by seed; its published "
    "lists of molecules are not reproduced"
)
PREFIX = re.compile(r"^r?md\d\d_")


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every published set leaves to its user.

    Attributes:
        split: How to divide it.
        min_distance: Two atoms closer than this (Å) overlap. 0 accepts any distance.
        max_force: No atom may feel a larger |F| (eV/Å).
        limit: Read this many structures at most.
        shard_rows: Structures per file.
    """

    split: SplitOptions = field(default_factory=SplitOptions)
    min_distance: float = EVERYTHING["min_distance"]
    max_force: float = EVERYTHING["max_force"]
    limit: int | None = None
    shard_rows: int = defaults.SHARD_ROWS

    def _limits(self, **further: Any) -> Limits:
        return Limits(min_distance=self.min_distance, max_force=self.max_force, **further)

    def _options(self, **further: Any) -> ConvertOptions:
        return ConvertOptions(split=self.split, limit=self.limit, shard_rows=self.shard_rows, **further)


@dataclass(frozen=True, kw_only=True)
class SpiceOptions(Common):
    """What to make of SPICE.

    Attributes:
        energy: ``formation``, relative to isolated atoms, or ``total``.
        selection: ``mace-off``: H C N O F P S Cl Br I, and no charge; or ``all``.
        subtract_references: Store energies minus their references.
    """

    split: SplitOptions = field(default_factory=lambda: SplitOptions(parts=defaults.SPICE_SPLIT))
    energy: str = defaults.SPICE_ENERGIES[0]
    selection: str = defaults.SPICE_SELECTIONS[0]
    subtract_references: bool = False

    def convert_options(self) -> ConvertOptions:
        """Say it in the terms of a conversion; all conformations of a molecule stay in one split."""
        _check("--energy", self.energy, SPICE_KEYS)
        _check("--selection", self.selection, defaults.SPICE_SELECTIONS)
        selected = self.selection == "mace-off"
        return self._options(
            form="spice",
            labels=LabelOptions(energy_key=SPICE_KEYS[self.energy]),
            limits=self._limits(elements=MACE_OFF_ELEMENTS if selected else None, neutral=selected),
            split_by="molecule",
            # Formation energies are referenced already.
            linear_references=self.energy == "total" or self.subtract_references,
            subtract_references=self.subtract_references,
            count_by=FAMILY if selected else None,
            remarks=about_selection if selected else None,
        )


def about_selection(found: Mapping[str, int]) -> Iterator[str]:
    """Say what a selection by MACE-OFF's rule has in common with MACE-OFF's set.

    Args:
        found: Structures by family of subsets.
    """
    yield RULE_ALONE
    families = {family for names in found for family in names.split("; ")} - {NO_WORD}
    if not families:
        return
    yield "structures by subset: " + ", ".join(f"{name or 'not named'} {count}" for name, count in found.items())
    lacking = [family for family in MACE_OFF if family not in families]
    if lacking:
        yield f"MACE-OFF's set holds more, of which nothing is among these: {', '.join(lacking)}"
    others = sorted(families - set(MACE_OFF))
    if others:
        yield f"no part of MACE-OFF's set, and kept here: {', '.join(others)}"


@dataclass(frozen=True, kw_only=True)
class MPtrjOptions(Common):
    """What to make of MPtrj.

    Attributes:
        energy: ``corrected`` by the Materials Project's scheme, or ``uncorrected``.
        split_by: Entry of ``info`` whose values never span two splits.
    """

    split: SplitOptions = field(default_factory=lambda: SplitOptions(parts=defaults.MPTRJ_SPLIT))
    energy: str = defaults.MPTRJ_ENERGIES[0]
    split_by: str = defaults.MPTRJ_SPLIT_BY

    def convert_options(self) -> ConvertOptions:
        """Say it in the terms of a conversion."""
        _check("--energy", self.energy, MPTRJ_KEYS)
        return self._options(
            form="mptrj",
            labels=LabelOptions(energy_key=MPTRJ_KEYS[self.energy]),
            limits=self._limits(require=("energy", "forces", "stress")),
            split_by=self.split_by,
        )


@dataclass(frozen=True, kw_only=True)
class MoleculeOptions(Common):
    """What to make of MD22 and rMD17.

    Attributes:
        form: ``md22`` or ``rmd17``.
        subtract_references: Store energies minus the mean of the training split, which is all that references of one
            molecule amount to. Totals reach hundreds of thousands of eV, which float32 rounds to hundredths.
    """

    form: str
    subtract_references: bool = True

    def convert_options(self) -> ConvertOptions:
        """Say it in the terms of a conversion."""
        _check("format", self.form, defaults.MOLECULE_SETS)
        return self._options(
            form=self.form,
            limits=self._limits(),
            # The configurations' scales hold the mean energy, or zero where it is taken off the labels.
            linear_references=self.subtract_references,
            subtract_references=self.subtract_references,
        )


def _check(option: str, value: str, known: Sequence[str] | Mapping[str, str]) -> None:
    if value not in known:
        raise DataError(f"{option}: unknown {value!r}{nearest(value, known)}")


def convert_molecules(
    inputs: Sequence[str],
    out: Path,
    options: MoleculeOptions,
    *,
    names: Sequence[str] = (),
    workers: int = 1,
    overwrite: bool = False,
    show_progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Convert files of one molecule each to data sets of their own, ``out/<molecule>``.

    Args:
        inputs: Files, folders and glob patterns.
        out: Folder of all these data sets.
        options: What to write; numbers of structures are those of each molecule.
        names: Names of the molecules, one for each file; by default they are made from the names of the files.
        workers: Processes to use.
        overwrite: Replace data sets that were made from other input or with other options.
        show_progress: Report on standard error.

    Returns:
        The summary of each data set, by the molecule's name.

    Raises:
        DataError: Two files have one name, or a conversion fails; the data sets of the files before it are complete.
    """
    convert_options = options.convert_options()
    paths = [source.path for source in find_files(inputs, exclude=out, form=options.form)]
    molecules = _name(paths, names)
    return {
        name: convert(
            [str(path)],
            out / name,
            convert_options,
            workers=workers,
            overwrite=overwrite,
            show_progress=show_progress,
        )
        for name, path in molecules.items()
    }


def _name(paths: Sequence[Path], names: Sequence[str]) -> dict[str, Path]:
    if names and len(names) != len(paths):
        found = ", ".join(str(path) for path in paths)
        raise DataError(f"--name gives {len(names)} names for {len(paths)} files ({found})")
    molecules: dict[str, Path] = {}
    for name, path in zip(names or [molecule_name(path) for path in paths], paths, strict=True):
        if name in molecules:
            raise DataError(f"{molecules[name]} and {path} are both called {name!r}; give each a name with --name")
        if not name or name in (".", "..") or "/" in name:
            raise DataError(f"--name: {name!r} cannot be the name of a folder in OUT ({path})")
        molecules[name] = path
    return molecules


def molecule_name(path: Path) -> str:
    """Make a molecule's name from that of its file: ``md22_AT-AT-CG-CG.npz`` becomes ``at_at_cg_cg``."""
    return re.sub(r"[^a-z0-9]+", "_", PREFIX.sub("", path.stem.lower())).strip("_")
