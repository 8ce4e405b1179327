"""An energy per element for data sets of any size: fitted to sums over the structures, or read from a file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from escaip_fairchem.errors import DataError

from .schema import LARGEST_ATOMIC_NUMBER, FloatArray, FrameTable, IntArray
from .tally import Moments, Tally

ELEMENTS = LARGEST_ATOMIC_NUMBER + 1
KEYS = ("coeff", "element_references")
"""Names in a file: OC22's own, and the one that fairchem writes."""
# Singular values below this fraction of the largest are rounding noise. An element that occurs once among ten million
# structures still is well above it.
NEGLIGIBLE = 1e-13


@dataclass(frozen=True)
class NormalEquations:
    """What a least-squares fit of an energy per element needs to know about some structures.

    With c the atoms of every element in a structure and E its energy:

    Attributes:
        products: Σ c cᵀ, shape (119, 119), exact.
        moments: Σ c E, shape (119,), eV.
    """

    products: IntArray
    moments: FloatArray

    @classmethod
    def empty(cls) -> NormalEquations:
        """Those of no structure."""
        return cls(np.zeros((ELEMENTS, ELEMENTS), dtype=np.int64), np.zeros(ELEMENTS))

    @classmethod
    def of(cls, table: FrameTable) -> NormalEquations:
        """Those of the structures whose energy is known."""
        known = np.isfinite(table.energy)
        counts = table.composition[known].astype(np.float64)  # whole numbers, exact below 2⁵³
        return cls((counts.T @ counts).astype(np.int64), counts.T @ table.energy[known])

    def __add__(self, other: NormalEquations) -> NormalEquations:
        return NormalEquations(self.products + other.products, self.moments + other.moments)

    def solve(self) -> FloatArray:
        """Fit the references, as `fit_element_references` does with all structures at hand.

        Where compositions do not determine them, the solution of least norm is taken. Elements that never occur get 0.

        Returns:
            Shape (119,), eV per atom.
        """
        references = np.zeros(ELEMENTS)
        present = np.flatnonzero(self.products.diagonal())
        if len(present) == 0:
            return references
        matrix = self.products[np.ix_(present, present)].astype(np.float64)
        moments = self.moments[present]
        scale = 1 / np.sqrt(matrix.diagonal())  # rare elements beside common ones cost no digits then
        scaled = matrix * np.outer(scale, scale)
        if np.linalg.matrix_rank(scaled, tol=NEGLIGIBLE * len(present), hermitian=True) == len(present):
            references[present] = scale * np.linalg.solve(scaled, scale * moments)
        else:
            references[present] = np.linalg.lstsq(matrix, moments, rcond=NEGLIGIBLE)[0]
        return references

    def residual(self, tally: Tally, references: FloatArray) -> Moments:
        """Mean and spread of E − Σ references over the structures, all of which have an energy.

        Args:
            tally: Of the same structures.
            references: Energy per element, shape (119,), eV.
        """
        count = tally.energy.count
        if count == 0:
            return Moments()
        composition = tally.composition / count
        covariance = self.moments - count * composition * tally.energy.mean
        variance = self.products - count * np.outer(composition, composition)
        squares = tally.energy.squares - 2 * references @ covariance + references @ variance @ references
        return Moments(count, float(tally.energy.mean - references @ composition), max(float(squares), 0.0))


def read_references(file: Path) -> FloatArray:
    """Read energies per element.

    Args:
        file: An ``.npz`` with an array ``coeff`` (as OC22 publishes it) or ``element_references``, indexed by atomic
            number, eV per atom.

    Returns:
        Shape (119,); NaN for elements that the file does not hold, where it has NaN or 0 or ends before.

    Raises:
        DataError: It cannot be read, or holds something else.
    """
    try:
        with np.load(file) as saved:
            found = {key: np.asarray(saved[key], dtype=np.float64) for key in KEYS if key in saved.files}
            names = list(saved.files)
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"--references {file} cannot be read as an .npz file of numbers ({error})") from None
    if not found:
        raise DataError(
            f"--references {file} holds {', '.join(names) or 'nothing'}, and neither {' nor '.join(KEYS)}: an array of "
            f"energies (eV) indexed by atomic number"
        )
    key, values = next(iter(found.items()))
    flat = values.reshape(-1)
    if values.size != max(values.shape, default=0) or len(flat) > ELEMENTS or np.isinf(flat).any():
        raise DataError(
            f"--references {file}: {key} has shape {values.shape}; expected one finite energy per atomic number, at "
            f"most {ELEMENTS}"
        )
    references = np.full(ELEMENTS, np.nan)
    references[: len(flat)] = np.where(flat == 0, np.nan, flat)
    return references


def complete_references(references: FloatArray, examples: Mapping[int, str], file: Path) -> FloatArray:
    """Make sure that every element in the data has a reference, and give 0 to all others that have none.

    Args:
        references: As read, shape (119,), NaN where there is none.
        examples: Every element in the data, with the name of a structure that holds it.
        file: Where the references are from, for the message.

    Returns:
        Shape (119,), all finite.

    Raises:
        DataError: Names the elements without a reference, each with its structure.
    """
    lacking = [number for number in sorted(examples) if not np.isfinite(references[number])]
    if lacking:
        shown = ", ".join(f"{chemical_symbols[number]} ({examples[number]})" for number in lacking)
        raise DataError(
            f"--references {file} has no energy (none, 0 or NaN) for elements in the data: {shown}. Add them, or leave "
            f"--references out to fit energies to the training split"
        )
    return np.nan_to_num(references, nan=0.0)
