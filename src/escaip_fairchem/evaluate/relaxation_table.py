"""The table of relaxed structures: rows that are appended as structures finish, and the files made of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from escaip_fairchem.errors import ConfigError, DataError, nearest
from escaip_fairchem.evaluate.formation_energies import FormationEnergies
from escaip_fairchem.evaluate.relaxation_pool import Relaxed
from escaip_fairchem.evaluate.structure_dictionary import to_dictionary

LINES, TABLE = "relaxed.jsonl.gz", "relaxed.csv.gz"
STRUCTURE = "structure"
COLUMNS = (
    "material_id", "formula", "n_atoms", "status", "reason", "converged", "energy", "energy_per_atom", "n_steps",
    "fmax", "first_energy", "first_fmax", "n_frames", "path_length", "volume_ratio", STRUCTURE,
)  # fmt: skip
"""Of both files; the structure is in the JSON lines alone."""

Row = dict[str, Any]


def row_of(relaxed: Relaxed) -> Row:
    """A row of the table: numbers in eV, eV/Å and Å, None where there is no value."""
    atoms, energy = relaxed.atoms, relaxed.energy
    return {
        "material_id": relaxed.identifier,
        "formula": None if atoms is None else atoms.get_chemical_formula(),
        "n_atoms": None if atoms is None else len(atoms),
        "status": relaxed.status,
        "reason": relaxed.reason,
        "converged": relaxed.status == "converged",
        "energy": energy,
        "energy_per_atom": None if energy is None or atoms is None else energy / len(atoms),
        "n_steps": relaxed.steps,
        "fmax": relaxed.fmax,
        "first_energy": relaxed.first_energy,
        "first_fmax": relaxed.first_fmax,
        "n_frames": 0 if relaxed.first_energy is None else relaxed.steps + 1,
        "path_length": relaxed.path_length,
        "volume_ratio": relaxed.volume_ratio,
        STRUCTURE: None if atoms is None else to_dictionary(atoms),
    }


def parse_columns(pairs: Iterable[str]) -> dict[str, str]:
    """Read ``name=renamed`` pairs.

    Returns:
        New names by old ones, for those that change.

    Raises:
        ConfigError: A pair has another form, a column is unknown or given twice, or two columns would share a name.
    """
    renamed: dict[str, str] = {}
    for pair in pairs:
        name, equals, new = pair.partition("=")
        if not equals or not new:
            raise ConfigError(f"--columns {pair!r}: write name=renamed, for example energy=energy_escaip")
        if name not in COLUMNS:
            raise ConfigError(f"--columns {pair!r}: no column {name!r}{nearest(name, COLUMNS)}")
        if name in renamed:
            raise ConfigError(f"--columns {pair!r}: column {name!r} is renamed twice")
        renamed[name] = new
    shared = [name for name, count in Counter(renamed.get(name, name) for name in COLUMNS).items() if count > 1]
    if shared:
        raise ConfigError(f"--columns: two columns would be called {shared[0]!r}; rename the other one too")
    return renamed


class RowFile:
    """Finished rows, one JSON object per line, in the order in which they finished.

    Only whole lines count: what a stopped process left of a line is cut off.

    Args:
        path: The file; may be there already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[int, int] = {}
        path.touch()
        end = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                # Of a row written twice, by a run that repeated steps, the first counts: it is the same.
                self.places.setdefault(int(json.loads(line)["number"]), end)
                end += len(line)
        with path.open("r+b") as file:
            file.truncate(end)
        self._end = end

    def __contains__(self, number: int) -> bool:
        return number in self.places

    def __len__(self) -> int:
        return len(self.places)

    def append(self, number: int, row: Mapping[str, Any]) -> None:
        """Append a row; when this returns, the operating system has it."""
        line = (json.dumps({"number": number, **row}) + "\n").encode()
        with self.path.open("ab") as file:
            file.write(line)
        self.places[number] = self._end
        self._end += len(line)

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        """Rows by number."""
        with self.path.open("rb") as file:
            for number in sorted(self.places):
                file.seek(self.places[number])
                row = json.loads(file.readline())
                del row["number"]
                yield number, row


def write_table(
    rows: RowFile, folder: Path, renamed: Mapping[str, str], formation: FormationEnergies | None = None
) -> Row:
    """Write the JSON lines and the CSV file, both compressed and without a time in them.

    Args:
        rows: All rows.
        folder: Where to write.
        renamed: New names of columns.
        formation: Adds a column with formation energies; empty where a relaxation failed.

    Returns:
        Counts and means over all rows.
    """
    names = {name: renamed.get(name, name) for name in COLUMNS}
    flat = [name for name in COLUMNS if name != STRUCTURE]
    collected: list[Row] = []
    with (
        (folder / LINES).open("wb") as raw_lines,
        (folder / TABLE).open("wb") as raw_table,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw_lines, mtime=0) as lines,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw_table, mtime=0) as table,
        io.TextIOWrapper(table, encoding="utf-8", newline="") as text,
    ):
        writer = csv.writer(text)
        writer.writerow([*(names[name] for name in flat), *([] if formation is None else [formation.column])])
        for _, row in rows:
            shown = {names[name]: row[name] for name in flat}
            if formation is not None:
                shown[formation.column] = _formation_energy(row, formation)
            lines.write((json.dumps({**shown, names[STRUCTURE]: row[STRUCTURE]}) + "\n").encode())
            writer.writerow(["" if value is None else value for value in shown.values()])
            collected.append({name: row[name] for name in flat})
    return _summary(collected)


def _formation_energy(row: Row, formation: FormationEnergies) -> float | None:
    if row["energy"] is None or row["formula"] is None:
        return None
    return formation.per_atom(row["material_id"], row["formula"], row["energy"])


def read_table(path: Path, renamed: Mapping[str, str], computed: Collection[str] = ()) -> Iterator[Row]:
    """Read the JSON lines back, under the columns' own names.

    Args:
        path: The file.
        renamed: New names of columns.
        computed: Columns to leave out, which were computed from others.

    Raises:
        DataError: The file is damaged.
    """
    own = {renamed.get(name, name): name for name in COLUMNS}
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                yield {own[name]: value for name, value in json.loads(line).items() if name not in computed}
    except (OSError, EOFError, ValueError, KeyError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error!r}); make it again with --overwrite") from error


def _summary(rows: list[Row]) -> Row:
    status = Counter(row["status"] for row in rows)
    steps = [row["n_steps"] for row in rows if row["converged"]]
    return {
        "structures": len(rows),
        "converged": status["converged"],
        "not_converged": status["not converged"],
        "failed": status["failed"],
        "mean_steps_of_converged": float(np.mean(steps)) if steps else None,
        "failures": dict(Counter(row["reason"] for row in rows if row["status"] == "failed").most_common(20)),
    }
