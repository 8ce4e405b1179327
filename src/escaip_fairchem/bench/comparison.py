"""Models beside each other on the same frames: table, ratios, and how far their outputs agree."""

from __future__ import annotations

import math
from dataclasses import replace
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
    notes = [f"{outcome.extra.get('frames', '')}, models in turn; {outcome.remark}".rstrip("; ")]
    columns = (
        "model", "precision", "mode", "time median (s)", "time mean (s)", "time std (s)", "repeats", "floor (s)",
        "floor share", "energy max", "energy RMS", "forces max", "forces RMS", "remark",
    )  # fmt: skip
    return Table(title=f"{case.mode.capitalize()} beside the plain path", columns=columns, rows=rows, notes=notes)


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


def with_peer(outcome: Outcome, peer: Outcome) -> Outcome:
    """A comparison with the times of another one, of the same frames in another process, beside its own."""
    reasons = dict.fromkeys(peer.case.names, peer.remark) if isinstance(peer.case, CompareCase) and peer.remark else {}
    merged = {
        key: {**outcome.extra.get(key, {}), **peer.extra.get(key, {}), **more}
        for key, more in (("seconds", {}), ("reasons", reasons))
    }
    return replace(outcome, extra={**outcome.extra, **merged})


def times_behind(outcome: Outcome, large: str, small: str) -> str:
    """The two times behind a ratio, or why there is none."""
    seconds, reasons = medians(outcome), outcome.extra.get("reasons", {})
    if outcome.remark:
        return outcome.remark
    missing = [f"{name}: {reasons.get(name, 'not asked for')}" for name in (large, small) if name not in seconds]
    return "; ".join(missing) or f"{large} {seconds[large]:.4g} s / {small} {seconds[small]:.4g} s"


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
