"""A word for each of many structures, every different word held once.

An array of text takes four bytes per character of its longest entry for every entry: a million structures beside one
SMILES of a thousand characters would need four gigabytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .schema import BoolArray, IntArray


@dataclass(frozen=True)
class Words:
    """The words of n structures.

    Attributes:
        known: The different words, sorted, so that numbers have the order of words; some may be nobody's.
        number: Which of them each structure has, shape (n,).
    """

    known: tuple[str, ...]
    number: IntArray

    def __len__(self) -> int:
        return len(self.number)

    @classmethod
    def of(cls, words: Iterable[str]) -> Words:
        """Number the words of some structures."""
        numbers: dict[str, int] = {}
        given = np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.int64)
        return cls._sorted(tuple(numbers), given)

    @classmethod
    def concatenate(cls, parts: Sequence[Words]) -> Words:
        """Put the words of several lots of structures one after the other."""
        numbers: dict[str, int] = {}
        lots = [np.empty(0, dtype=np.int64)]
        for part in parts:
            renumbered = [numbers.setdefault(word, len(numbers)) for word in part.known]
            lots.append(np.array(renumbered, dtype=np.int64)[part.number])
        return cls._sorted(tuple(numbers), np.concatenate(lots))

    @classmethod
    def _sorted(cls, words: tuple[str, ...], number: IntArray) -> Words:
        order = sorted(range(len(words)), key=words.__getitem__)
        place = np.empty(len(words), dtype=np.int64)
        place[order] = np.arange(len(words))
        return cls(tuple(words[row] for row in order), place[number])

    def take(self, rows: IntArray) -> Words:
        """Select structures, in the order asked for."""
        return Words(self.known, self.number[rows])

    def counts(self) -> dict[str, int]:
        """Count the structures of every word that occurs, in the order of the words."""
        found = np.bincount(self.number, minlength=len(self.known))
        return {word: int(count) for word, count in zip(self.known, found, strict=True) if count}

    def is_word(self, word: str) -> BoolArray:
        """Tell which structures have a word, shape (n,)."""
        if word not in self.known:
            return np.zeros(len(self), dtype=bool)
        return np.asarray(self.number == self.known.index(word))

    def arrays(self, name: str) -> dict[str, np.ndarray[Any, Any]]:
        """Return what a file of arrays can hold, each array's name beginning with ``name``."""
        return {f"{name}_known": np.array(json.dumps(self.known)), f"{name}_number": self.number}

    @classmethod
    def from_arrays(cls, name: str, saved: Mapping[str, Any]) -> Words:
        """Read them back."""
        return cls(tuple(json.loads(str(saved[f"{name}_known"]))), saved[f"{name}_number"])
