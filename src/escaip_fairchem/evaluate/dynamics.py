"""Molecular dynamics as MD22's benchmark runs them: distances against a reference, stability, temperature, speed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from escaip_fairchem.data.claims import Claim, claim, publish
from escaip_fairchem.data.manifest import Manifest
from escaip_fairchem.data.writer import save_text
from escaip_fairchem.errors import ConfigError, DataError
from escaip_fairchem.evaluate.attempts import free_again
from escaip_fairchem.evaluate.distances import DistanceHistogram, compare
from escaip_fairchem.evaluate.dynamics_files import write_distances, write_frames, write_trajectory
from escaip_fairchem.evaluate.langevin import FRICTION_UNITS, LangevinOptions, Run, run_langevin
from escaip_fairchem.evaluate.plots import plot_dynamics
from escaip_fairchem.evaluate.stability import StabilityCheck, StabilityLimits
from escaip_fairchem.evaluate.structure_files import Item, StructureFiles

COMMAND = "escaip evaluate dynamics"
SUMMARY, DISTANCES, FRAMES, FIGURE = "summary.json", "distances.csv", "frames.csv", "dynamics.png"
_FRAMES_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class DynamicsPlan:
    """What is run and measured.

    Attributes:
        langevin: The dynamics. Every further start has the next seed.
        limits: What ends a run as unstable.
        starts: Structures to start from: the first ones of the input.
        bin_width: Of h(r), Å.
        skip: Share of the frames at the start that h(r) and temperatures leave out.
        trajectory: Whether to write the trajectories.
        identity: What else decides the results, for the manifest: the checkpoint.

    Raises:
        ConfigError: A value is out of range.
    """

    langevin: LangevinOptions = field(default_factory=LangevinOptions)
    limits: StabilityLimits = field(default_factory=StabilityLimits)
    starts: int = 1
    bin_width: float = 0.05
    skip: float = 0.0
    trajectory: bool = True
    identity: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        DistanceHistogram(self.bin_width)
        if self.starts < 1:
            raise ConfigError(f"--starts {self.starts}: must be at least 1")
        if not 0.0 <= self.skip < 1.0:
            raise ConfigError(f"--skip {self.skip}: must be a share from 0 to below 1")


def run_files(
    make_calculator: Callable[[], BaseCalculator],
    files: StructureFiles,
    reference: StructureFiles | None,
    out: Path,
    plan: DynamicsPlan,
    *,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run dynamics from the first structures of some files, or what is left of them, and measure them.

    Args:
        make_calculator: Makes the calculator; called only if something has to be run.
        files: Where to start.
        reference: Frames of the same atoms in the same order or another; None compares with nothing.
        out: Folder to write into.
        plan: What to run and measure.
        overwrite: Replace what another run left in the folder.
        report: Takes lines on the progress.

    Returns:
        What ``summary.json`` holds.

    Raises:
        DataError: The input cannot be used, or the folder holds something else.
    """
    with claim(out, _manifest(files, reference, plan), outputs=_outputs(plan), overwrite=overwrite) as claimed:
        if claimed.complete:
            return dict(json.loads((out / SUMMARY).read_text(encoding="utf-8")))
        with free_again(claimed):
            starts = _starts(files, plan.starts)
            # Before hours of dynamics: a reference of another molecule would be told only afterwards.
            expected = None if reference is None else _reference_histogram(reference, starts[0], plan.bin_width)
            claimed.staged.mkdir(exist_ok=True)
            calculator = make_calculator()
        runs = []
        for row, item in enumerate(starts):
            runs.append(_run(item, row, len(starts), calculator, claimed, plan, report))
        return _finish(claimed, starts, runs, expected, plan)


def _outputs(plan: DynamicsPlan) -> list[str]:
    return [SUMMARY, DISTANCES, FRAMES, FIGURE, *(_trajectory(row) for row in range(plan.starts))]


