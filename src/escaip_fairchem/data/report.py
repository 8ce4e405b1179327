"""What a data set holds and what was left out, as numbers and as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from .collection import Collection, Skipped
from .schema import FloatArray, FrameTable
from .statistics import Normalizer, referenced_energy
from .tally import Moments, Tally


def summarize(
    collection: Collection,
    tables: Mapping[str, FrameTable],
    references: FloatArray | None,
    normalizers: Mapping[str, Normalizer],
) -> dict[str, Any]:
    """Describe a data set: its splits, everything that was skipped, and what was fitted."""
    reasons = Counter(skip.reason.value for skip in collection.skipped)
    return {
        "read": len(collection) + len(collection.skipped),
        "usable": len(collection),
        "not_needed": len(collection) - sum(len(table) for table in tables.values()),
        "splits": {split: split_summary(table, references) for split, table in tables.items()},
        "skipped_by_reason": dict(sorted(reasons.items())),
        "skipped": [asdict(skip) | {"reason": skip.reason.value} for skip in collection.skipped],
        "element_references_eV": _by_symbol(references, tables["train"]),
        "normalizers": {name: {"mean": value.mean, "rmsd": value.rmsd} for name, value in normalizers.items()},
    }


def _by_symbol(references: FloatArray | None, train: FrameTable) -> dict[str, float]:
    if references is None:
        return {}
    present = np.flatnonzero(train.composition.any(axis=0))
    return {chemical_symbols[number]: float(references[number]) for number in present}


def split_summary(table: FrameTable, references: FloatArray | None = None) -> dict[str, Any]:
    """Describe one split: sizes, elements, energies and forces (over free atoms), in eV and eV/Å."""
    if len(table) == 0:
        return {"structures": 0}
    referenced = Moments.of(referenced_energy(table, references))
    with_stress = int(np.isfinite(table.stress).all(axis=1).sum())
    return {**Tally.of(table).described(referenced), "with_stress": with_stress}


COLUMNS = (
    ("structures", ("structures",)),
    ("atoms min", ("atoms", "smallest")),
    ("mean", ("atoms", "mean")),
    ("max", ("atoms", "largest")),
    ("eV/atom", ("energy_per_atom_eV", "mean")),
    ("energy − references (eV)", ("referenced_energy_eV", "mean")),
    ("±", ("referenced_energy_eV", "spread")),
    ("force RMS (eV/Å)", ("force_component_rms_eV_per_A",)),
    ("mean |component|", ("force_component_mean_absolute_eV_per_A",)),
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


def skip_table(skipped: Sequence[Skipped | Mapping[str, Any]]) -> str:
    """Lay the reasons out as a table: how many structures, and the first example of each."""
    entries = [skip if isinstance(skip, Mapping) else asdict(skip) | {"reason": skip.reason.value} for skip in skipped]
    if not entries:
        return "nothing was skipped"
    first: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        first.setdefault(entry["reason"], entry)
    counts = Counter(entry["reason"] for entry in entries)
    rows = [["skipped", "count", "first"]]
    for reason, count in counts.most_common():
        example = first[reason]
        rows.append([reason, str(count), f"{Path(example['file']).name}:{example['position']}: {example['detail']}"])
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{row[0].ljust(widths[0])}  {row[1].rjust(widths[1])}  {row[2]}" for row in rows)


def short_text(summary: Mapping[str, Any]) -> str:
    """Say what a data set holds and, by reason, what was skipped."""
    lines = [
        f"{summary['read']} structures read, {summary['usable']} usable, "
        f"{summary['read'] - summary['usable']} skipped, {summary['not_needed']} not needed",
        "",
        split_table(summary["splits"]),
        "(force columns: components, over atoms that are not fixed; largest |F|: of any atom)",
        "",
        skip_table(summary["skipped"]),
    ]
    lines += [f"note: {note}" for note in summary["notes"]]
    return "\n".join(lines)


def full_text(summary: Mapping[str, Any]) -> str:
    """Say the same, then list elements, references and every structure that was skipped."""
    lines = [short_text(summary), ""]
    if summary["element_references_eV"]:
        origin = summary.get("element_references_from", "fitted to the training split")
        lines.append(f"energy references (eV per atom), {origin}:")
        lines += [f"  {symbol:3s} {value:18.8f}" for symbol, value in summary["element_references_eV"].items()]
    for split, description in summary["splits"].items():
        elements = ", ".join(f"{symbol} {count}" for symbol, count in description.get("elements", {}).items())
        lines.append(f"atoms of each element in {split}: {elements or 'none'}")
    if summary["skipped"]:
        lines += ["", "every structure that was skipped:"]
        lines += [
            f"  {skip['file']}:{skip['position']}: {skip['reason']}: {skip['detail']}" for skip in summary["skipped"]
        ]
    return "\n".join(lines)
