"""The machine: rates that are rates, and a GPU that is not there."""

from __future__ import annotations

import pytest
import torch

from escaip_fairchem.bench.machine import (
    check_device,
    copy_rate,
    describe_machine,
    float32_products,
    gemm_rate,
    measure_machine,
)
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
