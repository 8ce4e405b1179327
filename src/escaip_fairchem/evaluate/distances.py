"""h(r): how the distances between the atoms of a molecule are distributed, averaged over frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.geometry import find_mic

from escaip_fairchem.errors import ConfigError, DataError
from escaip_fairchem.evaluate.labels import FloatArray

_PAIRS_AT_ONCE = 4_000_000


class DistanceHistogram:
    """Counts distances of all pairs of atoms, frame by frame. Bin k holds the distances from k to k + 1 widths.

    Args:
        bin_width: Å.

    Raises:
        ConfigError: The width is not a positive number.
    """

    def __init__(self, bin_width: float) -> None:
        if not 0.0 < bin_width < np.inf:
            raise ConfigError(f"--bin-width {bin_width}: must be a positive number of Å")
        self.bin_width = bin_width
        self.counts = np.zeros(0, dtype=np.int64)
        self.frames = 0

    def add(self, positions_FN3: FloatArray, like: Atoms) -> None:
        """Count the distances of some frames.

        Args:
            positions_FN3: Positions of the same N atoms in F frames, shape (F, N, 3), Å.
            like: A structure with their cell and periodicity. Where it is periodic, the nearest image counts.

        Raises:
            DataError: There are less than two atoms, or a position is not finite.
        """
        count = positions_FN3.shape[1]
        if count < 2:
            raise DataError(f"h(r) needs two atoms at least; the structure has {count}")
        first, second = np.triu_indices(count, k=1)
        frames_at_once = max(1, _PAIRS_AT_ONCE // len(first))
        for start in range(0, len(positions_FN3), frames_at_once):
            some_FN3 = positions_FN3[start : start + frames_at_once]
            vectors = (some_FN3[:, second] - some_FN3[:, first]).reshape(-1, 3)
            if not np.isfinite(vectors).all():
                raise DataError("h(r): a position is not finite")
            lengths = find_mic(vectors, like.cell, like.pbc)[1] if like.pbc.any() else np.linalg.norm(vectors, axis=1)
            self._count(lengths)
            self.frames += len(some_FN3)

    def _count(self, lengths: FloatArray) -> None:
        counts = np.bincount((lengths / self.bin_width).astype(np.int64))
        size = max(len(counts), len(self.counts))
        self.counts = _padded(self.counts, size) + _padded(counts, size)

    @property
    def density(self) -> FloatArray:
        """h(r) in every bin, 1/Å; it integrates to 1 over all distances.

        Raises:
            DataError: Nothing was counted.
        """
        total = int(self.counts.sum())
        if total == 0:
            raise DataError("h(r): there is no frame to average over")
        return np.asarray(self.counts / (total * self.bin_width))

    @property
    def centers(self) -> FloatArray:
        """Middle of every bin, Å."""
        return np.asarray((np.arange(len(self.counts)) + 0.5) * self.bin_width)


@dataclass(frozen=True, kw_only=True)
class DistanceError:
    """How far two distributions are from each other, over the bins from 0 to the largest distance of either.

    Attributes:
        mean_absolute: Mean of |Δh| over the bins, 1/Å; it falls with the range that bins cover.
        integrated: ∫ |Δh| dr, no unit: 0 for equal distributions, 2 for those that share no distance.
    """

    mean_absolute: float
    integrated: float


def compare(first: DistanceHistogram, second: DistanceHistogram) -> DistanceError:
    """Compare two distributions of the same bin width.

    Raises:
        DataError: One of them holds no frame.
    """
    assert first.bin_width == second.bin_width, "the caller makes both"
    size = max(len(first.counts), len(second.counts))
    difference = np.abs(_padded(first.density, size) - _padded(second.density, size))
    return DistanceError(mean_absolute=float(difference.mean()), integrated=float(difference.sum() * first.bin_width))


def _padded(values: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    return np.pad(values, (0, size - len(values)))
