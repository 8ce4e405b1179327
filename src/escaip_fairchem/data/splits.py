"""Which structure goes to which split: by seed, or in order, with groups that stay together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escaip_fairchem.errors import DataError

from .defaults import SEED, SPLIT
from .schema import IntArray

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How to divide the structures.

    Attributes:
        parts: Up to three numbers for train, val and test: fractions that add up to 1, or counts. They are counts
            when all are whole and one is above 1.
        seed: Decides the shuffling.
        shuffle: Shuffle before dividing. Otherwise the splits are consecutive pieces in the order of the sources.
    """

    parts: tuple[float, ...] = SPLIT
    seed: int = SEED
    shuffle: bool = True

    def __post_init__(self) -> None:
        check_seed(self.seed)
        shown = " ".join(f"{part:g}" for part in self.parts)
        if not 1 <= len(self.parts) <= len(SPLITS) or not all(part >= 0 for part in self.parts):
            raise DataError(f"--split takes one to three numbers, none negative, for train, val and test; got {shown}")
        if self.parts[0] == 0:
            raise DataError(f"--split {shown} leaves nothing to train on")
        if not self.are_counts and abs(sum(self.parts) - 1) > 1e-6:
            raise DataError(
                f"--split {shown}: fractions must add up to 1, and these add up to {sum(self.parts):g}; "
                f"counts must be whole numbers"
            )

    @property
    def are_counts(self) -> bool:
        """Whether the parts are numbers of structures rather than fractions."""
        return all(float(part).is_integer() for part in self.parts) and max(self.parts) > 1

    def sizes(self, count: int) -> list[int]:
        """Number of structures per split, out of ``count``.

        Fractions use all of them, and give each split that is asked for one structure at least where they suffice;
        the first one goes to the training split.

        Raises:
            DataError: More are asked for than there are.
        """
        if self.are_counts:
            if sum(self.parts) > count:
                raise DataError(
                    f"--split asks for {int(sum(self.parts))} structures, and {count} are usable; ask for fewer, "
                    f"or give fractions"
                )
            return [int(part) for part in self.parts]
        exact = np.array(self.parts) * count
        sizes = np.floor(exact + 1e-9).astype(int)
        for split in np.argsort(-(exact - sizes), kind="stable")[: count - int(sizes.sum())]:
            sizes[split] += 1
        wanted = [split for split, part in enumerate(self.parts) if part > 0]
        for split in wanted if count >= len(wanted) else wanted[: min(count, 1)]:
            if sizes[split] == 0:
                sizes[np.argmax(sizes)] -= 1
                sizes[split] += 1
        return [int(size) for size in sizes]


def check_seed(seed: int) -> None:
    """Refuse what is no seed.

    Raises:
        DataError: It is negative.
    """
    if seed < 0:
        raise DataError(f"--seed must be a whole number, 0 or above; got {seed}")


def divide(count: int, options: SplitOptions, groups: NDArray[Any] | None = None) -> dict[str, IntArray]:
    """Divide structures 0 … count − 1.

    Args:
        count: Number of structures.
        options: How.
        groups: Number or name of every structure's group, shape (count,); a group never spans two splits, at the price
            of sizes that are only close to those asked for. None: every structure by itself.

    Returns:
        The rows of every split, in the order in which they are stored. With counts, rows may be left over.
    """
    order = np.arange(count)
    if options.shuffle:
        order = np.random.default_rng(options.seed).permutation(count)
    sizes = options.sizes(count)
    if groups is None:
        edges = np.cumsum([0, *sizes])
        pieces = [order[start:stop] for start, stop in pairwise(edges)]
    else:
        pieces = _divide_groups(order, groups, sizes)
    return {name: piece.astype(np.int64) for name, piece in zip(SPLITS, pieces, strict=False)}


def _divide_groups(order: IntArray, groups: NDArray[Any], sizes: Sequence[int]) -> list[IntArray]:
    """Give group after group, in the order of their first members, to the split that lacks most structures.

    Where counts leave structures over, the last "split" stands for those, and is dropped.
    """
    wanted = [*sizes, len(order) - sum(sizes)]
    _, member, count = np.unique(groups, return_inverse=True, return_counts=True)
    ordered = member.reshape(-1)[order]
    _, first = np.unique(ordered, return_index=True)
    lacking = np.array(wanted)
    home = np.empty(len(count), dtype=int)
    for group in ordered[np.sort(first)]:
        home[group] = int(np.argmax(lacking))
        lacking[home[group]] -= count[group]
    _fill_empty(home, count, sizes)
    return [order[home[ordered] == split] for split in range(len(sizes))]


def _fill_empty(home: IntArray, count: IntArray, sizes: Sequence[int]) -> None:
    """Give the smallest group of the split with most groups to any split that was asked for and got none.

    The only group there is goes to the training split, without which nothing can be fitted.
    """
    for split, size in enumerate(sizes):
        groups_per_split = np.bincount(home, minlength=len(sizes))
        donor = int(np.argmax(groups_per_split))
        if size > 0 and groups_per_split[split] == 0 and (groups_per_split[donor] > 1 or split == 0):
            candidates = np.flatnonzero(home == donor)
            home[candidates[np.argmin(count[candidates])]] = split
