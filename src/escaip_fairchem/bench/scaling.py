"""Where a training on many GPUs would spend its time: what is counted and measured here, over rates that are assumed.

Nothing of it ran on a cluster. Counted are operations, bytes and parameters; measured on this machine, what one loader
process delivers; simulated, how unevenly atoms fall on processes. How fast a GPU computes and how fast nodes exchange
data, the reader has to know: the tables have a row for each value.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from escaip_fairchem.bench.frames import draw_atom_counts
from escaip_fairchem.bench.tables import Table
from escaip_fairchem.errors import ConfigError, DataError

TRAINING_PASSES = 3.0
"""Operations of a training step over those of a forward pass: gradients of inputs and of weights are two more."""
BACKWARD_SHARE = 2 / 3
"""Of a step's time, during which gradients can be exchanged while others are computed."""
GRADIENT_BYTES = 4
"""Of a parameter: gradients are float32 in any precision of the products."""
SIMULATED_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Loader:
    """What one loader process delivers.

    Attributes:
        read: Structures per second without a neighbour search.
        searched: Structures per second with it.
        atoms: Mean atoms of the structures that this was measured on.
        record_bytes: Of a structure in the files.
    """

    read: float
    searched: float
    atoms: float
    record_bytes: float


@dataclass(frozen=True, kw_only=True)
class Training:
    """What of a configuration and its data decides.

    Attributes:
        parameters: Number of parameters.
        flops_per_atom: Operations of a training step per atom.
        batch_size: Structures per process and step.
        epochs: Passes over the data.
        structures: Of the training set.
        sizes: Numbers of atoms of structures that stand for all.
    """

    parameters: int
    flops_per_atom: float
    batch_size: int
    epochs: float
    structures: int
    sizes: Sequence[int]

    @property
    def mean_atoms(self) -> float:
        """Atoms per structure."""
        return sum(self.sizes) / len(self.sizes)

    @property
    def step_flops(self) -> float:
        """Operations of a process in a mean step."""
        return self.flops_per_atom * self.mean_atoms * self.batch_size

    def compute_seconds(self, teraflops: float) -> float:
        """A mean step of a process alone."""
        return self.step_flops / (teraflops * 1e12)

    def exchanged_bytes(self, nodes: int) -> float:
        """What each node sends per step, and receives: a sum over nodes in a ring moves all twice, but for a share."""
        return 2 * (nodes - 1) / nodes * GRADIENT_BYTES * self.parameters


@dataclass(frozen=True, kw_only=True)
class Imbalance:
    """Atoms of the process that has most over the mean, averaged over steps; each step waits for that process.

    Attributes:
        drawn: Batches as they are drawn.
        balanced: The structures of a step divided anew by their atoms, as with ``optim.load_balancing: atoms``.
    """

    drawn: float
    balanced: float


