"""The benchmarks by name, and the page that a run of all of them makes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from escaip_fairchem.bench.dynamics import run_md
from escaip_fairchem.bench.efficiency import run_efficiency
from escaip_fairchem.bench.machine import describe_machine
from escaip_fairchem.bench.options import Session
from escaip_fairchem.bench.ratios import run_ratios
from escaip_fairchem.bench.searches import run_neighbors
from escaip_fairchem.bench.tables import MakeTables, Table
from escaip_fairchem.bench.trainer import run_train

BENCHMARKS: dict[str, Callable[[Session], MakeTables]] = {
    "ratios": run_ratios,
    "efficiency": run_efficiency,
    "neighbors": run_neighbors,
    "md": run_md,
    "train": run_train,
}
"""In the order in which a run of all does them: what matters most comes first."""

SHARES = {"ratios": 0.65, "efficiency": 0.55, "neighbors": 0.3, "md": 0.6, "train": 1.0}
"""Of the time that is left, how much each may take in a run of all with a time limit."""


def run_benchmark(name: str, session: Session, *, alone: bool) -> MakeTables:
    """Run a benchmark.

    Args:
        name: Key of :data:`BENCHMARKS`.
        session: The run.
        alone: Whether no other follows.

    Returns:
        Makes its tables, and their files where there is a folder for them.
    """
    with session.runner.share_of_time(1.0 if alone else SHARES[name]):
        return BENCHMARKS[name](session)


def page_folder(device: str, folder: Path) -> Path:
    """Where the tables and figures of a page lie: a folder named after the machine."""
    return folder / describe_machine(device).slug


def write_page(tables: Sequence[Table], session: Session, folder: Path) -> Path:
    """Write a page with all tables and the date.

    Args:
        tables: In the page's order.
        session: The run.
        folder: Where to; the file is named after the machine.
    """
    machine = session.machine
    kind = "A quick run: the figures mean nothing. " if session.options.quick else ""
    target = "gpu" if machine.device == "cuda" else "cpu"
    parts = [
        f"# Measured on {machine.name}",
        f"{kind}Made by `make bench-{target}` on {machine.date}, seed {session.options.seed}. "
        "[README.md](README.md) says how to read it.",
        *(table.markdown() for table in tables),
    ]
    out = session.options.out
    if out is not None and (out / "efficiency.png").is_file():
        place = Path(os.path.relpath(out / "efficiency.png", folder)).as_posix()
        parts.append(f"![samples per second and peak memory against batch size]({place})")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{machine.slug}.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path
