"""Figures, written as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from escaip_fairchem.evaluate.curves import Curve
from escaip_fairchem.evaluate.distances import DistanceHistogram
from escaip_fairchem.evaluate.labels import FloatArray
from escaip_fairchem.evaluate.langevin import LangevinOptions, Run
from escaip_fairchem.evaluate.parity import Parity
from escaip_fairchem.evaluate.scaling_lines import ScalingLine
from escaip_fairchem.evaluate.simulate import Dynamics, Relaxation

DOTS_PER_INCH = 110
BLUE, ORANGE, GREY = "#2f6db5", "#d9822b", "#8a8a8a"
MARKERS = "os^Dvp"
NAMED_POINTS = 12
"""Points of a figure whose names there is room for."""
WIDE_LABEL = 50
"""Letters of a label beyond which two do not fit side by side."""


def _figure(columns: int) -> tuple[Figure, list[Axes]]:
    """A row of panels that belongs to no window and no global state."""
    figure = Figure(figsize=(4.2 * columns, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of matplotlib in it, equal figures are equal files.
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})
    return path


def plot_parity(parity: Parity, path: Path) -> Path:
    """Draw predicted against labelled energies and force components."""
    figure, (energy, forces) = _figure(2)
    _parity_panel(energy, parity.energy_label, parity.energy_predicted, name="energy", unit="eV", size=10.0)
    _parity_panel(
        forces, parity.forces_label.ravel(), parity.forces_predicted.ravel(), name="force", unit="eV/Å", size=2.0
    )
    energy.set_title(f"energy: MAE {parity.energy_mae:.3f} eV", fontsize=10)
    forces.set_title(f"forces: MAE {parity.forces_mae:.3f} eV/Å, {parity.forces_ratio:.0%} of their mean", fontsize=10)
    return _save(figure, path)


def _parity_panel(panel: Axes, label: FloatArray, predicted: FloatArray, *, name: str, unit: str, size: float) -> None:
    limits = [float(min(label.min(), predicted.min())), float(max(label.max(), predicted.max()))]
    panel.plot(limits, limits, color=GREY, linewidth=1)
    panel.scatter(label, predicted, s=size, color=BLUE, alpha=0.5, linewidths=0)
    panel.set_xlabel(f"labelled {name} ({unit})")
    panel.set_ylabel(f"predicted {name} ({unit})")
    panel.set_aspect("equal", adjustable="datalim")


def plot_curves(curves: Mapping[str, Curve], path: Path) -> Path:
    """Draw the losses of training and validation, the errors of validation, and the learning rate."""
    figure, (loss, errors, rate) = _figure(3)
    _curve(loss, curves, "train/loss", label="training", color=BLUE)
    _curve(loss, curves, "val/loss", label="validation", color=ORANGE, marker="o")
    loss.set_ylabel("loss")
    _curve(errors, curves, "val/forces_mae", label="forces (eV/Å)", color=BLUE, marker="o")
    _curve(errors, curves, "val/energy_mae", label="energy (eV)", color=ORANGE, marker="o")
    errors.set_ylabel("validation MAE")
    _curve(rate, curves, "train/lr", label="learning rate", color=GREY)
    rate.set_ylabel("learning rate")
    for panel in (loss, errors):
        panel.set_yscale("log")
        panel.legend(frameon=False)
    for panel in (loss, errors, rate):
        panel.set_xlabel("step")
    return _save(figure, path)


def _curve(panel: Axes, curves: Mapping[str, Curve], name: str, *, label: str, color: str, marker: str = "") -> None:
    curve = curves.get(name, {})
    panel.plot(list(curve), list(curve.values()), label=label, color=color, marker=marker, markersize=4)


def plot_dynamics(
    runs: Sequence[Run],
    found: DistanceHistogram,
    expected: DistanceHistogram | None,
    options: LangevinOptions,
    path: Path,
) -> Path:
    """Draw h(r) beside the reference's, and the temperature and the potential energy of every run.

    Args:
        runs: Dynamics in a bath.
        found: Distances of the model's frames.
        expected: Those of the reference.
        options: Settings of the dynamics.
        path: File to write.
    """
    figure, (distances, temperature, energy) = _figure(3)
    for histogram, label, color in ((expected, "reference", ORANGE), (found, "model", BLUE)):
        if histogram is not None and histogram.frames:
            distances.plot(histogram.centers, histogram.density, color=color, label=label, linewidth=1)
    distances.set_xlabel("distance (Å)")
    distances.set_ylabel("h(r) (1/Å)")
    if expected is not None:
        distances.legend(frameon=False)
    for run in runs:
        picoseconds = run.frames["step"] * options.timestep / 1000.0
        temperature.plot(picoseconds, run.frames["temperature"], color=BLUE, linewidth=0.5, alpha=0.6)
        start = run.frames["potential_energy"][:1]
        energy.plot(picoseconds, run.frames["potential_energy"] - start, color=BLUE, linewidth=0.5, alpha=0.6)
    temperature.axhline(options.temperature, color=GREY, linewidth=1)
    temperature.set_ylabel("temperature (K)")
    energy.set_ylabel("potential energy since the start (eV)")
    for panel in (temperature, energy):
        panel.set_xlabel("time (ps)")
    return _save(figure, path)


def plot_simulations(
    relaxation: Relaxation, reference: FloatArray, constant_energy: Dynamics, bath: Dynamics, path: Path
) -> Path:
    """Draw a relaxation's energy and forces, and the energy and temperature of two dynamics.

    Args:
        relaxation: By the model.
        reference: Energies (eV) of the same structures by the potential that made the labels.
        constant_energy: Dynamics at constant energy.
        bath: Dynamics in a bath.
        path: File to write.
    """
    figure, (energy, drift, temperature) = _figure(3)
    energy.plot(relaxation.energies, color=BLUE, label="model")
    energy.plot(reference, color=ORANGE, label="EMT, same structures")
    energy.set_xlabel("relaxation step")
    energy.set_ylabel("adsorption energy (eV)")
    energy.legend(frameon=False)
    change = 1000.0 * (constant_energy.total_energies - constant_energy.total_energies[0]) / constant_energy.free_atoms
    drift.plot(constant_energy.times, change, color=BLUE)
    drift.set_xlabel("time (fs)")
    drift.set_ylabel("change of total energy\n(meV per free atom)")
    drift.set_title("velocity Verlet", fontsize=10)
    temperature.plot(bath.times, bath.temperatures, color=BLUE)
    temperature.axhline(float(np.mean(bath.temperatures[len(bath.temperatures) // 2 :])), color=GREY, linewidth=1)
    temperature.set_xlabel("time (fs)")
    temperature.set_ylabel("temperature (K)")
    temperature.set_title("Langevin", fontsize=10)
    return _save(figure, path)


def plot_scaling(lines: Sequence[ScalingLine], label: str, note: str, path: Path) -> Path:
    """Draw errors against cost on logarithmic axes; points are named where they are few.

    Args:
        lines: At least one.
        label: Name of the cost.
        note: Which errors these are.
        path: File to write.
    """
    figure, panels = _figure(2)
    families = list(dict.fromkeys(line.family for line in lines))
    names_shown = sum(len(line.points) for line in lines) <= NAMED_POINTS
    for number, line in enumerate(lines):
        look: dict[str, Any] = {
            "color": f"C{number}",
            "marker": MARKERS[families.index(line.family) % len(MARKERS)],
            "linestyle": "solid" if line.joined else "none",
        }
        costs = [point.x for point in line.points]
        for panel, errors in zip(
            panels, ([p.energy for p in line.points], [p.forces for p in line.points]), strict=True
        ):
            panel.plot(costs, errors, markersize=5, label=line.label, **look)
            for point, error in zip(line.points if names_shown else (), errors, strict=False):
                panel.annotate(point.name, (point.x, error), (4, 4), textcoords="offset points", fontsize=6)
    for panel, name in zip(panels, ("energy MAE (meV)", "force MAE (meV/Å)"), strict=True):
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel(label)
        panel.set_ylabel(name)
    columns = 2 if len(lines) > 1 and max(len(line.label) for line in lines) <= WIDE_LABEL else 1
    # Below the panels, where labels hide no points; in inches, a row is about this high.
    figure.set_figheight(figure.get_figheight() + 0.18 * -(-len(lines) // columns))
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )
    figure.suptitle(note, fontsize=8)
    return _save(figure, path)
