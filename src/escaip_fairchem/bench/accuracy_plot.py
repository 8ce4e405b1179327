"""Errors against seconds of training."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from escaip_fairchem.bench.accuracy_models import MODELS
from escaip_fairchem.bench.cases import AccuracyCase, Outcome
from escaip_fairchem.bench.plots import DOTS_PER_INCH

QUANTITIES = {"energy_per_atom_mae": "energy MAE (meV/atom)", "forces_mae": "force MAE (meV/Å)"}


def plot_accuracy(outcomes: Sequence[Outcome], path: Path) -> Path:
    """Draw validation errors against seconds, a column per set; the line of a budget ends where it is spent.

    Args:
        outcomes: Of accuracy cases; those without figures are left out. Seeds are averaged.
        path: File to write.
    """
    lines: dict[tuple[str, str, float], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.is_measured and isinstance(outcome.case, AccuracyCase):
            lines[outcome.case.data, outcome.case.model, outcome.case.budget].append(outcome)
    sets = list(dict.fromkeys(data for data, _, _ in lines))
    models = dict.fromkeys([*MODELS, *(model for _, model, _ in lines)])  # a known one always has its colour
    colors = {model: f"C{number}" for number, model in enumerate(models)}
    figure = Figure(figsize=(3.1 * len(sets) + 0.5, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(QUANTITIES), len(sets), sharex=True, squeeze=False)
    for (data, model, budget), members in lines.items():
        for panel_row, quantity in zip(axes, QUANTITIES, strict=True):
            points = list(zip(*(outcome.extra["points"] for outcome in members), strict=True))
            seconds = [statistics.fmean(point["seconds"] for point in moment) for moment in points]
            errors = [1e3 * statistics.fmean(point["metrics"][quantity] for point in moment) for moment in points]
            is_longest = budget == max(other for _, _, other in lines)
            panel_row[sets.index(data)].plot(
                seconds,
                errors,
                color=colors[model],
                linestyle="-" if is_longest else ":",
                marker="o",
                markersize=3,
                linewidth=1.2,
                label=model if is_longest else None,
            )
    for panel_row, label in zip(axes, QUANTITIES.values(), strict=True):
        panel_row[0].set_ylabel(label)
    for column, data in enumerate(sets):
        axes[0][column].set_title(data, fontsize=10)
        axes[-1][column].set_xlabel("seconds of training")
    for panel in axes.flat:
        panel.set_xscale("log")
        panel.set_yscale("log")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
        panel.spines[["top", "right"]].set_visible(False)
    entries = {  # of all panels: a model may lack a line in some
        label: handle for panel in axes.flat for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=len(MODELS), frameon=False, fontsize=8
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})
    return path
