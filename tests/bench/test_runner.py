"""Processes that measure: their answers, their deaths, and the time limit."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from bench_cases import InProcessWorker, outcome, passes

from escaip_fairchem.bench import runner as module
from escaip_fairchem.bench.cases import DROPPED, FAILED, NOT_AVAILABLE, Outcome, PassCase, why_not_larger
from escaip_fairchem.bench.runner import TIME_LIMIT, Runner
from escaip_fairchem.bench.timing import Deadline


def program(tmp_path: Path, text: str) -> str:
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def lines() -> list[str]:
    return []


def test_a_process_measures_and_reports(lines: list[str]):
    with Runner(Deadline(None), lines.append) as runner:
        first = runner.one(passes(batch_size=1, batches=1))
        assert first.is_measured, first.remark
        assert first.seconds[0] > 0
        assert runner.one(passes(batch_size=1, batches=1)) is first  # not measured again
    assert lines == [f"  escaip-tiny:plain inference, batch 1: {first.seconds[0]:.4g} s at best of 1"]


def test_a_process_that_dies_is_a_failed_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: list[str]):
    monkeypatch.setattr(sys, "executable", program(tmp_path, "echo no such thing >&2; exit 3"))
    with Runner(Deadline(None), lines.append) as runner:
        ended = runner.one(passes())
        assert ended.status == FAILED
        assert ended.reason == "the process ended with status 3: no such thing"
        monkeypatch.setattr(sys, "executable", program(tmp_path, "kill -9 $$"))
        assert "want of memory" in runner.one(passes(seed=1)).reason


def test_the_time_limit_ends_a_process_and_drops_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: list[str]
):
    monkeypatch.setattr(sys, "executable", program(tmp_path, "exec sleep 60"))
    begin = time.monotonic()
    with Runner(Deadline(0.5), lines.append) as runner:
        outcomes = runner.run([passes(seed=seed) for seed in range(3)])
    assert time.monotonic() - begin < 10
    assert [(ended.status, ended.reason) for ended in outcomes] == [(DROPPED, TIME_LIMIT)] * 3
    assert len(lines) == 3


def test_on_a_gpu_one_process_goes_on_until_an_error_spoils_it(monkeypatch: pytest.MonkeyPatch, lines: list[str]):
    made: list[object] = []

    class Stub(InProcessWorker):
        def __init__(self, threads: int | None = None) -> None:
            made.append(self)

        def ask(self, case: PassCase, deadline: Deadline) -> Outcome:
            reasons = {1: "out of memory", 2: "RuntimeError: CUDA error: an illegal memory access"}
            if case.seed in reasons:
                return Outcome(case=case, status=FAILED, reason=reasons[case.seed])
            return outcome(case, 1.0)

    monkeypatch.setattr(module, "Worker", Stub)
    processes = []
    runner = Runner(Deadline(None), lines.append)
    for seed in (0, 1, 2, 3):
        runner.one(passes(device="cuda", seed=seed))
        processes.append(len(made))
    assert processes == [1, 1, 1, 2]


def test_what_was_dropped_is_measured_when_there_is_time_again(monkeypatch: pytest.MonkeyPatch, lines: list[str]):
    monkeypatch.setattr(module, "Worker", InProcessWorker)
    runner = Runner(Deadline(1000.0), lines.append)
    with runner.share_of_time(0.0):
        assert runner.one(passes(batches=1)).status == DROPPED
    assert runner.deadline.remaining > 900
    assert runner.one(passes(batches=1)).is_measured


def test_larger_cases_are_given_up_for_a_reason():
    assert why_not_larger(None, growth=9.0, longest=1.0) == ""
    assert why_not_larger(outcome(passes(), 2.0), growth=4.0, longest=10.0) == ""
    assert why_not_larger(outcome(passes(), 3.0), growth=4.0, longest=10.0) == "would take about 12 s"
    for status in (NOT_AVAILABLE, DROPPED):
        ended = Outcome(case=passes(), status=status, reason="because")
        assert why_not_larger(ended, growth=1.0, longest=1.0) == "because"
    assert "did not work" in why_not_larger(Outcome(case=passes(), status=FAILED), growth=1.0, longest=1.0)
