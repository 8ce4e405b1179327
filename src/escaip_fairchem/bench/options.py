"""What a benchmark is asked to do, from the command line."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from escaip_fairchem.bench.machine import Machine, check_device, measure_machine
from escaip_fairchem.bench.models import ModelName, parse_name
from escaip_fairchem.bench.runner import Runner
from escaip_fairchem.bench.tables import Table
from escaip_fairchem.bench.timing import Deadline

RATES_EVERY = 120.0
"""Seconds between measurements of the rates of a processor, which others may share. A GPU's do not change like that."""
BRIEFLY = 0.5
"""Seconds for each product when rates are measured again."""

BUDGETS = {"cpu": 60.0, "cuda": 4.0}
"""Seconds for the repetitions of one case."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all benchmarks know.

    Attributes:
        device: ``cpu`` or ``cuda``.
        seed: Decides everything that is drawn.
        out: Folder for tables and figures; None writes nothing.
        quick: Whether to show in seconds that everything works, on models too small to mean anything.
        models: Models to measure; None: the benchmark's own choice.
        batch_sizes: Batch sizes; None likewise.
        time_limit: Seconds for the whole command; what does not fit is dropped. None: no limit.
        frames: Folder of real frames; None: beside the project, if they are there.
        fairchem2: Interpreter of an environment with fairchem v2.
        budget: Seconds for the repetitions of one case; None: by the device.
    """

    device: str = "cpu"
    seed: int = 0
    out: Path | None = None
    quick: bool = False
    models: Sequence[str] | None = None
    batch_sizes: Sequence[int] | None = None
    time_limit: float | None = None
    frames: Path | None = None
    fairchem2: Path | None = None
    budget: float | None = None

    @property
    def common(self) -> dict[str, Any]:
        """Fields of every case."""
        frames = None if self.frames is None else str(self.frames)
        budget = 5.0 if self.quick else BUDGETS[self.device] if self.budget is None else self.budget
        return {"device": self.device, "seed": self.seed, "frames": frames, "budget": budget}

    def names(self, usual: Sequence[str], quick: Sequence[str]) -> list[ModelName]:
        """Models to measure.

        Args:
            usual: If none are asked for.
            quick: Likewise, in a quick run.
        """
        wanted = self.models if self.models is not None else quick if self.quick else usual
        return [parse_name(text) for text in wanted]

    def sizes(self, usual: Sequence[int], quick: Sequence[int]) -> list[int]:
        """Batch sizes, ascending."""
        return sorted(self.batch_sizes if self.batch_sizes is not None else quick if self.quick else usual)


def _say(line: str) -> None:
    print(line, flush=True)  # a log that is read while the command runs for hours


class Session:
    """One command's run: its machine, its processes, its time.

    The machine's rates are those of its best moment so far: they are measured at the start and, on a processor, between
    cases again and again.

    Args:
        options: What to do.
        show: Called with lines about the progress.

    Raises:
        ConfigError: The device does not exist, or a model.
    """

    def __init__(self, options: Options, show: Callable[[str], None] = _say) -> None:
        check_device(options.device)
        options.names((), ())  # a wrong name is told before anything is measured
        self.options = options
        self.show = show
        self.runner = Runner(Deadline(options.time_limit), show, between=self._between_cases)
        show(f"measuring the rates of this machine ({options.device})")
        self.machine: Machine = measure_machine(options.device, quick=options.quick)
        self._rates_at = time.monotonic()

    def measure_rates(self) -> None:
        """Measure the machine's rates again, and keep the higher ones."""
        again = measure_machine(self.options.device, quick=self.options.quick, longest=BRIEFLY)
        self.machine = self.machine.best_of(again)
        self._rates_at = time.monotonic()

    def _between_cases(self) -> None:
        if self.options.device == "cpu" and time.monotonic() - self._rates_at > RATES_EVERY:
            self.measure_rates()

    def save(self, table: Table, name: str) -> Table:
        """Write a table as CSV if there is a folder for it."""
        if self.options.out is not None:
            table.write_csv(self.options.out / f"{name}.csv")
        return table


def machine_table(machine: Machine) -> Table:
    """Table of the measured rates, with what the machine is below it."""
    rows: list[dict[str, Any]] = [
        {"measured": f"matrix product {shape}, {precision}", "rate": f"{rate / 1e9:,.0f} GFLOP/s"}
        for precision, rates in machine.gemm_rates.items()
        for shape, rate in rates.items()
    ]
    rows.append({"measured": "copy, read and written", "rate": f"{machine.copy_rate / 1e9:,.1f} GB/s"})
    found = [rate / 1e9 for rate in machine.fp32_rates]
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    notes = [
        f"{machine.name}; {machine.cores} cores, {machine.threads} threads, {machine.memory_bytes / 2**30:.0f} GiB",
        versions,
        machine.date,
        f"rates: the highest of {len(found)} measurements during the run; its fastest fp32 product ran at "
        f"{min(found):,.0f} to {max(found):,.0f} GFLOP/s, at {statistics.median(found):,.0f} in half of them or more",
    ]
    return Table(title="Machine", columns=("measured", "rate"), rows=rows, notes=notes)