def simulate_imbalance(training: Training, processes: int, *, seed: int) -> Imbalance:
    """Draw the batches of some steps, and divide them in both ways.

    Args:
        training: Its batch size, and sizes to draw from.
        processes: Number of processes.
        seed: Decides what is drawn.
    """
    sizes = torch.tensor(training.sizes, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = balanced = mean = 0.0
    for _ in range(SIMULATED_STEPS):
        rows = torch.randint(len(sizes), (processes, training.batch_size), generator=generator)
        loads = sizes[rows].sum(dim=1)
        drawn += float(loads.max())
        balanced += max(divide_evenly(sizes[rows].flatten().tolist(), processes))
        mean += float(loads.mean())
    return Imbalance(drawn=drawn / mean, balanced=balanced / mean)


def divide_evenly(sizes: Sequence[float], parts: int) -> list[float]:
    """Sums of parts, filled from the largest size down, each into the smallest part so far, as fairchem's sampler does.

    Args:
        sizes: At least as many as parts.
        parts: Number of parts.
    """
    loads = [0.0] * parts
    for size in sorted(sizes, reverse=True):
        heapq.heapreplace(loads, loads[0] + size)
    return loads


@dataclass(frozen=True, kw_only=True)
class ScalingOptions:
    """What to count and to assume.

    Attributes:
        config: A training's configuration.
        gpus: Numbers of GPUs, one process each.
        gpus_per_node: GPUs of a node.
        teraflops: Assumed rates that a GPU achieves on this model, in 10^12 operations per second.
        node_gigabytes: Assumed rates at which a node sends and receives, in 10^9 bytes per second, with all its links.
        workers: Loader processes per GPU.
        structures: Of the training set.
        metadata: A data set's ``metadata.npz`` with its numbers of atoms; None draws from a distribution like OC20's.
        seconds: To measure the loader for, per case.
        seed: Decides what is drawn.
    """

    config: Path
    gpus: Sequence[int] = (64, 512)
    gpus_per_node: int = 8
    teraflops: Sequence[float] = (50.0, 100.0, 200.0, 400.0)
    node_gigabytes: Sequence[float] = (25.0, 100.0, 400.0)
    workers: Sequence[int] = (1, 2, 4, 8)
    structures: int = 172_000_000
    metadata: Path | None = None
    seconds: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        for flag, count in (("--gpus-per-node", self.gpus_per_node), ("--structures", self.structures)):
            if count < 1:
                raise ConfigError(f"{flag} {count}: must be at least 1")
        for number in self.gpus:
            if number < self.gpus_per_node or number % self.gpus_per_node:
                raise ConfigError(f"--gpus {number}: not a multiple of {self.gpus_per_node}, the GPUs of a node")


def scaling_tables(options: ScalingOptions) -> list[Table]:
    """Count, measure, simulate.

    Raises:
        ConfigError: The configuration is no training of this package's model.
        DataError: ``metadata`` cannot be read.
    """
    training = read_training(options)
    loader = measure_loader(options)
    imbalances = {number: simulate_imbalance(training, number, seed=options.seed) for number in options.gpus}
    return [
        counted_table(training, loader, imbalances, options),
        time_table(training, loader, imbalances, options),
        *limit_tables(training, loader, options),
    ]


def read_training(options: ScalingOptions) -> Training:
    """What the tables need of a configuration.

    Raises:
        ConfigError: The configuration is no training of this package's model, or one with forces as derivatives.
        DataError: ``metadata`` cannot be read.
    """
    from escaip_fairchem.plugin.info import inspect_config, is_complete

    info = inspect_config(options.config)
    if info.costs is None or not is_complete(info.config):
        raise ConfigError(f"--config {options.config}: not a training of one of this package's models")
    if "head forces" not in info.parameters:
        raise ConfigError(f"--config {options.config}: forces are derivatives there, whose operations are not counted")
    optim = info.config["optim"]
    return Training(
        parameters=info.total,
        flops_per_atom=TRAINING_PASSES * info.costs.forward_flops,
        batch_size=int(optim["batch_size"]),
        epochs=float(optim["max_epochs"]),
        structures=options.structures,
        sizes=_sizes(options),
    )


def _sizes(options: ScalingOptions) -> list[int]:
    if options.metadata is None:
        return draw_atom_counts(100_000, torch.Generator().manual_seed(options.seed))
    import numpy as np

    try:
        with np.load(options.metadata) as file:
            return [int(number) for number in file["natoms"]]
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise DataError(f"--metadata {options.metadata}: no metadata.npz with an array 'natoms': {error}") from error


def measure_loader(options: ScalingOptions) -> Loader:
    """Measure one loader process on made structures, warm."""
    from escaip_fairchem.bench.loading import LoadingOptions, loading_table

    table = loading_table(
        LoadingOptions(workers=(1,), seconds=options.seconds, seed=options.seed, quick=options.seconds < 1)
    )
    read, searched = (row for row in table.rows if row["cache"] == "warm")
    rate, atoms, megabytes = (_number(read[column]) for column in ("structures/s", "atoms/s", "MB/s"))
    return Loader(
        read=rate,
        searched=_number(searched["structures/s"]),
        atoms=atoms / rate,
        record_bytes=megabytes * 1e6 / rate,
    )


def _number(cell: object) -> float:
    assert isinstance(cell, float)
    return cell


def counted_table(
    training: Training, loader: Loader, imbalances: dict[int, Imbalance], options: ScalingOptions
) -> Table:
    """What does not depend on how fast anything is."""
    rows = []
    for gpus, imbalance in imbalances.items():
        joint = gpus * training.batch_size
        steps = math.ceil(training.structures / joint)
        rows.append(
            {
                "GPUs": gpus,
                "structures per step": joint,
                "steps per epoch": steps,
                "read per epoch, GB": training.structures * loader.record_bytes / 1e9,
                "TFLOP per GPU and step": training.step_flops / 1e12,
                "gradients, GB": GRADIENT_BYTES * training.parameters / 1e9,
                "sent per node and step, GB": training.exchanged_bytes(gpus // options.gpus_per_node) / 1e9,
                "most atoms over mean, as drawn": imbalance.drawn,
                "balanced": imbalance.balanced,
            }
        )
    return Table(
        title="Counted and simulated",
        columns=list(rows[0]),
        rows=rows,
        notes=[
            f"{options.config.name}: {training.parameters:,} parameters, {training.flops_per_atom / 1e9:.1f} GFLOP per "
            f"atom and training step, {training.batch_size} structures per GPU, {training.epochs:g} epochs of "
            f"{training.structures:,} structures of {training.mean_atoms:.0f} atoms in the mean",
            f"a structure takes {loader.record_bytes:,.0f} bytes in the files",
            f"{options.gpus_per_node} GPUs per node; a step waits for the process with most atoms: mean of "
            f"{SIMULATED_STEPS} simulated steps, as drawn and with optim.load_balancing: atoms",
        ],
    )


def time_table(training: Training, loader: Loader, imbalances: dict[int, Imbalance], options: ScalingOptions) -> Table:
    """Steps, GPU-hours and what they need, by the rate that a GPU achieves."""
    rows = []
    for (gpus, imbalance), teraflops in itertools.product(imbalances.items(), options.teraflops):
        seconds = training.compute_seconds(teraflops) * imbalance.balanced
        rate = training.batch_size / seconds
        steps = training.epochs * math.ceil(training.structures / (gpus * training.batch_size))
        sent = training.exchanged_bytes(gpus // options.gpus_per_node)
        rows.append(
            {
                "GPUs": gpus,
                "TFLOP/s": teraflops,
                "step, ms": seconds * 1e3,
                "structures/s per GPU": rate,
                "workers per GPU": math.ceil(rate / (loader.searched * loader.atoms / training.mean_atoms)),
                "read, MB/s in all": gpus * rate * loader.record_bytes / 1e6,
                "GB/s per node to hide the exchange": sent / (BACKWARD_SHARE * seconds) / 1e9,
                "days": steps * seconds / 86400,
                "GPU-hours": gpus * steps * seconds / 3600,
            }
        )
    return Table(
        title="By the rate that a GPU achieves, if nothing else is a limit",
        columns=list(rows[0]),
        rows=rows,
        notes=[
            "TFLOP/s: assumed, what a GPU achieves on this model in the mean, not its peak",
            f"workers per GPU: one loader process here delivers {loader.searched:,.0f} structures of "
            f"{loader.atoms:.0f} atoms per second with the neighbour search, {loader.read:,.0f} without",
            "to hide the exchange: what a node has to send, and receive, per second of the backward pass, which is two "
            "thirds of a step",
        ],
    )


def limit_tables(training: Training, loader: Loader, options: ScalingOptions) -> list[Table]:
    """From which rate of a GPU on loaders, or the exchange of gradients, decide how long a step takes."""
    per_structure = training.flops_per_atom * training.mean_atoms
    scale = loader.atoms / training.mean_atoms
    by_workers = [
        {
            "workers per GPU": workers,
            "structures/s": workers * loader.searched * scale,
            "GPU waits from, TFLOP/s": workers * loader.searched * scale * per_structure / 1e12,
            "without a search, TFLOP/s": workers * loader.read * scale * per_structure / 1e12,
        }
        for workers in options.workers
    ]
    by_links = [
        {
            "GPUs": gpus,
            "GB/s per node": rate,
            "exchange, ms": sent / (rate * 1e9) * 1e3,
            "GPU waits from, TFLOP/s": BACKWARD_SHARE * training.step_flops * rate * 1e9 / sent / 1e12,
            "with twice the batch, TFLOP/s": 2 * BACKWARD_SHARE * training.step_flops * rate * 1e9 / sent / 1e12,
        }
        for gpus, rate in itertools.product(options.gpus, options.node_gigabytes)
        if (sent := training.exchanged_bytes(gpus // options.gpus_per_node)) > 0
    ]
    tables = [
        Table(
            title="Where the loaders become the limit",
            columns=list(by_workers[0]),
            rows=by_workers,
            notes=["one core for each worker, as measured here", "without a search: the GPU searches neighbours"],
        )
    ]
    if by_links:
        tables.append(
            Table(
                title="Where the exchange of gradients becomes the limit",
                columns=list(by_links[0]),
                rows=by_links,
                notes=[
                    "GB/s per node: assumed, all links of a node together, as achieved by sums over nodes",
                    "links within a node are taken to be fast beside those between nodes; waiting times of single "
                    "messages are left out",
                ],
            )
        )
    return tables
