"""The machine: rates that are rates, and a GPU that is not there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bench_cases import InProcessWorker, passes

from escaip_fairchem.bench.machine import (
    check_device,
    copy_rate,
    describe_machine,
    float32_products,
    gemm_rate,
    measure_machine,
)
from escaip_fairchem.bench.options import Options, Session, machine_table
from escaip_fairchem.errors import ConfigError


def test_the_machine_is_described_and_its_rates_are_plausible():
    machine = measure_machine("cpu", quick=True)
    assert machine.slug == "cpu"
    assert machine.name
    assert machine.cores >= 1
    assert machine.versions["torch"] == torch.__version__
    assert set(machine.gemm_rates) == {"fp32", "bf16"}
    assert 1e8 < machine.rate("fp32") < 1e14
    assert 1e8 < machine.copy_rate < 1e13
    assert machine.rate("tf32") != machine.rate("tf32")  # NaN: not measured


def test_the_best_of_two_measurements_takes_each_rate_by_itself():
    machine = replace(measure_machine("cpu", quick=True), gemm_rates={"fp32": {"a": 2.0, "b": 3.0}}, copy_rate=5.0)
    slow = replace(machine, fp32_rates=(3.0,))
    fast = replace(machine, gemm_rates={"fp32": {"a": 1.0, "b": 9.0}}, copy_rate=4.0, fp32_rates=(9.0,))
    best = slow.best_of(fast)
    assert best.gemm_rates == {"fp32": {"a": 2.0, "b": 9.0}}
    assert best.copy_rate == 5.0
    assert best.fp32_rates == (3.0, 9.0)
    table = machine_table(replace(best, fp32_rates=(3e9, 9e9, 4e9)))
    assert "highest of 3 measurements" in table.notes[-1]
    assert "3 to 9 GFLOP/s, at 4 in half" in table.notes[-1]


def test_rates_are_measured_again_between_cases_but_not_after_each(monkeypatch: pytest.MonkeyPatch):
    session = Session(Options(quick=True), show=lambda line: None)
    session.runner.drop(passes(), "")
    monkeypatch.setattr("escaip_fairchem.bench.runner.Worker", InProcessWorker)
    session.runner.one(passes(batches=1))
    assert len(session.machine.fp32_rates) == 1
    monkeypatch.setattr("escaip_fairchem.bench.options.RATES_EVERY", 0.0)
    session.runner.one(passes(batches=2))
    session.runner.one(passes(batches=2))  # known by now
    assert len(session.machine.fp32_rates) == 2
    session.measure_rates()
    assert len(session.machine.fp32_rates) == 3


def test_rates_count_two_operations_per_multiply_add_and_two_ways_per_byte(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("escaip_fairchem.bench.machine._typical", lambda *_, **__: 0.5)
    assert gemm_rate("cpu", "fp32", (10, 20, 30)) == 2 * 10 * 20 * 30 / 0.5
    assert copy_rate("cpu", 1000) == 2 * 1000 / 0.5


def test_the_precision_of_products_is_set_for_a_block_only():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(RuntimeError), float32_products("high"):
        assert torch.get_float32_matmul_precision() == "high"
        raise RuntimeError
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_an_error():
    with pytest.raises(ConfigError, match="finds no GPU here"):
        describe_machine("cuda")
    with pytest.raises(ConfigError, match="must be cpu or cuda"):
        check_device("tpu")
