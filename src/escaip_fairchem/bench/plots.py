"""Figures, written as PNG."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from escaip_fairchem.bench.cases import Outcome, PassCase
from escaip_fairchem.bench.timing import Spread

DOTS_PER_INCH = 110
MODES = ("inference", "training")
MARKERS = ("o", "^", "s")
"""Of the first ten models, the next ten, and so on; colours repeat after ten."""


def plot_efficiency(outcomes: Sequence[Outcome], path: Path) -> Path:
    """Draw samples per second, with their spread over the batches, and mean peak memory against batch size.

    As in the table, samples per second are the batch size over the mean time.

    Args:
        outcomes: Of passes; those without figures are left out.
        path: File to write.
    """
    figure = Figure(figsize=(9.6, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex=True, squeeze=False)
    lines: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.is_measured and isinstance(outcome.case, PassCase):
            lines[str(outcome.case.name), outcome.case.mode].append(outcome)
    names = dict.fromkeys(name for name, _ in lines)
    looks = {name: (f"C{number % 10}", MARKERS[number // 10 % len(MARKERS)]) for number, name in enumerate(names)}
    for (name, mode), points in lines.items():
        speed, memory = axes[0][MODES.index(mode)], axes[1][MODES.index(mode)]
        _draw(speed, memory, points, label=name, look=looks[name])
    for mode, speed, memory in zip(MODES, axes[0], axes[1], strict=True):
        _decorate(speed, memory, mode)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of matplotlib in it, equal figures are equal files.
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})
    return path


def _draw(speed: Axes, memory: Axes, points: Sequence[Outcome], *, label: str, look: tuple[str, str]) -> None:
    sizes, rates, peaks = [], [], []
    for outcome in points:
        assert isinstance(outcome.case, PassCase)
        size = outcome.case.batch_size
        sizes.append(size)
        time = Spread.of(outcome.seconds)
        rates.append((size / time.mean, size * time.std / time.mean**2))
        peaks.append((Spread.of(outcome.peak_bytes).mean / 1e9, 0.0))
    for panel, values in ((speed, rates), (memory, peaks)):
        means, spreads = zip(*values, strict=True)
        panel.errorbar(
            sizes,
            means,
            yerr=spreads if any(spreads) else None,
            label=label,
            color=look[0],
            marker=look[1],
            markersize=4,
            capsize=2,
            linewidth=1.2,
        )


def _decorate(speed: Axes, memory: Axes, mode: str) -> None:
    speed.set_title(mode, fontsize=10)
    speed.set_ylabel("samples per second")
    memory.set_ylabel("peak memory (GB)")
    memory.set_xlabel("structures per batch")
    for panel in (speed, memory):
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.spines[["top", "right"]].set_visible(False)
