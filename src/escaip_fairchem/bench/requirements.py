"""The ratios that must be reached, and how they turned out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from escaip_fairchem.bench.tables import Table, format_number

REACHED, MISSED, NOT_MEASURED = "reached", "missed", "not measured"


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One line of what must be reached.

    Attributes:
        what: What is compared with what.
        device: Where it counts: ``cpu`` or ``cuda``.
        bound: The number to reach.
        unit: Written behind numbers: ``×`` or ``%``, ``GB`` ….
        at_most: Whether the bound is the largest allowed number rather than the smallest.
        also: A condition that has to hold besides, in words.
    """

    what: str
    device: str
    bound: float
    unit: str = "×"
    at_most: bool = False
    also: str = ""

    @property
    def target(self) -> str:
        """The bound in words."""
        words = f"{'at most' if self.at_most else 'at least'} {self.bound:g}{_spaced(self.unit)}"
        return f"{words}, {self.also}" if self.also else words


@dataclass(frozen=True, kw_only=True)
class Finding:
    """How a requirement turned out.

    Attributes:
        requirement: The requirement.
        value: What was measured; NaN if nothing was.
        holds: Whether the further condition holds; None if it was not looked at.
        how: The two numbers behind a ratio, or why there is none.
    """

    requirement: Requirement
    value: float = math.nan
    holds: bool | None = None
    how: str = ""

    @property
    def verdict(self) -> str:
        """``reached``, ``missed`` or ``not measured``."""
        requirement = self.requirement
        if math.isnan(self.value) or (requirement.also and self.holds is None):
            return NOT_MEASURED
        good = self.value <= requirement.bound if requirement.at_most else self.value >= requirement.bound
        return REACHED if good and self.holds is not False else MISSED

    @property
    def row(self) -> dict[str, Any]:
        """Row of the table."""
        measured = "" if math.isnan(self.value) else f"{format_number(self.value)}{_spaced(self.requirement.unit)}"
        return {
            "what": self.requirement.what,
            "where": {"cpu": "CPU", "cuda": "GPU"}[self.requirement.device],
            "wanted": self.requirement.target,
            "measured": measured or NOT_MEASURED,
            "verdict": self.verdict,
            "from": self.how,
        }


def _spaced(unit: str) -> str:
    return unit if unit in ("×", "%") else f" {unit}"


def requirements_table(findings: Sequence[Finding], notes: Sequence[str]) -> Table:
    """The table of all requirements."""
    return Table(
        title="Must reach",
        columns=("what", "where", "wanted", "measured", "verdict", "from"),
        rows=[finding.row for finding in findings],
        notes=notes,
    )


def ratio(large: float, small: float) -> float:
    """One number over another, NaN if either is missing."""
    return large / small if small > 0 else math.nan
