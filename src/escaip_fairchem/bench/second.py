"""EScAIP as fairchem v2 has it, measured by an interpreter of an environment of its own."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from escaip_fairchem.bench.cases import DROPPED, FAILED, NOT_AVAILABLE, Outcome, PassCase
from escaip_fairchem.bench.frames import FrameBatch, draw_batches, load_pool
from escaip_fairchem.bench.models import SECOND_FAIRCHEM
from escaip_fairchem.bench.options import Session
from escaip_fairchem.bench.runner import TIME_LIMIT

SCRIPT = Path(__file__).parents[1] / "plugin" / "fairchem2_script.py"
"""Run by path, because that environment does not have this package."""
USUAL_SIZES = {"cpu": (1, 4), "cuda": (1, 8, 32)}


def measure_elsewhere(session: Session, *, batches: int) -> list[Outcome]:
    """Measure inference at growing batch sizes; one row that says why where there is no such environment."""
    options = session.options
    sizes = options.sizes(USUAL_SIZES[options.device], (1,))
    cases = [
        PassCase(**options.common, model=SECOND_FAIRCHEM, variant="published", batch_size=size, batches=batches)
        for size in sizes
    ]
    if options.fairchem2 is None:
        outcome = Outcome(case=cases[0], status=NOT_AVAILABLE, reason="not measured; name its Python with --fairchem2")
        session.show(f"  {cases[0].title}: {outcome.remark}")
        return [outcome]
    return [_measure(session, case, options.fairchem2) for case in cases]


def _measure(session: Session, case: PassCase, interpreter: Path) -> Outcome:
    pool = load_pool(case.folder, seed=case.seed)
    drawn = draw_batches(pool, size=case.batch_size, count=case.batches, seed=case.seed)
    request: dict[str, Any] = {"device": case.device, "seed": case.seed, "budget": case.budget}
    request["batches"] = [_plain(batch) for batch in drawn]
    remaining = session.runner.deadline.remaining
    if remaining <= 0:
        return session.runner.drop(case, TIME_LIMIT)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        try:
            done = subprocess.run(
                [str(interpreter), str(SCRIPT), str(answer)],
                input=json.dumps(request),
                capture_output=True,
                text=True,
                check=False,
                timeout=None if remaining == float("inf") else remaining,
            )
        except subprocess.TimeoutExpired:
            return Outcome(case=case, status=DROPPED, reason=TIME_LIMIT)
        except OSError as error:
            return Outcome(case=case, status=NOT_AVAILABLE, reason=f"--fairchem2 {interpreter}: {error}")
        if done.returncode != 0 or not answer.is_file():
            # Of a traceback the last line; the others name folders of this machine.
            said = done.stderr.strip().splitlines()
            reason = f"status {done.returncode}: {said[-1].strip()[:200] if said else 'it said nothing'}"
            return Outcome(case=case, status=FAILED, reason=reason)
        content = json.loads(answer.read_text(encoding="utf-8"))
    if "missing" in content:
        return Outcome(case=case, status=NOT_AVAILABLE, reason=str(content["missing"]))
    return Outcome(case=case, **content, extra={"frames": pool.source})


def _plain(batch: FrameBatch) -> dict[str, Any]:
    """A batch as lists, for an interpreter that does not know this package."""
    systems = batch.systems
    return {
        "positions": systems.positions_N3.tolist(),
        "cells": systems.cell_B33.tolist(),
        "numbers": systems.numbers_N.tolist(),
        "counts": systems.structure_N.bincount(minlength=systems.num_structures).tolist(),
        "tags": batch.tags_N.tolist(),
    }
