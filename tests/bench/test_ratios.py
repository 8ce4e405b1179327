"""Ratios: how they follow from what was measured. The figures here are made up; a GPU is not needed to divide them."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
from bench_cases import outcome

from escaip_fairchem.bench.cases import (
    FAILED,
    OUT_OF_MEMORY,
    CompareCase,
    GrowthCase,
    NeighborCase,
    Outcome,
    PassCase,
    TrainerCase,
)
from escaip_fairchem.bench.comparison import best_variant
from escaip_fairchem.bench.device_ratios import PEER
from escaip_fairchem.bench.machine import Machine
from escaip_fairchem.bench.options import Options
from escaip_fairchem.bench.processor_ratios import ProcessorRatios
from escaip_fairchem.bench.ratios import run_ratios
from escaip_fairchem.bench.requirements import MISSED, NOT_MEASURED, REACHED

SECONDS = {
    "plain": 4.0, "fast": 2.0, "fast-no-table": 2.5, "bf16": 0.8, "plain-bf16": 1.6, "tf32": 1.0, "triton": 1.9,
    "bf16-triton": 0.85, "bf16-compiled": 0.9,
}  # fmt: skip
FORCE_ERRORS = {"bf16": 0.02, "plain-bf16": 0.009}


class Answers:
    """Stands where the runner stands, and answers with made-up figures."""

    def __init__(self, *, available: bool = True, peer_fits: bool = True) -> None:
        self.available = available
        self.peer_fits = peer_fits
        self.asked: list[Any] = []

    def run(self, cases: list[Any]) -> list[Outcome]:
        return [self.one(case) for case in cases]

    def one(self, case: Any) -> Outcome:
        self.asked.append(case)
        if not self.available:
            return Outcome(case=case, status="not available", reason="no such thing")
        return getattr(self, f"_{case.kind}")(case)

    def _compare(self, case: CompareCase) -> Outcome:
        if case.names[0].startswith(PEER) and not self.peer_fits and not case.singly:
            return Outcome(case=case, status=FAILED, reason=OUT_OF_MEMORY)
        factor = 3.0 if case.mode == "training" else 1.0
        # The machine was four times as slow in the last round, which each pair of times says.
        times = {name: [factor * self._time(name) * slow for slow in (1.0, 1.0, 4.0)] for name in case.names}
        errors = {name: FORCE_ERRORS.get(name.partition(":")[2], 1e-6) for name in times if not name.startswith(PEER)}
        deviations = {
            name: {key: {"largest": 2 * error, "rms": error} for key in ("energy", "forces")}
            for name, error in errors.items()
        }
        extra = {"seconds": times, "deviations": deviations, "frames": "3 frames", "reasons": {}}
        extra |= {"weight_bytes": dict.fromkeys(times, 1e8), "flops": dict.fromkeys(times, 1e9)}
        return outcome(case, 1.0, extra=extra)

    def share_of_time(self, share: float) -> AbstractContextManager[None]:
        return nullcontext()

    def _time(self, name: str) -> float:
        if name.startswith(PEER):
            return 40.0 if name.endswith("frozen") else 60.0
        return SECONDS[name.partition(":")[2]]

    def _passes(self, case: PassCase) -> Outcome:
        if case.model == PEER:
            seconds = {"published": 12.0, "tf32": 9.5, "frozen": 10.0, "frozen-tf32": 9.0}[case.variant]
            peak = (4 if case.variant.startswith("frozen") else 8) * 10**9
            return outcome(case, seconds, peak_bytes=[peak])
        peak = 8 * 10**9 if case.variant == "plain" else 10**9
        return outcome(case, SECONDS[case.variant], atoms=[2000], peak_bytes=[peak], flops=4e11)

    def _neighbors(self, case: NeighborCase) -> Outcome:
        atoms = sum(case.atoms)
        return outcome(case, 0.01 if case.method == "escaip" else 5.0, peak_bytes=[10_000 * atoms])

    def _growth(self, case: GrowthCase) -> Outcome:
        # The machine was twice as slow while the second size was measured, which the passes around it say.
        relative = {"1000": [1.0, 1.05, 1.3], "5000": [0.98], "20000": [0.95, 1.0]}
        return outcome(case, 0.1, extra={"relative": relative, "seconds": {"100": [0.1, 0.2]}})

    def _trainer(self, case: TrainerCase) -> Outcome:
        return outcome(case, 1.0, extra={"outside": 0.04, "inside": [0.96]})


class FakeSession:
    def __init__(self, *, device: str = "cpu", available: bool = True, peer_fits: bool = True, **options: Any) -> None:
        self.options = Options(device=device, **options)
        self.runner = Answers(available=available, peer_fits=peer_fits)
        self.machine = Machine(
            device=device, name="x", cores=1, threads=1, memory_bytes=0, versions={}, date="2020-01-01",
            gemm_rates={"fp32": {"a": 1e12}, "bf16": {"a": 2e15}, "tf32": {"a": 1e14}}, copy_rate=1e10,
        )  # fmt: skip

    def save(self, table: Any, name: str) -> Any:
        return table


def rows(**session: Any) -> dict[str, dict[str, Any]]:
    found = {}
    for row in run_ratios(FakeSession(**session))()[0].rows:
        key = f"{row['what']} ({row['where']})"
        assert key not in found
        found[key] = dict(row)
    return found


def only(found: dict[str, dict[str, Any]], text: str) -> dict[str, Any]:
    matching = [row for key, row in found.items() if text in key]
    assert len(matching) == 1, list(found)
    return matching[0]


def test_the_ratios_of_a_cpu():
    found = rows()
    for text, measured, verdict in (
        ("3 frames, against the plain path", "2.00×", REACHED),
        ("forward, best precision", "2.50×", MISSED),  # bf16 is faster, but too inexact
        (f"against {PEER} (CPU)", "20.0×", REACHED),  # the frozen one's
        ("training step", "2.00×", REACHED),
        ("peak memory of inference, batch 16", "8.00×", REACHED),
        ("radius_graph_pbc", "500×", REACHED),
        ("20,000 atoms (CPU)", "0.2000 GB", REACHED),
        ("cells of different sizes", "1.00×", REACHED),
        ("time per atom", "7.69 % more", REACHED),  # 1.05 over 0.975
        ("optimizer (CPU)", "4.00%", REACHED),
    ):
        row = only(found, text)
        assert (row["measured"], row["verdict"]) == (measured, verdict), row
    assert only(found, "3 frames, against")["from"].startswith(
        "escaip-small:plain 4 s / escaip-small:fast 2 s; of 3 pairs: 2 to 2, median 2"
    )
    on_gpu = [row for row in found.values() if row["where"] == "GPU"]
    assert len(on_gpu) == 5
    assert all(row["verdict"] == row["measured"] == NOT_MEASURED for row in on_gpu)


def test_the_peer_and_the_fast_path_are_timed_in_turn_in_one_process():
    ratios = ProcessorRatios(FakeSession())
    ratios.forward()
    ratios.beside_peer()
    assert [outcome.case.names for outcome in ratios.compared] == [
        ["escaip-small:plain", "escaip-small:fast"],
        [f"escaip-small:{variant}" for variant in ("plain", "fast", "fast-no-table", "bf16", "plain-bf16")],
        [f"{PEER}:published", "escaip-small:fast"],
        [f"{PEER}:frozen", "escaip-small:fast"],
    ]


def test_floors_follow_the_rates_that_are_found_later():
    session = FakeSession()
    make = run_ratios(session)
    before = make()[1].rows[0]["floor (s)"]
    faster = replace(
        session.machine, gemm_rates={"fp32": {"a": 2e12}, "bf16": {"a": 2e15}, "tf32": {"a": 1e14}}, copy_rate=2e10
    )
    session.machine = session.machine.best_of(faster)
    assert make()[1].rows[0]["floor (s)"] == before / 2


def test_a_peer_that_needs_too_much_memory_takes_one_structure_after_the_other():
    row = only(rows(peer_fits=False), f"against {PEER} (CPU)")
    assert (row["measured"], row["verdict"]) == ("20.0×", REACHED)
    notes = [table.notes[0] for table in run_ratios(FakeSession(peer_fits=False))() if "beside" in table.title]
    assert notes.count("models in turn; failed: out of memory") == 2
    assert "3 frames, models in turn, fairchem's models one frame after the other" in notes


def test_the_ratios_of_a_gpu():
    found = rows(device="cuda")
    assert {row["where"] for row in found.values()} == {"GPU"}
    for text, measured, verdict in (
        ("inference samples/s", "11.2×", REACHED),  # 9 s / 0.8 s, each at its best precision
        ("peak memory", "4.00×", MISSED),  # of the frozen one, which is faster
        ("training samples/s", "11.9×", REACHED),
        ("share of the measured bf16 matrix rate", "50.0%", REACHED),  # 8e14 FLOP in 0.8 s of 2e15 FLOP/s
        ("optimizer", "4.00%", REACHED),
    ):
        row = only(found, text)
        assert (row["measured"], row["verdict"]) == (measured, verdict), row


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_cannot_be_measured_has_a_reason_and_no_figure(device: str):
    for row in rows(device=device, available=False).values():
        assert row["verdict"] == row["measured"] == NOT_MEASURED
        assert "no such thing" in row["from"] or row["from"] == "needs a GPU"


def test_the_peer_comes_last_and_has_its_place_in_the_table():
    """If time runs out, it runs out over what takes most of it."""
    session = FakeSession()
    found = [row["what"] for row in run_ratios(session)()[0].rows if row["where"] == "CPU"]
    assert found.index(f"forward, fp32, against {PEER}") == 2
    asked = [case.title for case in session.runner.asked]
    assert [PEER in title for title in asked] == sorted(PEER in title for title in asked)


def test_a_missing_peer_leaves_the_other_ratios():
    ratios = ProcessorRatios(FakeSession(models=["escaip-medium"]))
    assert ratios.model == "escaip-medium"
    assert ratios.peer is None
    (beside,) = ratios.beside_peer()
    assert math.isnan(beside.value)
    assert "not asked for" in beside.how


def test_the_best_variant_is_the_fastest_that_is_exact_enough():
    seconds = {"escaip-tiny:plain": 2.0, "escaip-tiny:bf16": 0.5, "escaip-tiny:fast": 1.0}
    deviations = {name: {"forces": {"rms": 0.0}} for name in seconds}
    assert best_variant(seconds, deviations, "escaip-tiny") == "escaip-tiny:bf16"
    deviations["escaip-tiny:bf16"]["forces"]["rms"] = 0.011
    assert best_variant(seconds, deviations, "escaip-tiny") == "escaip-tiny:fast"
    assert best_variant(seconds, {}, "escaip-tiny") == ""
