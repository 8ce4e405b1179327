"""Measuring without a process per case, which takes seconds to start, and outcomes that were never measured."""

from __future__ import annotations

from typing import Any

from escaip_fairchem.bench.cases import Case, Outcome, PassCase
from escaip_fairchem.bench.timing import Deadline
from escaip_fairchem.bench.worker import measure


class InProcessWorker:
    """Measures in this process what a worker measures in its own."""

    is_alive = True

    def __init__(self, threads: int | None = None) -> None:
        pass

    def ask(self, case: Case, deadline: Deadline) -> Outcome:
        return measure(case)

    def kill(self) -> None:
        pass

    def end(self) -> None:
        pass


def passes(**changes: Any) -> PassCase:
    settings: dict[str, Any] = {"model": "escaip-tiny", "variant": "plain", "batch_size": 2, "batches": 3}
    return PassCase(**{**settings, **changes})


def outcome(case: Case, seconds: float, **changes: Any) -> Outcome:
    settings: dict[str, Any] = {"seconds": [seconds], "atoms": [100], "peak_bytes": [10**9], "flops": 1e9}
    return Outcome(case=case, **{**settings, **changes})
