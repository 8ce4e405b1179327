"""Files that evaluations by dynamics leave: distances, frames, trajectories."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.trajectory import Trajectory

from escaip_fairchem.evaluate.distances import DistanceHistogram
from escaip_fairchem.evaluate.langevin import Run
from escaip_fairchem.evaluate.structure_files import Item


def write_distances(path: Path, found: DistanceHistogram, expected: DistanceHistogram | None) -> None:
    """Write h(r) and, if there is one, the reference's, bin by bin; empty frames give nan."""
    both = [found] if expected is None else [found, expected]
    size = max(len(histogram.counts) for histogram in both)
    columns = [
        np.pad(histogram.density, (0, size - len(histogram.counts))) if histogram.frames else np.full(size, np.nan)
        for histogram in both
    ]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["r_angstrom", "h_per_angstrom", *(["h_reference_per_angstrom"] if expected is not None else [])]
        )
        for row, values in enumerate(zip(*columns, strict=True)):
            writer.writerow([f"{(row + 0.5) * found.bin_width:.6g}", *(repr(float(value)) for value in values)])


def write_frames(path: Path, starts: Sequence[tuple[Item, Atoms]], runs: Sequence[Run], timestep: float) -> None:
    """Write step, time (fs), energies (eV) and temperature (K) of every saved frame."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["start", "step", "time_fs", "potential_energy_ev", "kinetic_energy_ev", "temperature_kelvin"])
        for (item, _), run in zip(starts, runs, strict=True):
            for frame in run.frames:
                numbers = (frame[name] for name in ("potential_energy", "kinetic_energy", "temperature"))
                step = int(frame["step"])
                writer.writerow([item.identifier, step, step * timestep, *(repr(float(number)) for number in numbers)])


def write_trajectory(path: Path, atoms: Atoms, run: Run) -> None:
    """Write every saved frame with momenta and potential energy, for ASE."""
    with Trajectory(path, "w") as trajectory:
        for frame in run.frames:
            structure = atoms.copy()
            structure.set_positions(frame["positions"], apply_constraint=False)
            structure.set_momenta(frame["momenta"], apply_constraint=False)
            structure.calc = SinglePointCalculator(structure, energy=float(frame["potential_energy"]))
            trajectory.write(structure)
