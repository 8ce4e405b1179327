"""What a data set holds and what was left out, as numbers and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from .schema import FloatArray, FrameTable


def split_summary(table: FrameTable) -> dict[str, Any]:
    """Describe one split: sizes, elements, energies and forces (over free atoms), in eV and eV/Å."""
    if len(table) == 0:
        return {"structures": 0}
    composition = table.composition.sum(axis=0, dtype=np.int64)
    per_atom = table.energy / table.natoms
    with_forces = np.isfinite(table.force_squares)
    components = 3 * table.free_atoms[with_forces].sum()
    return {
        "structures": len(table),
        "atoms": {
            "smallest": int(table.natoms.min()),
            "mean": _rounded(table.natoms.mean()),
            "largest": int(table.natoms.max()),
        },
        "elements": {chemical_symbols[number]: int(composition[number]) for number in np.flatnonzero(composition)},
        "energy_eV": _mean_and_spread(table.energy),
        "energy_per_atom_eV": _mean_and_spread(per_atom),
        "force_component_rms_eV_per_A": _ratio(table.force_squares[with_forces].sum(), components, root=True),
        "force_component_mean_absolute_eV_per_A": _ratio(table.force_absolutes[with_forces].sum(), components),
        "force_largest_eV_per_A": _rounded(table.force_largest[with_forces].max(initial=0.0)),
        "with_energy": int(np.isfinite(table.energy).sum()),
        "with_forces": int(with_forces.sum()),
        "with_stress": int(np.isfinite(table.stress).all(axis=1).sum()),
    }


def _mean_and_spread(values: FloatArray) -> dict[str, float | None]:
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return {"mean": None, "spread": None}
    return {"mean": _rounded(known.mean()), "spread": _rounded(known.std())}


def _ratio(total: float, count: int, *, root: bool = False) -> float | None:
    if count == 0:
        return None
    return _rounded(np.sqrt(total / count) if root else total / count)


def _rounded(value: Any) -> float:
    return float(f"{float(value):.8g}")


COLUMNS = (
    ("structures", ("structures",)),
    ("atoms min", ("atoms", "smallest")),
    ("mean", ("atoms", "mean")),
    ("max", ("atoms", "largest")),
    ("energy (eV)", ("energy_eV", "mean")),
    ("spread", ("energy_eV", "spread")),
    ("eV/atom", ("energy_per_atom_eV", "mean")),
    ("force RMS (eV/Å)", ("force_component_rms_eV_per_A",)),
    ("mean |F|", ("force_component_mean_absolute_eV_per_A",)),
    ("largest |F|", ("force_largest_eV_per_A",)),
)


def split_table(splits: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay the splits' summaries out as a table, one line each; force columns are per component, over free atoms."""
    rows = [["split", *(title for title, _ in COLUMNS)]]
    for name, summary in splits.items():
        rows.append([name, *(_cell(summary, keys) for _, keys in COLUMNS)])
    return align(rows)


def align(rows: Sequence[Sequence[str]]) -> str:
    """Align cells in columns: the first to the left, the others to the right, a line below the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) if number == 0 else cell.rjust(width) for number, (cell, width) in pairs).rstrip()
        for pairs in (list(enumerate(zip(row, widths, strict=True))) for row in rows)
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _cell(summary: Mapping[str, Any], keys: Sequence[str]) -> str:
    value: Any = summary
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.5g}"