def _trajectory(row: int) -> str:
    return f"trajectory-{row}.traj"


def _manifest(files: StructureFiles, reference: StructureFiles | None, plan: DynamicsPlan) -> Manifest:
    decides = {
        **asdict(plan.langevin),
        **plan.identity,
        **asdict(plan.limits),
        "structures": files.fingerprint(),
        "format": files.form,
        "starts": plan.starts,
        "bin_width": plan.bin_width,
        "skip": plan.skip,
        "trajectory": plan.trajectory,
        "reference": None if reference is None else reference.fingerprint(),
        "reference_format": None if reference is None else reference.form,
    }
    later = ("steps", "starts", "bin_width", "skip", "trajectory", "reference", "reference_format")
    return Manifest.of(COMMAND, decides, later=later)


def _starts(files: StructureFiles, wanted: int) -> list[tuple[Item, Atoms]]:
    starts: list[tuple[Item, Atoms]] = []
    for item in files:
        if len(starts) == wanted:
            break
        if item.atoms is None:
            raise DataError(f"{item.place}: {item.problem}; dynamics cannot start from it")
        if len(item.atoms) < 2:
            raise DataError(f"{item.place}: {len(item.atoms)} atom; dynamics need two at least")
        starts.append((item, item.atoms))
    if len(starts) < wanted:
        raise DataError(f"--starts {wanted}: the input holds {len(starts)} structures")
    first_item, first = starts[0]
    for item, atoms in starts[1:]:
        if sorted(atoms.numbers) != sorted(first.numbers):
            raise DataError(
                f"{item.place}: {atoms.get_chemical_formula()}, but {first_item.place} is "
                f"{first.get_chemical_formula()}; h(r) is averaged over starts of one molecule"
            )
    return starts


def _reference_histogram(files: StructureFiles, start: tuple[Item, Atoms], bin_width: float) -> DistanceHistogram:
    _, first = start
    histogram = DistanceHistogram(bin_width)
    waiting: list[Atoms] = []
    for item in files:
        if item.atoms is None:
            raise DataError(f"reference {item.place}: {item.problem}; remove it, it would be missing from h(r)")
        if sorted(item.atoms.numbers) != sorted(first.numbers):
            raise DataError(
                f"reference {item.place}: {item.atoms.get_chemical_formula()}, but the dynamics are of "
                f"{first.get_chemical_formula()}; give frames of the same molecule"
            )
        # Frames without a cell, or with the same one, are counted together.
        if waiting and not _same_cell(waiting[0], item.atoms):
            _count(histogram, waiting)
            waiting = []
        waiting.append(item.atoms)
        if len(waiting) == _FRAMES_AT_ONCE:
            _count(histogram, waiting)
            waiting = []
    _count(histogram, waiting)
    if histogram.frames == 0:
        raise DataError("the reference holds no structure")
    return histogram


def _same_cell(first: Atoms, second: Atoms) -> bool:
    same_pbc = bool((first.pbc == second.pbc).all())
    return same_pbc and (not first.pbc.any() or bool((first.cell.array == second.cell.array).all()))


def _count(histogram: DistanceHistogram, frames: Sequence[Atoms]) -> None:
    if frames:
        histogram.add(np.stack([atoms.positions for atoms in frames]), frames[0])


def _run(
    start: tuple[Item, Atoms],
    row: int,
    of: int,
    calculator: BaseCalculator,
    claimed: Claim,
    plan: DynamicsPlan,
    report: Callable[[str], None],
) -> Run:
    _, atoms = start
    langevin = replace(plan.langevin, seed=plan.langevin.seed + row)

    def tell(step: int) -> None:
        if step % (1000 * langevin.every) == 0 or step + langevin.every > langevin.steps:
            report(f"start {row + 1} of {of}: step {step} of {langevin.steps}")

    check = StabilityCheck(atoms, plan.limits)
    return run_langevin(atoms, calculator, langevin, claimed.staged / f"frames-{row}.bin", check, report=tell)


