"""Small sets of labelled structures for the comparison of accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from escaip_fairchem.bench.frames import BESIDE_PROJECT
from escaip_fairchem.bench.models import NotAvailableError

VACUUM = 14.0
"""Å around molecules: fairchem's models want a cell, and no image may be within their cutoffs."""


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """A set and how to divide it.

    Attributes:
        files: Names of the files, joined.
        split: Numbers of structures to train on, to validate on and to test on; drawn by the seed.
        what: In words.
    """

    files: tuple[str, ...]
    split: tuple[int, int, int]
    what: str


SETS: Mapping[str, LabelledSet] = {
    "lips": LabelledSet(files=("lips_200.extxyz",), split=(140, 20, 40), what="Li-P-S, 83 atoms, molecular dynamics"),
    "oxides": LabelledSet(files=("oxides.extxyz",), split=(215, 30, 50), what="oxides of five metals, relaxations"),
    "mlearn-Mo": LabelledSet(
        files=("mlearn_Mo_train.extxyz", "mlearn_Mo_test.extxyz"),
        split=(160, 20, 37),
        what="molybdenum: strained, defective, liquid",
    ),
    "mlearn-Si": LabelledSet(
        files=("mlearn_Si_train.extxyz", "mlearn_Si_test.extxyz"),
        split=(180, 20, 39),
        what="silicon: strained, defective, liquid",
    ),
    "acac": LabelledSet(
        files=("acac_train_300K.extxyz", "acac_test_300K.extxyz"), split=(450, 50, 150), what="acetylacetone at 300 K"
    ),
    "3bpa": LabelledSet(files=("threebpa_train_300K.extxyz",), split=(400, 40, 60), what="3BPA at 300 K"),
}
"""By name. Files are those of a folder that ``--frames`` names."""


def read_set(name: str, folder: Path | None) -> list[Atoms]:
    """Read a set, with cells around molecules.

    Args:
        name: Key of :data:`SETS`.
        folder: Where the files are; None: beside the project.

    Raises:
        NotAvailableError: A file is not there.
    """
    home = BESIDE_PROJECT if folder is None else folder
    found: list[Atoms] = []
    for file in SETS[name].files:
        if not (home / file).is_file():
            raise NotAvailableError(f"{file} is not in {home}; name a folder that has it with --frames")
        found += ase.io.read(home / file, ":")
    return [in_a_box(atoms) for atoms in found]


def in_a_box(atoms: Atoms) -> Atoms:
    """A molecule with a periodic cell around it that keeps its images out of reach; crystals as they are."""
    if atoms.pbc.any():
        return atoms
    boxed = atoms.copy()
    boxed.calc = atoms.calc
    boxed.set_cell(np.diag(np.ptp(atoms.positions, axis=0) + VACUUM))
    boxed.pbc = True
    return boxed
