"""Data loaders that can say which samples of the data set a batch holds, and leave the global generators alone."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairchem.core.datasets import data_list_collater
from torch.utils.data import BatchSampler, DataLoader, get_worker_info

from escaip_fairchem.errors import DataError, EScAIPError
from escaip_fairchem.plugin.prepared import NeighborSearch, prepare, seal
from escaip_fairchem.plugin.trainer.handover import Packed, pack, unpack


class RecordingBatchSampler(BatchSampler):
    """A batch sampler that remembers, per pass, the rows of the data set that it handed out."""

    def __init__(self, inner: Any) -> None:
        """Wrap a batch sampler; every pass over it is recorded anew."""
        self.inner = inner
        self.batches: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        batches: list[list[int]] = []
        self.batches = batches
        for batch in self.inner:
            rows = [int(row) for row in batch]
            batches.append(rows)
            yield rows

    def __len__(self) -> int:
        return len(self.inner)


class DividedBatchSampler:
    """Every row of a data set once, in batches, divided among processes; some may have a batch less, or none.

    fairchem's sampler repeats rows until all processes have as many, which counts these twice in an evaluation.

    Args:
        dataset: Anything with a length.
        batch_size: Rows per batch.
        processes: Number of processes.
        rank: This one's.
    """

    def __init__(self, dataset: Sized, *, batch_size: int, processes: int, rank: int) -> None:
        self.rows = range(rank, len(dataset), processes)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(0, len(self.rows), self.batch_size):
            yield list(self.rows[first : first + self.batch_size])

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)


@dataclass(frozen=True)
class Fault:
    """Stands in for a batch that cannot be made.

    Out of a worker, torch raises errors with the text of their traceback as the message. As values they come whole.

    Attributes:
        error: Why not; raised where the batch was asked for.
    """

    error: EScAIPError


def rows_or_fault(dataset: Any, rows: Sequence[int]) -> list[Any]:
    """Read some rows for a loader, which asks data sets for them by ``__getitems__``.

    Returns:
        The samples, or a `Fault` alone.
    """
    try:
        return [dataset[row] for row in rows]
    except EScAIPError as error:
        return [Fault(error)]


def _opened(batch: Any) -> Any:
    """Raise what went wrong in a worker, or vouch for what it prepared."""
    if isinstance(batch, Packed):
        batch = unpack(batch)
    if isinstance(batch, Fault):
        raise batch.error
    return seal(batch)


class ForkSafeLoader(DataLoader[Any]):
    """A loader whose forked workers leave alone what they inherited, and whose batches vouch for what they bring.

    LMDB environments must not be used in a process that did not open them, which fairchem's LMDB data sets do: a worker
    then crashes now and then ("killed by signal: Segmentation fault"). Workers open their own (`reopen_databases`), and
    never destroy the inherited ones: these are frozen for the garbage collector, and thawed at once in the parent.
    """

    def __iter__(self) -> Any:
        gc.freeze()
        try:
            return map(_opened, super().__iter__())
        finally:
            gc.unfreeze()


class StartedAnew:
    """A data set for loader processes that start without what their parent has imported (spawned ones).

    A process that unpickles this imports this package first, without which it may be unable to import fairchem.

    Attributes:
        dataset: The data set.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, row: int) -> Any:
        return self.dataset[row]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


_inherited: list[Any] = []
"""In a worker: environments of the parent, kept so that nothing closes them."""


def reopen_databases(worker: int) -> None:
    """Open a worker's own LMDB environments.

    Args:
        worker: Its number, as the loader passes it.
    """
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # SLURM may send them to all processes; the parent decides what they mean
    info = get_worker_info()
    dataset: Any = None if info is None else info.dataset
    while hasattr(dataset, "dataset"):  # subsets and concatenations of one
        dataset = dataset.dataset
    if not hasattr(dataset, "connect_db"):
        return
    if "env" in vars(dataset):
        _inherited.append(dataset.env)
        dataset.env = dataset.connect_db(Path(dataset.env.path()))
    if "envs" in vars(dataset):
        _inherited.extend(dataset.envs)
        dataset.envs = [dataset.connect_db(Path(environment.path())) for environment in dataset.envs]


