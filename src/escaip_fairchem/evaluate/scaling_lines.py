"""Which trainings a line of a figure of error against cost joins: those that differ in the cost alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ScalingPoint:
    """A training in a figure of error against cost.

    Attributes:
        name: Of the run.
        family: Kind of its model, or what the user calls it.
        held: What stays the same along a line, for example its number of training structures; None: not known.
        measured: Which structures the errors are of.
        x: Cost, in any unit.
        energy: Error of the energy, meV.
        forces: Error of a force component, meV/Å.
    """

    name: str
    family: str
    held: int | None
    measured: str
    x: float
    energy: float
    forces: float


@dataclass(frozen=True, kw_only=True)
class ScalingLine:
    """Trainings that belong together.

    Attributes:
        label: Family and what stays the same.
        family: Of all of them.
        points: By cost, the lowest first.
    """

    label: str
    family: str
    points: tuple[ScalingPoint, ...]

    @property
    def joined(self) -> bool:
        """Whether to draw the line: through several points at one cost it would only go up and down."""
        costs = [point.x for point in self.points]
        return len(costs) > 1 and len(set(costs)) == len(costs)


def lines_of(points: Sequence[ScalingPoint], unit: str) -> list[ScalingLine]:
    """Divide trainings into lines: one for each family, held value and set of structures that errors are of.

    Args:
        points: In any order.
        unit: What the held value counts, e.g. ``training structures``.

    Returns:
        Families in the order in which they occur, and the lines of each by rising held value, not known last.
    """
    families = list(dict.fromkeys(point.family for point in points))
    measures = list(dict.fromkeys(point.measured for point in points))
    amounts = short_numbers(point.held for point in points if point.held is not None)
    groups: dict[tuple[int, int, float], list[ScalingPoint]] = {}
    for point in points:
        held = math.inf if point.held is None else point.held
        key = (families.index(point.family), measures.index(point.measured), held)
        groups.setdefault(key, []).append(point)
    lines = []
    for _, group in sorted(groups.items()):
        first = group[0]
        amount = f"{unit} not known" if first.held is None else f"{amounts[first.held]} {unit}"
        where = f", on {first.measured}" if len(measures) > 1 else ""
        ordered = tuple(sorted(group, key=lambda point: point.x))
        lines.append(ScalingLine(label=f"{first.family}, {amount}{where}", family=first.family, points=ordered))
    return lines


def short_numbers(values: Iterable[int]) -> dict[int, str]:
    """Write numbers with three digits, e.g. ``83.3M``; all of them in full where two would look the same."""
    short = {value: _short(value) for value in values}
    return short if len(set(short.values())) == len(short) else {value: f"{value:,}" for value in short}


def _short(value: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= 0.9995 * size:  # from here on, three digits round to the size itself
            return f"{value / size:.3g}{letter}"
    return str(value)
