"""How many structures per second the training's loaders deliver: from a cold cache, and from a warm one."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from escaip_fairchem.bench.frames import Frame, load_pool
from escaip_fairchem.bench.models import import_baselines
from escaip_fairchem.bench.tables import Table

RECORDS, QUICK_RECORDS = 40_000, 200
"""Structures of a made data set: more than a training reads within the seconds of a case."""
BATCH = 16
CUTOFF, MAX_NEIGHBORS = 12.0, 20
"""Of the search, as OC20's configurations have them."""


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """What to measure.

    Attributes:
        src: A file or folder of LMDB files in OC20's format; None makes one.
        workers: Numbers of loader processes.
        seconds: Per case.
        seed: Decides the order, and a made data set.
        quick: Whether to make a set too small to mean anything.
    """

    src: Path | None = None
    workers: Sequence[int] = (0, 1, 2)
    seconds: float = 10.0
    seed: int = 0
    quick: bool = False


def loading_table(options: LoadingOptions) -> Table:
    """Measure all cases, one after the other.

    Raises:
        NotAvailableError: fairchem is not installed.
        DataError: The files cannot be read.
    """
    import_baselines()
    with tempfile.TemporaryDirectory() as folder:
        if options.src is not None:
            return _measure(options.src, f"{options.src}", options)
        count = QUICK_RECORDS if options.quick else RECORDS
        return _measure(_made(Path(folder), count, options.seed), f"{count:,} made structures as OC20's", options)


def _made(folder: Path, count: int, seed: int) -> Path:
    from escaip_fairchem.plugin.loading_rates import write_records

    pool = load_pool(None, seed=seed, count=3)
    path = folder / "made.lmdb"
    write_records(
        path, (_record(frame, row) for row, frame in zip(range(count), itertools.cycle(pool.frames), strict=False))
    )
    return path


def _record(frame: Frame, row: int) -> dict[str, Any]:
    """A structure as OC20's preprocessing stores it, without edges."""
    structure = frame.structure
    count = len(frame)
    return {
        "pos": structure.positions.float() + 0.01 * torch.randn(count, 3, generator=torch.Generator().manual_seed(row)),
        "cell": structure.cell.float().reshape(1, 3, 3),
        "atomic_numbers": structure.numbers.float(),
        "natoms": count,
        "tags": frame.tags,
        "fixed": (frame.tags == 0).float(),
        "y": float(row),
        "force": torch.zeros(count, 3),
        "sid": row,
        "fid": 0,
    }


def _measure(src: Path, what: str, options: LoadingOptions) -> Table:
    from escaip_fairchem.plugin.loading_rates import measure_loading
    from escaip_fairchem.plugin.prepared import NeighborSearch

    search = NeighborSearch(
        cutoff=CUTOFF,
        max_neighbors=MAX_NEIGHBORS,
        max_num_elements=100,
        use_pbc=True,
        on_the_fly=True,
        dtype=torch.float32,
    )
    rows = []
    size = 0.0
    for workers, (cold, own_search) in itertools.product(
        options.workers, ((True, None), (False, None), (False, search))
    ):
        rate = measure_loading(
            src,
            cold=cold,
            workers=workers,
            batch_size=BATCH,
            seconds=options.seconds,
            search=own_search,
            seed=options.seed,
        )
        size = rate.record_bytes
        per_second = rate.structures / rate.seconds
        rows.append(
            {
                "workers": workers,
                "cache": "cold" if cold else "warm",
                "neighbours": "searched" if own_search else "not searched",
                "structures/s": per_second,
                "atoms/s": rate.atoms / rate.seconds,
                "MB/s": per_second * size / 1e6,
                "structures": rate.structures,
            }
        )
    return Table(
        title="Loading",
        columns=("workers", "cache", "neighbours", "structures/s", "atoms/s", "MB/s", "structures"),
        rows=rows,
        notes=[
            f"{what}, {size:,.0f} bytes each, in random order, batches of {BATCH}",
            "cold: the files were put out of the operating system's cache first, and filled it again meanwhile; what a "
            "disk or a file server caches itself stays there",
            f"neighbours: {MAX_NEIGHBORS} within {CUTOFF:g} Å, as the trainer's loaders search them",
            "with workers, their start and the first batch do not count",
        ],
    )
