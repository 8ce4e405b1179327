"""Time and memory against batch size, of every model: the paper's figures 1 and 5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from escaip_fairchem.bench.cases import NOT_AVAILABLE, Outcome, PassCase, why_not_larger
from escaip_fairchem.bench.floors import Floor
from escaip_fairchem.bench.machine import Machine
from escaip_fairchem.bench.models import BASELINES, SECOND_FAIRCHEM, ModelName
from escaip_fairchem.bench.options import Session
from escaip_fairchem.bench.tables import MakeTables, Table
from escaip_fairchem.bench.timing import Spread

MODES = ("inference", "training")
USUAL_MODELS = (
    "escaip-small:plain", "escaip-small:fast", "escaip-small:bf16", "escaip-medium:fast", "escaip-large:fast",
    *BASELINES, "equiformer-v2-83m:frozen", "escn-l6:frozen", SECOND_FAIRCHEM,
)  # fmt: skip
QUICK_MODELS = ("escaip-tiny:plain", "escaip-tiny:fast", "escaip-tiny:bf16")
USUAL_SIZES = {"cpu": (1, 4, 16), "cuda": (1, 8, 32, 128)}
BATCHES, QUICK_BATCHES = 16, 3
LONGEST_PASS = {"cpu": 90.0, "cuda": 20.0}
"""Seconds. A batch size whose passes would take longer is given up, as the next smaller one lets expect."""

COLUMNS = (
    "model", "precision", "mode", "batch", "batches", "atoms", "time mean (s)", "time std (s)", "time median (s)",
    "floor (s)", "floor share", "floor by", "samples/s", "peak memory (GB)", "GB/sample", "weights (GB)", "parameters",
    "remark",
)  # fmt: skip


def run_efficiency(session: Session) -> MakeTables:
    """Measure all models and write ``efficiency.png``; the table's file is ``efficiency.csv``."""
    outcomes = measure_efficiency(session)
    out = session.options.out
    if out is not None and any(outcome.is_measured for outcome in outcomes):
        from escaip_fairchem.bench.plots import plot_efficiency  # matplotlib is slow to import, and may be absent

        plot_efficiency(outcomes, out / "efficiency.png")
    return lambda: [session.save(efficiency_table(outcomes, session.machine), "efficiency")]


def measure_efficiency(session: Session) -> list[Outcome]:
    """Measure every model in both modes, small batches first.

    On the CPU all models take a size before any takes the next, so that a time limit costs large batches rather than
    whole models. On a GPU a model stays in its process for all sizes.
    """
    options = session.options
    names = options.names(USUAL_MODELS, QUICK_MODELS)
    ladders = [Ladder(session, name, mode) for name in names if name.model != SECOND_FAIRCHEM for mode in MODES]
    sizes = options.sizes(USUAL_SIZES[options.device], (1, 2))
    elsewhere: list[Outcome] = []
    if options.device == "cpu":
        for number, size in enumerate(sizes):
            for ladder in ladders:
                ladder.climb(size)
            if number == 0 and any(name.model == SECOND_FAIRCHEM for name in names):
                elsewhere = measure_second_fairchem(session)
    else:
        for ladder in ladders:
            for size in sizes:
                ladder.climb(size)
        if any(name.model == SECOND_FAIRCHEM for name in names):
            elsewhere = measure_second_fairchem(session)
    return [outcome for ladder in ladders for outcome in ladder.outcomes] + elsewhere


class Ladder:
    """One model in one mode over growing batches, until something is in the way of larger ones.

    Args:
        session: The run.
        name: The model.
        mode: ``inference`` or ``training``.
    """

    def __init__(self, session: Session, name: ModelName, mode: str) -> None:
        self.session = session
        self.name = name
        self.mode = mode
        self.outcomes: list[Outcome] = []
        self._before = 1

    def climb(self, size: int) -> None:
        """Measure a batch size, the next larger one, or say why not."""
        last = self.outcomes[-1] if self.outcomes else None
        if last is not None and last.status == NOT_AVAILABLE:
            return
        options = self.session.options
        case = PassCase(
            **options.common,
            model=self.name.model,
            variant=self.name.variant,
            mode=self.mode,
            batch_size=size,
            batches=QUICK_BATCHES if options.quick else BATCHES,
        )
        reason = why_not_larger(last, growth=size / self._before, longest=LONGEST_PASS[options.device])
        runner = self.session.runner
        self.outcomes.append(runner.drop(case, reason) if reason else runner.one(case))
        self._before = size


def floor_of(outcome: Outcome, precision: str) -> Floor:
    """Floor of a case's average repetition."""
    atoms = Spread.of([float(count) for count in outcome.atoms]).mean
    return Floor(flops=outcome.flops * atoms, bytes=outcome.bytes, precision=precision)


def efficiency_table(outcomes: Sequence[Outcome], machine: Machine) -> Table:
    """A row per model, mode and batch size."""
    rows = [_row(outcome, machine) for outcome in outcomes]
    sources = {str(outcome.extra["frames"]) for outcome in outcomes if "frames" in outcome.extra}
    notes = [
        *(f"batches are drawn at random from {source}" for source in sorted(sources)),
        "floor: the plain model's counted FLOPs over this machine's rate of matrix products in that precision, or the "
        "weights' bytes over its bandwidth, whichever takes longer; floor share is floor over mean time",
        _memory_note(machine.device),
    ]
    return Table(title="Efficiency", columns=COLUMNS, rows=rows, notes=notes)


def _memory_note(device: str) -> str:
    if device == "cuda":
        return "peak memory: of the CUDA allocator, weights included; mean over the batches"
    return (
        "peak memory: growth of the process's resident set since before the model was built, weights included; mean "
        "over the batches"
    )


def _row(outcome: Outcome, machine: Machine) -> dict[str, Any]:
    case = outcome.case
    assert isinstance(case, PassCase)
    row: dict[str, Any] = {
        "model": str(case.name),
        "precision": case.name.precision,
        "mode": case.mode,
        "batch": case.batch_size,
        "remark": outcome.remark,
    }
    if not outcome.is_measured:
        return row
    spread, floor = Spread.of(outcome.seconds), floor_of(outcome, case.name.precision)
    peak = Spread.of([float(peak) for peak in outcome.peak_bytes]).mean / 1e9
    return row | {
        "batches": spread.count,
        "atoms": Spread.of([float(count) for count in outcome.atoms]).mean,
        "time mean (s)": spread.mean,
        "time std (s)": spread.std,
        "time median (s)": spread.median,
        "floor (s)": floor.seconds(machine),
        "floor share": floor.seconds(machine) / spread.mean,
        "floor by": floor.limit(machine),
        "samples/s": case.batch_size / spread.mean,
        "peak memory (GB)": peak,
        "GB/sample": peak / case.batch_size,
        "weights (GB)": outcome.weight_bytes / 1e9,
        "parameters": outcome.parameters,
    }


def measure_second_fairchem(session: Session) -> list[Outcome]:
    """Measure fairchem v2's EScAIP where an interpreter of its environment was named."""
    from escaip_fairchem.bench.second import measure_elsewhere

    return measure_elsewhere(session, batches=QUICK_BATCHES if session.options.quick else BATCHES)
