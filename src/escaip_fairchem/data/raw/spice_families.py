"""What SPICE's many subsets belong to: ``SPICE PubChem Set 6 Single Points Dataset v1.2`` is a part of PubChem.

Names of sets carry numbers, versions and words that differ between releases, so they are recognised by rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MACE_OFF = (
    "PubChem",
    "DES370K monomers",
    "DES370K dimers",
    "dipeptides",
    "solvated amino acids",
    "water",
    "QMugs",
)
"""What MACE-OFF's set is made of, and errors are reported for."""

_RULES = tuple(
    (re.compile(rf"\b(?:{words})\b"), family)
    for words, family in (
        # More special names first: these hold words of others, too.
        ("boron|silicon", "boron and silicon"),
        ("solvated pubchem", "solvated PubChem"),
        ("amino acids? ligands?", "amino acids with ligands"),
        ("pubchem", "PubChem"),
        ("des(?:370k)? monomers?", "DES370K monomers"),
        ("des370k", "DES370K dimers"),
        ("dipeptides?", "dipeptides"),
        ("solvated amino acids?", "solvated amino acids"),
        ("water", "water"),
        ("qmugs", "QMugs"),
        ("ion pairs?", "ion pairs"),
    )
)


def family_of(subset: str) -> str:
    """Name the family of a subset; a name that no rule knows is a family of its own."""
    words = " ".join(re.findall(r"[a-z0-9]+", subset.lower()))
    return next((family for pattern, family in _RULES if pattern.search(words)), subset)


def family_of_all(subsets: Iterable[str]) -> str:
    """Name the families of a molecule that is in some subsets, each once."""
    return "; ".join(dict.fromkeys(map(family_of, subsets)))
