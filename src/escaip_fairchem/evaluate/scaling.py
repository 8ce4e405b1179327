"""Error against what a training took: parameters, structures and GPU-hours, from run folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from escaip_fairchem.errors import DataError
from escaip_fairchem.evaluate.curves import Curve, read_curves
from escaip_fairchem.evaluate.plots import plot_scaling
from escaip_fairchem.evaluate.result_table import Column, ResultTable, Row, Value
from escaip_fairchem.evaluate.scaling_lines import ScalingLine, ScalingPoint, lines_of
from escaip_fairchem.plugin.run_facts import RunFacts, read_run, run_folders

Abscissa = Literal["parameters", "data", "gpu-hours"]
ABSCISSAS: dict[Abscissa, tuple[str, str, str]] = {
    "parameters": ("parameters", "parameters", "training_structures"),
    "data": ("training_structures", "training structures", "parameters"),
    "gpu-hours": ("gpu_hours", "GPU-hours of training", "training_structures"),
}
"""Key in the table, label of the axis, and key of what stays the same along a line."""
HELD = {"parameters": "parameters", "training_structures": "training structures"}
"""Names of what stays the same."""
NOT_KNOWN = "not known"
COLUMNS = (
    Column(key="family", heading="family"),
    Column(key="parameters", heading="parameters", whole=True),
    Column(key="training_structures", heading="training structures", whole=True),
    Column(key="gpu_hours", heading="GPU-hours", digits=2),
    Column(key="validation_set", heading="validation set", printed=False),
    Column(key="validation_limit", heading="of it at most", whole=True, printed=False),
    Column(key="energy_mae", heading="energy MAE", unit="meV", digits=1),
    Column(key="forces_mae", heading="force MAE", unit="meV/Å", digits=2),
)
ALL = "all"


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
        limit: Value = ALL if facts.validation_limit is None else facts.validation_limit
        return {
            "family": self.family,
            **known,
            "validation_set": NOT_KNOWN if facts.validation is None else facts.validation,
            "validation_limit": NOT_KNOWN if facts.validation is None else limit,
        }

    @property
    def measured(self) -> str:
        """Which structures the errors are of."""
        facts = self.facts
        if facts.validation is None:
            return f"a validation set that is {NOT_KNOWN}"
        limit = facts.validation_limit
        return f"all of {facts.validation}" if limit is None else f"at most {limit:,} structures of {facts.validation}"


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
        _what_errors(runs),
        "GPU-hours: training steps alone, times GPUs",
        *(line for run in runs for line in run.unknown),
    ]
    return ResultTable(title="Error against cost", label="run", columns=COLUMNS, rows=rows, notes=notes)


def _what_errors(runs: Sequence[Run]) -> str:
    measures = list(dict.fromkeys(run.measured for run in runs))
    if len(measures) == 1:
        return f"errors: of best checkpoints, as evaluated during training, on {measures[0]}"
    return "errors: of best checkpoints, as evaluated during training, on different structures: not all compare"


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
    lines = {name: figure_lines(runs, name) for name in wanted}
    if not any(lines.values()):
        what = " nor ".join(ABSCISSAS[name][1] for name in wanted)
        reasons = "; ".join(line for run in runs for line in run.unknown)
        raise DataError(f"nothing to plot, neither errors against {what} are known of any run: {reasons}")
    written = scaling_table(runs).save(out / "scaling")
    for name, found in lines.items():
        if found:
            shown = {point.name for line in found for point in line.points}
            note = _what_errors([run for run in runs if run.facts.name in shown])
            written.append(plot_scaling(found, ABSCISSAS[name][1], note, out / f"scaling_{name}.png"))
    return written


def figure_lines(runs: Sequence[Run], abscissa: Abscissa) -> list[ScalingLine]:
    """The lines of a figure: trainings that differ in what they are plotted against, and not in the other sizes.

    Args:
        runs: The trainings; those whose cost or errors are not known are left out.
        abscissa: What to plot against.
    """
    key, _, held = ABSCISSAS[abscissa]
    found = []
    for run in runs:
        x, same, energy, forces = (_number(run.values[name]) for name in (key, held, "energy_mae", "forces_mae"))
        if x is not None and energy is not None and forces is not None:
            found.append(
                ScalingPoint(
                    name=run.facts.name,
                    family=run.family,
                    held=None if same is None else int(same),
                    measured=run.measured,
                    x=x,
                    energy=energy,
                    forces=forces,
                )
            )
    return lines_of(found, HELD[held])


def _number(value: Value) -> float | None:
    return None if value is None or isinstance(value, str) else float(value)
