"""How fast the training's own loaders deliver batches, from a cold cache and from a warm one."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import torch
from fairchem.core.common.registry import registry
from torch_geometric.data import Data

from escaip_fairchem.plugin.prepared import NeighborSearch
from escaip_fairchem.plugin.trainer.loaders import Collater, build_loader


@dataclass(frozen=True, kw_only=True)
class LoadingRate:
    """What a loader delivered.

    Attributes:
        structures: Number of structures.
        atoms: Their atoms.
        seconds: From asking for the first batch to having the last one; for workers, their start is left out.
        record_bytes: Mean size of a record in the files.
    """

    structures: int
    atoms: int
    seconds: float
    record_bytes: float


def measure_loading(
    src: Path, *, cold: bool, workers: int, batch_size: int, seconds: float, search: NeighborSearch | None, seed: int
) -> LoadingRate:
    """Load batches of rows in random order, as a training does, for some seconds or to the end of the data.

    Args:
        src: A file or a folder in OC20's LMDB format.
        cold: Whether to put the files out of the operating system's cache first, as far as it lets go of them.
        workers: Processes that load; 0 loads in this one.
        batch_size: Structures per batch.
        seconds: When to stop.
        search: How to search neighbours while loading; None does not.
        seed: Decides the order.

    Raises:
        DataError: The files cannot be read.
    """
    files = sorted(src.glob("*.lmdb")) if src.is_dir() else [src]
    if cold:
        for file in files:
            put_out_of_cache(file)
    dataset = registry.get_dataset_class("lmdb")({"src": str(src)})
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    collate = Collater(stored_edges=False)
    collate.search = search
    rows = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    # Workers begin to load when the first batch is asked for, so that one, which waits for their start, does not count.
    loader = build_loader(dataset, rows, collate=collate, workers=workers, device=torch.device("cpu"))
    batches = iter(loader)
    structures = atoms = 0
    if workers:
        next(batches)
    began = time.perf_counter()
    for batch in batches:
        structures += len(batch.natoms)
        atoms += int(batch.natoms.sum())
        if time.perf_counter() - began > seconds:
            break
    spent = time.perf_counter() - began
    del batches
    size = sum(file.stat().st_size for file in files)
    return LoadingRate(structures=structures, atoms=atoms, seconds=spent, record_bytes=size / len(dataset))


def put_out_of_cache(file: Path) -> None:
    """Have the operating system forget what it has read of a file; nobody may have it mapped."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def write_records(path: Path, records: Iterator[dict[str, Any]]) -> int:
    """Write structures in OC20's LMDB format.

    Args:
        path: File to make.
        records: Entries of `torch_geometric.data.Data`.

    Returns:
        How many there were.
    """
    count = 0
    environment = lmdb.open(str(path), map_size=2**36, subdir=False, lock=False, sync=False)
    with environment.begin(write=True) as transaction:
        for count, record in enumerate(records, start=1):
            transaction.put(str(count - 1).encode(), pickle.dumps(Data(**record), protocol=-1))
        transaction.put(b"length", pickle.dumps(count, protocol=-1))
    environment.sync(True)
    environment.close()
    return count
