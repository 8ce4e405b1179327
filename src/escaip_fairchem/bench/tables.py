"""Tables for people (Markdown) and programs (CSV)."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Cell = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with its heading.

    Attributes:
        title: Heading.
        columns: Names of the columns.
        rows: A value per column; what a row lacks is an empty cell.
        notes: Sentences below the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Cell]]
    notes: Sequence[str] = field(default_factory=tuple)

    def markdown(self, *, level: int = 2) -> str:
        """Format the table so that it reads well as plain text too."""
        lines = [list(self.columns), *([text_of(row.get(column)) for column in self.columns] for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        formatted = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
            for line in lines
        ]
        formatted.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        parts = [f"{'#' * level} {self.title}", "\n".join(formatted)]
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts)

    def write_csv(self, path: Path) -> Path:
        """Write the rows with full precision."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(self.columns), restval="")
            writer.writeheader()
            writer.writerows({column: row.get(column) for column in self.columns} for row in self.rows)
        return path


MakeTables = Callable[[], list[Table]]
"""Makes a benchmark's tables of what it has measured, and of the machine's rates as they are known by then: the best of
them may be found later, while another benchmark runs."""


def text_of(cell: Cell) -> str:
    """A value as a table shows it: three or four digits that matter."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return "" if math.isnan(cell) else format_number(cell)
    return cell.replace("|", "/")


def format_number(value: float) -> str:
    """Three digits that matter, without an exponent where that is short."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 4
        return f"{value:,.{digits}f}"
    return f"{value:.2e}"
