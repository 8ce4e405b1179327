"""Models beside each other on the same frames: table, ratios, and how far their outputs agree."""

from __future__ import annotations

import math
from typing import Any

from escaip_fairchem.bench.cases import CompareCase, Outcome
from escaip_fairchem.bench.floors import WEIGHT_PASSES, Floor
from escaip_fairchem.bench.models import parse_name
from escaip_fairchem.bench.options import Session
from escaip_fairchem.bench.tables import Table
from escaip_fairchem.bench.timing import Spread

LARGEST_FORCE_ERROR = 0.01
"""Of a lower precision: root mean square, in units of the reference's."""


def medians(outcome: Outcome) -> dict[str, float]:
    """Median seconds by model of a comparison."""
    return {name: Spread.of(values).median for name, values in outcome.extra.get("seconds", {}).items()}


def best_variant(seconds: dict[str, float], deviations: dict[str, Any], model: str) -> str:
    """The fastest variant of a model whose forces are near enough to the reference's; empty if there is none."""
    near = [
        name
        for name in seconds
        if parse_name(name).model == model and force_error(deviations.get(name)) <= LARGEST_FORCE_ERROR
    ]
    return min(near, key=seconds.__getitem__, default="")


def comparison_table(outcome: Outcome, session: Session) -> Table:
    """Times, floors and deviations of a comparison."""
    case = outcome.case
    assert isinstance(case, CompareCase)
    rows = [_comparison_row(outcome, case, name, session) for name in case.names]
    alone = ", fairchem's models one frame after the other" if case.singly else ""
    frames = outcome.extra.get("frames")  # unknown where the process died
    how = f"{frames}, models in turn{alone}" if frames else f"models in turn{alone}"
    notes = [f"{how}; {outcome.remark}".rstrip("; ")]
    first = parse_name(case.names[0])
    beside = "the plain path" if first.variant == "plain" else first.model
    columns = (
        "model", "precision", "mode", "time median (s)", "time mean (s)", "time std (s)", "repeats", "floor (s)",
        "floor share", "energy max", "energy RMS", "forces max", "forces RMS", "remark",
    )  # fmt: skip
    return Table(title=f"{case.mode.capitalize()} beside {beside}", columns=columns, rows=rows, notes=notes)


def _comparison_row(outcome: Outcome, case: CompareCase, text: str, session: Session) -> dict[str, Any]:
    name = parse_name(text)
    row: dict[str, Any] = {"model": text, "precision": name.precision, "mode": case.mode}
    values = outcome.extra.get("seconds", {}).get(text)
    if not values:
        return row | {"remark": outcome.remark or outcome.extra.get("reasons", {}).get(text, "")}
    spread = Spread.of(values)
    weights = float(outcome.extra["weight_bytes"][text])
    floor = Floor(
        flops=outcome.extra["flops"][text] * outcome.atoms[0],
        bytes=weights * WEIGHT_PASSES[case.mode],
        precision=name.precision,
    ).seconds(session.machine)
    deviations = outcome.extra["deviations"].get(text, {})
    return row | {
        "time median (s)": spread.median,
        "time mean (s)": spread.mean,
        "time std (s)": spread.std,
        "repeats": spread.count,
        "floor (s)": floor,
        "floor share": floor / spread.median,
        **{
            f"{key} {title}": deviations[key][kind]
            for key in deviations
            for title, kind in (("max", "largest"), ("RMS", "rms"))
        },
    }


def times_behind(outcome: Outcome, large: str, small: str) -> str:
    """The two times behind a ratio, or why there is none."""
    seconds, reasons = medians(outcome), outcome.extra.get("reasons", {})
    if outcome.remark:
        return outcome.remark
    missing = [f"{name}: {reasons.get(name, 'not asked for')}" for name in (large, small) if name not in seconds]
    return "; ".join(missing) or (
        f"{large} {seconds[large]:.4g} s / {small} {seconds[small]:.4g} s{pairs_note(outcome, large, small)}"
    )


def pairs_note(outcome: Outcome, large: str, small: str) -> str:
    """How much the ratio differs between rounds, in each of which the two were timed right after each other."""
    times = outcome.extra["seconds"]
    ratios = [one / other for one, other in zip(times[large], times[small], strict=True)]
    middle = Spread.of(ratios).median
    return f"; of {len(ratios)} pairs: {min(ratios):.3g} to {max(ratios):.3g}, median {middle:.3g}"


def deviation_note(deviation: Any) -> str:
    """Deviations in words, to be put behind times."""
    return (
        ""
        if deviation is None
        else f"; largest deviation {largest_deviation(deviation):.1e}, forces RMS {force_error(deviation):.1e}"
    )


def largest_deviation(deviation: Any) -> float:
    """Largest deviation of any output; infinite where none was found out."""
    return math.inf if deviation is None else max(entry["largest"] for entry in deviation.values())


def force_error(deviation: Any) -> float:
    """Root mean square deviation of the forces; infinite where none was found out."""
    return math.inf if deviation is None else float(deviation["forces"]["rms"])
