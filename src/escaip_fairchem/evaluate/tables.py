"""Tables of measurements, for people (Markdown) and programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One row of a table.

    Attributes:
        part: What was done.
        name: What was measured.
        value: The number, or True or False.
        unit: Its unit; empty where it has none.
        note: Remark.
    """

    part: str
    name: str
    value: float | int | bool
    unit: str = ""
    note: str = ""

    @property
    def text(self) -> str:
        """Value and unit as the table shows them."""
        if isinstance(self.value, bool):
            return "yes" if self.value else "no"
        number = f"{self.value:,}" if isinstance(self.value, int) else f"{self.value:.4g}"
        return f"{number} {self.unit}".rstrip()


def as_markdown(rows: Sequence[Measurement]) -> str:
    """Format a table that reads well as plain text and as Markdown."""
    cells = [("part", "measured", "value", "note"), *((row.part, row.name, row.text, row.note) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def save_table(rows: Sequence[Measurement], stem: Path) -> None:
    """Write ``<stem>.md`` and ``<stem>.json``."""
    stem.with_suffix(".md").write_text(as_markdown(rows) + "\n", encoding="utf-8")
    text = json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False)
    stem.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