class Collater:
    """fairchem's collation, with the neighbours that the model needs, and without a warning where data hold no edges.

    Attributes:
        search: How the model looks for neighbours; None leaves that to it.
    """

    def __init__(self, *, stored_edges: bool) -> None:
        """Prepare.

        Args:
            stored_edges: Whether edges are taken from the data if they are there.
        """
        self.stored_edges = stored_edges
        self.search: NeighborSearch | None = None

    def __call__(self, samples: Sequence[Any]) -> Any:
        """Join samples into a batch.

        Returns:
            The batch; in a worker packed, or a `Fault`.

        Raises:
            DataError: A sample's ``natoms`` contradicts its positions (said here, where no device has to be waited
                for), or it lacks what others have.
        """
        in_worker = get_worker_info() is not None
        try:
            batch = self._joined(samples)
        except EScAIPError as error:
            if not in_worker:
                raise
            return Fault(error)
        return pack(batch) if in_worker else batch

    def _joined(self, samples: Sequence[Any]) -> Any:
        for sample in samples:
            if isinstance(sample, Fault):
                raise sample.error
            if int(sample.natoms) != sample.pos.shape[0]:
                name = sample.get("sid")
                raise DataError(
                    f"sid {name!r}: natoms is {int(sample.natoms)}, but there are {sample.pos.shape[0]} positions"
                )
        with_edges = self.stored_edges and all(sample.get("edge_index") is not None for sample in samples)
        try:
            batch = data_list_collater(samples, otf_graph=not with_edges)
        except (KeyError, AttributeError) as error:
            raise _uneven(samples, error) from error
        if self.search is not None:
            prepare(batch, self.search)
        return batch


def _uneven(samples: Sequence[Any], error: Exception) -> DataError:
    """Say which sample lacks what the first one has, which is why they cannot be joined."""
    first = samples[0]
    for sample in samples:
        absent = sorted(set(first.keys()) - set(sample.keys()))
        if absent:
            return DataError(
                f"sid {sample.get('sid')!r}: has no {absent[0]!r}, but sid {first.get('sid')!r} beside it does; "
                "either all structures of a data set hold an entry, or none"
            )
    return DataError(f"the structures from sid {first.get('sid')!r} on cannot be joined into a batch: {error!r}")


def build_loader(
    dataset: Any, sampler: Any, *, collate: Callable[[Sequence[Any]], Any], workers: int, device: torch.device
) -> DataLoader[Any]:
    """Build the loader of a data set.

    Args:
        dataset: fairchem's data set.
        sampler: fairchem's batch sampler.
        collate: From samples to a batch.
        workers: Processes that load; 0 loads in this one.
        device: Memory is pinned only where that speeds up copies to it.
    """
    if workers and torch.multiprocessing.get_start_method() != "fork":
        dataset = StartedAnew(dataset)
    return ForkSafeLoader(
        dataset,
        batch_sampler=RecordingBatchSampler(sampler),
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=reopen_databases,
        pin_memory=device.type == "cuda",
        # Starting an iterator draws a number; from the global generator it would shift dropout after a resume.
        generator=torch.Generator(),
    )


def seed_loader(loader: DataLoader[Any], seed: int, epoch: int) -> None:
    """Fix the seeds that a loader's workers get in an epoch."""
    if loader.generator is not None:
        loader.generator.manual_seed((seed * 1_000_003 + epoch) % 2**63)


def loaded_rows(loader: Any) -> list[list[int]] | None:
    """Rows of the data set in every batch of the pass that is running, or None where nobody recorded them."""
    sampler = getattr(loader, "batch_sampler", None)
    return sampler.batches if isinstance(sampler, RecordingBatchSampler) else None


def original_order(dataset: Any, rows: Sequence[int]) -> list[int]:
    """Places of rows in the file: fairchem shuffles even validation and test sets unless told ``no_shuffle``."""
    indices = getattr(dataset, "indices", None)
    return list(rows) if indices is None else [int(indices[row]) for row in rows]
