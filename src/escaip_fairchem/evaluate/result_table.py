"""Tables of results: as text for a terminal, as CSV for programs, as LaTeX (booktabs) for papers."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Value = float | int | str | None
_LATEX_SPECIAL = {"\\": r"\textbackslash{}", **{character: f"\\{character}" for character in "&%$#_{}"}}
_LATEX_SPECIAL |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "Å": r"\AA{}", "³": "$^3$"}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of numbers.

    Attributes:
        key: Under which rows hold its values, and programs find them.
        heading: Its name.
        unit: Unit of the values; empty where they have none.
        digits: Decimals that are shown. Small values are shown with two digits that matter.
        whole: Whether values are whole numbers.
        printed: Whether it belongs into a paper's table.
    """

    key: str
    heading: str
    unit: str = ""
    digits: int = 2
    whole: bool = False
    printed: bool = True

    @property
    def title(self) -> str:
        """Name and unit."""
        return f"{self.heading} ({self.unit})" if self.unit else self.heading

    @property
    def csv_title(self) -> str:
        """Key and unit in plain letters, e.g. ``forces_mae_meV_per_A``."""
        unit = self.unit.replace("/", "_per_").replace("Å", "A").replace("³", "3").replace("%", "percent")
        return f"{self.key}_{unit}" if unit else self.key

    def text(self, value: Value) -> str:
        """A value as it is shown; a dash where there is none."""
        if value is None:
            return "–"
        if isinstance(value, str):
            return value
        if self.whole:
            return f"{value:,.0f}"
        if 0 < abs(value) < 10.0 ** (1 - self.digits):
            return f"{value:.1e}" if abs(value) < 1e-6 else f"{value:.2g}"
        return f"{value:.{self.digits}f}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table.

    Attributes:
        label: What it is about.
        values: By the key of the column; what is missing or None is not known.
        summary: Whether it sums up other rows, and is set apart from them.
    """

    label: str
    values: Mapping[str, Value]
    summary: bool = False


@dataclass(frozen=True, kw_only=True)
class ResultTable:
    """A table.

    Attributes:
        title: Its heading.
        label: Heading of the column of labels.
        columns: The others.
        rows: In order.
        notes: Sentences below it.
    """

    title: str
    label: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Format for a terminal."""
        lines = [[self.label, *(column.title for column in self.columns)]]
        lines += [
            [row.label, *(column.text(row.values.get(column.key)) for column in self.columns)] for row in self.rows
        ]
        widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
        formatted = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
        rule = "-" * len(formatted[0])
        for place in reversed(self._rules()):
            formatted.insert(1 + place, rule)
        return "\n".join([self.title, "", *formatted, *([""] if self.notes else []), *self.notes])

    def csv(self) -> str:
        """Format for programs, with all digits; what is not known is empty."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([self.label.replace(" ", "_"), *(column.csv_title for column in self.columns)])
        for row in self.rows:
            writer.writerow([row.label, *(row.values.get(column.key) for column in self.columns)])
        return stream.getvalue()

    def latex(self) -> str:
        """Format for a paper that loads ``booktabs``: the columns that belong there, rounded as shown."""
        columns = [column for column in self.columns if column.printed]
        lines = [_latex_line([self.label, *(column.title for column in columns)])]
        lines += [
            _latex_line([row.label, *(column.text(row.values.get(column.key)) for column in columns)])
            for row in self.rows
        ]
        for place in reversed(self._rules()):
            lines.insert(1 + place, r"\midrule")
        comments = [f"% {self.title}", *(f"% {note}" for note in self.notes)]
        begin = rf"\begin{{tabular}}{{l{'r' * len(columns)}}}"
        return "\n".join([*comments, begin, r"\toprule", *lines, r"\bottomrule", r"\end{tabular}", ""])

    def save(self, stem: Path) -> list[Path]:
        """Write ``<stem>.csv`` and ``<stem>.tex``, and return the paths."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        paths = [stem.with_name(f"{stem.name}.csv"), stem.with_name(f"{stem.name}.tex")]
        for path, text in zip(paths, (self.csv(), self.latex()), strict=True):
            path.write_text(text, encoding="utf-8")
        return paths

    def _rules(self) -> list[int]:
        """Rows before which a line is drawn: the first, and the first summary after others."""
        changes = [
            place for place in range(1, len(self.rows)) if self.rows[place].summary > self.rows[place - 1].summary
        ]
        return [0, *changes]


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join("".join(_LATEX_SPECIAL.get(letter, letter) for letter in cell) for cell in cells) + r" \\"