def _stable(run: Run, skip: float) -> Any:
    """The frames to average over: those before the first that is not stable, without those to leave out."""
    frames = run.frames if run.broken_at is None else run.frames[run.frames["step"] < run.broken_at]
    return frames[int(np.ceil(skip * len(frames))) :]


def _finish(
    claimed: Claim,
    starts: Sequence[tuple[Item, Atoms]],
    runs: Sequence[Run],
    expected: DistanceHistogram | None,
    plan: DynamicsPlan,
) -> dict[str, Any]:
    claimed.begin_writing()
    found = DistanceHistogram(plan.bin_width)
    for (_, atoms), run in zip(starts, runs, strict=True):
        frames = _stable(run, plan.skip)
        if len(frames):
            found.add(frames["positions"], atoms)
    summary = _summary(starts, runs, found, expected, plan)
    write_distances(claimed.new / DISTANCES, found, expected)
    write_frames(claimed.new / FRAMES, starts, runs, plan.langevin.timestep)
    if plan.trajectory:
        for row, ((_, atoms), run) in enumerate(zip(starts, runs, strict=True)):
            write_trajectory(claimed.new / _trajectory(row), atoms, run)
    plot_dynamics(runs, found, expected, plan.langevin, claimed.new / FIGURE)
    save_text(claimed.new / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    publish(claimed)
    return summary


def _summary(
    starts: Sequence[tuple[Item, Atoms]],
    runs: Sequence[Run],
    found: DistanceHistogram,
    expected: DistanceHistogram | None,
    plan: DynamicsPlan,
) -> dict[str, Any]:
    langevin = plan.langevin
    averaged = [_stable(run, plan.skip) for run in runs]
    temperatures = np.concatenate([frames["temperature"] for frames in averaged])
    steps = sum(int(run.frames["step"][-1]) for run in runs if len(run.frames))
    seconds = sum(float(run.frames["seconds"][-1]) for run in runs if len(run.frames))
    error = compare(found, expected) if expected is not None and found.frames else None
    friction = {unit: langevin.ase_friction / one for unit, one in FRICTION_UNITS.items()}
    return {
        "h_mae_per_angstrom": None if error is None else error.mean_absolute,
        "h_mae_integrated": None if error is None else error.integrated,
        "frames": found.frames,
        "reference_frames": None if expected is None else expected.frames,
        "stable": all(run.broken_at is None for run in runs),
        "mean_temperature_kelvin": float(temperatures.mean()) if len(temperatures) else None,
        "std_temperature_kelvin": float(temperatures.std()) if len(temperatures) else None,
        "expected_std_temperature_kelvin": _expected_spread(starts[0][1], langevin.temperature),
        "steps_per_second": steps / seconds if seconds > 0.0 else None,
        "runs": [
            {
                "start": item.identifier,
                "atoms": len(atoms),
                "bonds": StabilityCheck(atoms, plan.limits).bonds,
                "seed": langevin.seed + row,
                "steps": int(run.frames["step"][-1]) if len(run.frames) else 0,
                "stable_for_ps": _stable_steps(run) * langevin.timestep / 1000.0,
                "problem": run.problem,
            }
            for row, ((item, atoms), run) in enumerate(zip(starts, runs, strict=True))
        ],
        "friction_in_units": friction,
        **asdict(langevin),
        **asdict(plan.limits),
        "bin_width": plan.bin_width,
        "skip": plan.skip,
        **plan.identity,
    }


def _stable_steps(run: Run) -> int:
    if run.broken_at is not None:
        return run.broken_at
    return int(run.frames["step"][-1])


def _expected_spread(atoms: Atoms, temperature: float) -> float:
    """Standard deviation of the temperature of so many degrees of freedom in a bath, K."""
    return float(temperature * np.sqrt(2.0 / max(1, atoms.get_number_of_degrees_of_freedom())))
