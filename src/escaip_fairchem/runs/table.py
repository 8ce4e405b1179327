"""Runs in a table for people, in a CSV file for programs, and in the order of a metric."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from escaip_fairchem.errors import ConfigError, nearest
from escaip_fairchem.runs.states import STATES, RunState

HEADINGS = {
    "energy_mae": "E MAE [eV]",
    "energy_per_atom_mae": "E MAE [eV/atom]",
    "forces_mae": "F MAE [eV/Å]",
    "stress_mae": "S MAE [eV/Å³]",
    "forces_cosine_similarity": "F cos",
    "energy_forces_within_threshold": "EFwT",
}
"""Short names of metrics; others go by fairchem's."""
_ALWAYS_SHOWN = ("energy_mae", "forces_mae")
_HIGHER_IS_BETTER = ("within_threshold", "cosine_similarity")
_NUMBERS = frozenset(("step", "epoch", "best", "samples/s", "time left"))
_WIDEST_WHY = 120


def as_text(states: Sequence[RunState], metric: str | None = None) -> str:
    """Lay runs out as an aligned table, with a count of their states below; columns without content are left out.

    Args:
        states: The runs, in the order of the rows.
        metric: A metric to show in any case.
    """
    rows = _rows(states, metric)
    headings = [name for name in rows[0] if name == "run" or any(row[name] for row in rows)] if rows else []
    numbers = _NUMBERS | {_heading(name) for name in _shown_metrics(states, metric)}
    columns = [_column(name, [row[name] for row in rows], to_the_right=name in numbers) for name in headings]
    lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    return "\n".join([*lines, "", _summary(states)])


def write_csv(states: Sequence[RunState], path: Path) -> None:
    """Write every field of every run: seconds, eV and eV/Å; nothing where something is not known.

    Args:
        states: The runs, one a line.
        path: The file, which is replaced.

    Raises:
        ConfigError: It cannot be written.
    """
    records = [_record(state) for state in states]
    names = list(dict.fromkeys(name for record in records for name in record))
    # At the end, side by side, whichever run has them.
    names.sort(key=lambda name: (name.startswith("changes."), name.startswith("metrics.")))
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(records)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); name another file") from None


def best(states: Sequence[RunState], metric: str) -> list[RunState]:
    """Sort runs by a metric, the best first; those without a value come last, in their order.

    Args:
        states: The runs.
        metric: fairchem's name, ``forces_mae`` for example.

    Raises:
        ConfigError: No run has it.
    """
    known = {name for state in states for name in _metrics_of(state)}
    if not known:
        raise ConfigError(f"--best {metric}: none of the {len(states)} runs has been evaluated yet; leave it out")
    if metric not in known:
        raise ConfigError(f"--best {metric}: no run has this metric{nearest(metric, known)}")
    sign = -1.0 if higher_is_better(metric) else 1.0

    def key(state: RunState) -> float:
        value = metric_value(state, metric)
        return math.inf if value is None or math.isnan(value) else sign * value

    return sorted(states, key=key)


def higher_is_better(metric: str) -> bool:
    """Direction in which a metric improves."""
    return any(part in metric for part in _HIGHER_IS_BETTER)


def metric_value(state: RunState, metric: str) -> float | None:
    """A run's best value of the metric that decides on its best checkpoint, its latest one of any other."""
    return _metrics_of(state).get(metric)


def duration(seconds: float | None) -> str:
    """Say a time in its two largest units, ``2 h 10 min``; nothing where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def _metrics_of(state: RunState) -> dict[str, float]:
    status = state.status
    if status is None:
        return {}
    primary = {} if status.primary_metric is None or status.best is None else {status.primary_metric: status.best}
    return {**status.metrics, **primary}


def _shown_metrics(states: Sequence[RunState], metric: str | None) -> list[str]:
    """Metrics with a column of their own: the runs' primary ones, the usual ones, the one that was asked for."""
    primary = [state.status.primary_metric for state in states if state.status and state.status.primary_metric]
    present = {name for state in states if state.status for name in state.status.metrics}
    return [
        name for name in dict.fromkeys((*primary, *_ALWAYS_SHOWN, *([metric] if metric else ()))) if name in present
    ]


def _rows(states: Sequence[RunState], metric: str | None) -> list[dict[str, str]]:
    metrics = _shown_metrics(states, metric)
    return [_row(state, metrics) for state in states]


def _row(state: RunState, metrics: Sequence[str]) -> dict[str, str]:
    status = state.status
    row = {"run": state.run, "state": state.state, "job": state.job or "", "step": "", "epoch": ""}
    row.update(dict.fromkeys(map(_heading, metrics), ""), best="")
    row["samples/s"] = "" if status is None else _number(status.samples_per_second)
    row["time left"] = duration(state.seconds_left)
    row["log"] = "" if state.log is None else _shorter_path(state.log)
    row["why"] = _shorten(state.why)  # the widest one, and often empty: at the end
    if status is not None:
        row["step"] = _of(f"{status.step:,}", status.total_steps)
        row["epoch"] = _of(f"{status.epoch:.4g}", status.total_epochs)
        row.update({_heading(name): _number(status.metrics.get(name)) for name in metrics})
        if status.primary_metric is not None and status.best is not None:
            row["best"] = f"{_number(status.best)} {_heading(status.primary_metric).partition(' [')[0]}"
    return row


def _column(heading: str, cells: Sequence[str], *, to_the_right: bool) -> list[str]:
    width = max(map(len, (heading, *cells)))
    return [cell.rjust(width) if to_the_right else cell.ljust(width) for cell in (heading, *cells)]


def _summary(states: Sequence[RunState]) -> str:
    counts = Counter(state.state for state in states)
    parts = [f"{counts[name]} {name}" for name in STATES if counts[name]]
    return f"{len(states)} run{'' if len(states) == 1 else 's'}: {', '.join(parts)}" if states else "no runs"


def _record(state: RunState) -> dict[str, Any]:
    """A run's line of a CSV file, by column."""
    status = {} if state.status is None else asdict(state.status)
    submission = {} if state.submission is None else asdict(state.submission)
    own = ("run", "state", "why", "job", "log", "metrics")  # of these, the run's state knows better or has more
    return {
        "run": state.run,
        "folder": str(state.folder),
        "state": state.state,
        "why": state.why,
        "job": state.job,
        "seconds_left": state.seconds_left,
        "log": state.log,
        **{name: value for name, value in status.items() if name not in own},
        **{name: submission[name] for name in ("submitted", "attempts", "config_yml", "sweep_yml") if submission},
        **{f"metrics.{name}": value for name, value in status.get("metrics", {}).items()},
        **{f"changes.{name}": value for name, value in submission.get("changes", {}).items()},
    }


def _heading(metric: str) -> str:
    return HEADINGS.get(metric, metric)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _of(done: str, total: int) -> str:
    return f"{done}/{total:,}" if total else done


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDEST_WHY else line[: _WIDEST_WHY - 1] + "…"


def _shorter_path(path: Path) -> str:
    """The path, relative where it lies below the working directory."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
