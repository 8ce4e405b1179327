"""The file of energies per element outside of OC22's data set, where the shipped configurations look for it."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path

import numpy as np

from escaip_fairchem.errors import DataError

from .faults import writing
from .linear_references import read_references
from .schema import FloatArray
from .sources import real_path

REFERENCES = "linear_references.npz"
TRAINING = "train"
TEST = "test"
KINDS = (TRAINING, "val", TEST)
"""What names of splits begin with."""
SPLITS_FOLDER = "s2ef-total"
"""What the configurations call the folder of splits."""


def usual_place(out: Path, *, alone: bool) -> Path | None:
    """Say where configurations look for the file, if that can be told: beside the folder of splits.

    Args:
        out: Folder to write into.
        alone: It is the folder of a single split, whose path says something only if it is as configurations have it.
    """
    place = real_path(out)
    if not alone:
        return place.parent / REFERENCES
    fits = place.parent.name == SPLITS_FOLDER and place.name.startswith(KINDS)
    return place.parent.parent / REFERENCES if fits else None


def refuse_unwritable(target: Path) -> None:
    """Try, before hours of reading, whether references can be written where they are to go.

    Raises:
        DataError: They cannot.
    """
    trial = target.with_name(target.name + ".tmp")
    try:
        if target.is_dir():
            raise IsADirectoryError(f"{target} is a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise DataError(
            f"energies per element cannot be written to {target} ({error}); name another file with --references-out"
        ) from error


def refuse_foreign(target: Path, own: Path, given: FloatArray | None) -> None:
    """Leave references alone that neither this folder's data set nor the same file made.

    Args:
        target: Where they are to go.
        own: Those of the data set, if it is there already.
        given: Energies that were read from a file; None where they are fitted.

    Raises:
        DataError: There are other ones.
    """
    if not target.is_file() or (own.is_file() and filecmp.cmp(target, own, shallow=False)):
        return
    if given is not None and _holds(target, given):
        return
    raise DataError(f"{target} is there already, with other content; move it away, or pass --overwrite to replace it")


def _holds(file: Path, references: FloatArray) -> bool:
    """Tell whether a file holds these energies; one that cannot be read holds something else."""
    try:
        there = read_references(file)
    except DataError:
        return False
    return np.array_equal(np.nan_to_num(there), np.nan_to_num(references))


def copy(file: Path, target: Path) -> None:
    """Copy a file to a name under which it appears when it is complete.

    Raises:
        DataError: It cannot be written.
    """
    temporary = target.with_name(target.name + ".tmp")
    with writing(target):
        shutil.copyfile(file, temporary)
        temporary.replace(target)
