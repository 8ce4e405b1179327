"""Error against what a training took: parameters, structures and GPU-hours, from run folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from escaip_fairchem.errors import DataError
from escaip_fairchem.evaluate.curves import Curve, read_curves
from escaip_fairchem.evaluate.plots import ScalingPoint, plot_scaling
from escaip_fairchem.evaluate.result_table import Column, ResultTable, Row, Value
from escaip_fairchem.plugin.run_facts import RunFacts, read_run, run_folders

Abscissa = Literal["parameters", "data", "gpu-hours"]
ABSCISSAS: dict[Abscissa, tuple[str, str]] = {
    "parameters": ("parameters", "parameters"),
    "data": ("training_structures", "training structures"),
    "gpu-hours": ("gpu_hours", "GPU-hours of training"),
}
"""Key in the table and label of the axis."""
NOT_KNOWN = "not known"
COLUMNS = (
    Column(key="family", heading="family"),
    Column(key="parameters", heading="parameters", whole=True),
    Column(key="training_structures", heading="training structures", whole=True),
    Column(key="gpu_hours", heading="GPU-hours", digits=2),
    Column(key="energy_mae", heading="energy MAE", unit="meV", digits=1),
    Column(key="forces_mae", heading="force MAE", unit="meV/Å", digits=2),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training with its cost.

    Attributes:
        facts: What its checkpoints tell.
        family: Its line in the figure.
        gpu_hours: Time in training steps times GPUs; None where it is not known.
        unknown: Why, for every figure that is not known.
    """

    facts: RunFacts
    family: str
    gpu_hours: float | None
    unknown: tuple[str, ...]

    @property
    def values(self) -> dict[str, Value]:
        """Row of the table; what is not known says so."""
        facts = self.facts
        numbers: dict[str, float | int | None] = {
            "parameters": facts.parameters,
            "training_structures": facts.structures,
            "gpu_hours": self.gpu_hours,
            "energy_mae": None if facts.energy_mae is None else 1000.0 * facts.energy_mae,
            "forces_mae": None if facts.forces_mae is None else 1000.0 * facts.forces_mae,
        }
        known = {key: NOT_KNOWN if number is None else number for key, number in numbers.items()}
        return {"family": self.family, **known}


def read_runs(words: Sequence[str], *, trusted: bool = False) -> list[Run]:
    """Read runs.

    Args:
        words: Folders; ``FAMILY=FOLDER`` names the line that its runs belong to.
        trusted: Whether checkpoints may hold other objects than tensors and plain values.

    Raises:
        RunFolderError: A folder holds no run.
        CheckpointError: A checkpoint cannot be read.
    """
    runs = []
    for word in words:
        family, equals, folder = word.partition("=")
        named = bool(equals) and not Path(word).exists()
        for path in run_folders(Path(folder if named else word)):
            run = cost_of(read_run(path, trusted=trusted))
            runs.append(replace(run, family=family) if named else run)
    return runs


def cost_of(facts: RunFacts) -> Run:
    """Add the GPU-hours, from the speed that a run logged."""
    unknown = []
    if facts.structures is None:
        unknown.append("training structures: its checkpoint.pt is missing or does not record them")
    if facts.energy_mae is None or facts.forces_mae is None:
        unknown.append("errors: there is no best_checkpoint.pt with both as validation metrics")
    hours, reason = _gpu_hours(facts)
    if reason:
        unknown.append(f"GPU-hours: {reason}")
    lines = tuple(f"{facts.name}: {NOT_KNOWN}: {line}" for line in unknown)
    return Run(facts=facts, family=facts.family, gpu_hours=hours, unknown=lines)


def _gpu_hours(facts: RunFacts) -> tuple[float | None, str]:
    if not facts.on_gpu:
        return None, "it was trained on CPUs"
    if facts.steps is None or facts.processes is None:
        return None, "checkpoint.pt, which says how many steps were done by how many GPUs, is missing"
    for folder in facts.logs:
        if any(folder.glob("events.out.tfevents.*")):
            rates = read_curves(folder).get("train/samples_per_second", {})
            seconds = seconds_per_step(rates, facts.batch_size * facts.processes)
            if seconds is not None:
                return facts.steps * seconds * facts.processes / 3600.0, ""
    return None, "its folder of logs (logs/tensorboard/NAME beside checkpoints/) has no train/samples_per_second"


def seconds_per_step(rates: Curve, samples_per_step: int) -> float | None:
    """Mean duration of a step.

    Args:
        rates: Samples per second since the report before, by step.
        samples_per_step: Structures in the batches of all processes.

    Returns:
        Seconds, evaluations and saves not counted; None where nothing was reported.
    """
    seconds, before = 0.0, 0
    for step, rate in sorted(rates.items()):
        if rate <= 0.0:
            return None
        seconds += (step - before) * samples_per_step / rate
        before = step
    return seconds / before if before else None


def scaling_table(runs: Sequence[Run]) -> ResultTable:
    """One row per run."""
    rows = [Row(label=run.facts.name, values=run.values) for run in runs]
    notes = [
        "errors: of the best checkpoint on the validation set; GPU-hours: training steps alone, times GPUs",
        *(line for run in runs for line in run.unknown),
    ]
    return ResultTable(title="Error against cost", label="run", columns=COLUMNS, rows=rows, notes=notes)


def write_scaling(runs: Sequence[Run], out: Path, wanted: Sequence[Abscissa]) -> list[Path]:
    """Write ``scaling.csv``, ``scaling.tex`` and a figure per abscissa.

    Args:
        runs: The trainings.
        out: Folder, made if need be.
        wanted: What to plot against. If it is one, it must be known of some run; otherwise what is not is left out.

    Returns:
        The files.

    Raises:
        DataError: There is nothing to plot.
    """
    points = {name: _points(runs, ABSCISSAS[name][0]) for name in wanted}
    if not any(points.values()):
        what = " nor ".join(ABSCISSAS[name][1] for name in wanted)
        reasons = "; ".join(line for run in runs for line in run.unknown)
        raise DataError(f"nothing to plot, neither errors against {what} are known of any run: {reasons}")
    written = scaling_table(runs).save(out / "scaling")
    for name, found in points.items():
        if found:
            written.append(plot_scaling(found, ABSCISSAS[name][1], out / f"scaling_{name}.png"))
    return written


def _points(runs: Sequence[Run], key: str) -> list[ScalingPoint]:
    found = []
    for run in runs:
        x, energy, forces = (run.values[name] for name in (key, "energy_mae", "forces_mae"))
        if not any(isinstance(value, str) or value is None for value in (x, energy, forces)):
            found.append(
                ScalingPoint(family=run.family, x=float(x or 0), energy=float(energy or 0), forces=float(forces or 0))
            )
    return found
