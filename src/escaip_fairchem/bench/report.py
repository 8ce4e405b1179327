"""The benchmarks by name, and the page that a run of all of them makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from escaip_fairchem.bench.dynamics import run_md
from escaip_fairchem.bench.efficiency import run_efficiency
from escaip_fairchem.bench.options import Session
from escaip_fairchem.bench.ratios import run_ratios
from escaip_fairchem.bench.searches import run_neighbors
from escaip_fairchem.bench.tables import Table
from escaip_fairchem.bench.trainer import run_train

BENCHMARKS: dict[str, Callable[[Session], list[Table]]] = {
    "ratios": run_ratios,
    "efficiency": run_efficiency,
    "neighbors": run_neighbors,
    "md": run_md,
    "train": run_train,
}
"""In the order in which a run with a time limit does them: what matters most comes first."""


def write_page(tables: Sequence[Table], session: Session, folder: Path) -> Path:
    """Write a page with all tables and the date.

    Args:
        tables: In the page's order.
        session: The run.
        folder: Where to; the file is named after the machine.
    """
    machine = session.machine
    kind = "quick run, the figures mean nothing; " if session.options.quick else ""
    parts = [
        f"# Measured on {machine.name}",
        f"Made by `make bench-{'gpu' if machine.device == 'cuda' else 'cpu'}` on {machine.date} ({kind}seed "
        f"{session.options.seed}). How to read it: [README.md](README.md).",
        *(table.markdown() for table in tables),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{machine.slug}.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path
