"""Reduced precision: how much of it reaches the predictions, and that switches hold for their block alone."""

from __future__ import annotations

import pytest
import torch

from escaip_fairchem.nn.fast.products import gather_pairs
from escaip_fairchem.nn.fast.terms import mean_over_slots, slot_weights
from escaip_fairchem.nn.precision import autocast_dtype, full_precision, tf32, tf32_is_allowed
from escaip_fairchem.testing import batch, relative_error, structures, tiny_predictor
from escaip_fairchem.testing.tolerances import root_mean_square

CPU = torch.device("cpu")
ZOO = [structures.disordered(1), structures.molecule(), structures.slab(), structures.isolated(8)]
SMALL = {
    "hidden_size": 64, "num_layers": 4, "atten_num_heads": 4, "edge_distance_expansion_size": 64,
    "edge_distance_embedding_size": 64,
}  # fmt: skip


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_forces_in_bfloat16_err_by_a_hundredth(kind, recorded):
    """Root mean square, over models with random parameters, which differ: from 0.3 to 2 %, and by 1.1 % on average."""
    errors = []
    for seed in range(6):
        model, systems = tiny_predictor(kind, seed=seed, dtype=torch.float32, **SMALL), batch(ZOO, torch.float32)
        with torch.set_grad_enabled(recorded):
            exact = model(systems)["forces"]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rounded = model(systems)["forces"]
        assert rounded.dtype == torch.float32
        errors.append(root_mean_square(rounded - exact) / root_mean_square(exact))
    assert 1e-4 < sum(errors) / len(errors) < 1.2e-2, errors


def test_means_over_slots_round_neither_weights_nor_sums():
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(20) < torch.tensor([[20], [13], [7], [1]])
    values = (1.0 + torch.rand(4, 20, 8, generator=generator)).bfloat16()
    exact = mean_over_slots(values.double(), slot_weights(mask, torch.float64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        means = [mean_over_slots(kind, slot_weights(mask, torch.float32)) for kind in (values, values.float())]
    for mean in means:
        assert mean.dtype == torch.float32
        assert relative_error(mean, exact) < 1e-6


def test_gradients_of_all_neighbors_are_summed_in_float32():
    """In bfloat16, 1 added to 256 is 256."""
    sender = torch.zeros(1, 4, dtype=torch.bfloat16, requires_grad=True)
    rows = torch.zeros(30, 10, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pairs = gather_pairs(sender, torch.zeros(30, 4), rows)
    assert pairs.dtype == torch.bfloat16
    (pairs.float() * torch.linspace(1.0, 3.0, 300).view(30, 10, 1)).sum().backward()
    assert relative_error(sender.grad.float(), torch.full((1, 4), 600.0)) < 5e-3


@pytest.mark.parametrize("before", [False, True])
def test_switches_hold_for_their_block_alone(before):
    with tf32(before):
        with pytest.raises(KeyError), torch.autocast("cpu", dtype=torch.bfloat16), full_precision(CPU):
            assert not tf32_is_allowed()
            assert not torch.backends.cuda.matmul.allow_tf32
            assert autocast_dtype(CPU) is None
            raise KeyError
        assert tf32_is_allowed() == before == torch.backends.cuda.matmul.allow_tf32
        with tf32(not before):
            assert tf32_is_allowed() != before
        assert tf32_is_allowed() == before
    assert not tf32_is_allowed()


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch < 2.9 has one switch")
def test_the_finer_switches_of_newer_torch_are_respected():
    """Once they are used, torch refuses to read the old one."""
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    try:
        switch.fp32_precision = "tf32"
        assert tf32_is_allowed()
        with full_precision(CPU):
            assert not tf32_is_allowed()
            assert switch.fp32_precision == "ieee"
        assert switch.fp32_precision == "tf32"
    finally:
        switch.fp32_precision = before


def test_no_forward_pass_leaves_a_switch_behind():
    with tf32(True):
        for kind in ("direct", "conservative"):
            with torch.no_grad():
                tiny_predictor(kind, dtype=torch.float32)(batch(ZOO, torch.float32))
            assert tf32_is_allowed()
            assert autocast_dtype(CPU) is None
