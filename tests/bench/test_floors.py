"""Floors: operations counted by hand, bytes, and what follows from a machine's rates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from escaip_fairchem.bench.floors import Floor, count_flops, escaip_flops_per_atom, model_bytes, plain_config
from escaip_fairchem.bench.frames import join, make_bulk
from escaip_fairchem.bench.machine import Machine
from escaip_fairchem.testing.predictors import Predictor

MACHINE = Machine(
    device="cpu", name="x", cores=1, threads=1, memory_bytes=0, versions={}, date="2020-01-01",
    gemm_rates={"fp32": {"a": 1e9, "b": 2e9}, "bf16": {"a": 8e9}}, copy_rate=1e8,
)  # fmt: skip


def test_a_linear_layer_has_two_operations_per_weight_and_row():
    layer, rows = nn.Linear(30, 20), torch.randn(7, 30)
    with torch.no_grad():
        assert count_flops(lambda: layer(rows)) == 2 * 7 * 30 * 20
    # Backwards, the gradient of the weight; that of the input is not asked for.
    assert count_flops(lambda: layer(rows).sum().backward()) == 2 * 2 * 7 * 30 * 20


def test_the_plain_model_is_counted_as_its_equations_say():
    config = plain_config("escaip-tiny")
    predictor = Predictor(config, "direct").eval()
    rows_times_weights = 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal rows_times_weights
        rows_times_weights += output.numel() * inputs[0].shape[-1]

    for module in predictor.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(count)
    systems = join([make_bulk(32, seed=0)]).systems
    with torch.no_grad():
        predictor(systems)
    atoms, slots, layers = 32, config.max_neighbors, config.num_layers
    # Attention multiplies queries by keys and weights by values; cosines of angles are products of directions.
    attention = 2 * layers * slots * slots * config.hidden_size
    cosines = 3 * slots * slots
    by_hand = 2 * (rows_times_weights / atoms + attention + cosines)
    assert escaip_flops_per_atom("escaip-tiny", "inference") == pytest.approx(by_hand, rel=0.02)


def test_training_takes_nearly_three_times_the_operations():
    ratio = escaip_flops_per_atom("escaip-tiny", "training") / escaip_flops_per_atom("escaip-tiny", "inference")
    assert 2.7 < ratio <= 3.0


def test_the_papers_small_model_takes_the_operations_that_were_seen():
    # 457 GFLOP for 199 atoms.
    assert escaip_flops_per_atom("escaip-small", "inference") * 199 == pytest.approx(457e9, rel=0.02)


def test_the_slower_of_operations_and_bytes_is_the_floor():
    compute = Floor(flops=4e9, bytes=1e7)
    assert compute.seconds(MACHINE) == pytest.approx(2.0)  # at the fastest product measured
    assert compute.limit(MACHINE) == "FLOP"
    assert Floor(flops=4e9, bytes=1e7, precision="bf16").seconds(MACHINE) == pytest.approx(0.5)
    memory = Floor(flops=4e9, bytes=1e9)
    assert memory.seconds(MACHINE) == pytest.approx(10.0)
    assert memory.limit(MACHINE) == "bytes"


def test_weights_move_once_for_a_prediction_and_nine_times_for_a_step():
    module = nn.Linear(10, 5)
    assert model_bytes(module, "inference") == 4 * 55
    assert model_bytes(module, "training") == 9 * 4 * 55
