"""Dropout in the attention kernel; run like attention_kernel_cases.py, by test_attention_kernel.py.

What is dropped is read off the kernel itself, by attention that shows its weights, and then given to plain attention.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from attention_kernel_cases import DEVICE, ERRORS, Case, error, gradients, models, systems
from torch.nn import functional

from escaip_fairchem.nn.fast import mixing
from escaip_fairchem.nn.fast.compiled import CompiledRegions
from escaip_fairchem.nn.kernels.attention_fused import fused_attention


def draw_kept(atoms: int, heads: int, slots: int, dropout: float) -> torch.Tensor:
    """Which weights the next call of the kernel keeps, shape (N, A, K, K): all weigh the same, and values are 1-hot."""
    width = max(slots, 16)
    projected = torch.zeros(atoms, slots, 3, heads, width, device=DEVICE)
    projected[:, :, 2] = torch.eye(slots, width, device=DEVICE).unsqueeze(1)
    direction = torch.zeros(atoms, slots, 3, device=DEVICE)
    count = torch.full((atoms,), slots, dtype=torch.int32, device=DEVICE)
    mixed = fused_attention(projected.flatten(2), direction, count, None, heads, dropout)
    return mixed.unflatten(-1, (heads, width))[..., :slots].transpose(1, 2) > 0


@pytest.fixture
def plain_drops_the_same(monkeypatch):
    """PyTorch drops the weights that the kernel would drop, and draws what that would draw."""

    def dropout(inputs: torch.Tensor, p: float, *_: bool) -> torch.Tensor:
        return inputs * draw_kept(*inputs.shape[:3], p) / (1.0 - p) if p else inputs

    monkeypatch.setattr(functional, "dropout", dropout)


@pytest.fixture
def used(monkeypatch):
    """A list that grows by the dropout of every use of the kernel by a model."""
    dropouts: list[float] = []

    def noted(*arguments):
        dropouts.append(arguments[-1])
        return fused_attention(*arguments)

    monkeypatch.setattr(mixing, "fused_attention", noted)
    return dropouts


@pytest.mark.usefixtures("plain_drops_the_same")
@pytest.mark.parametrize("dropout", [0.1, 0.6])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((5, 3, 32), torch.float32), ((20, 2, 24), torch.float32), ((20, 2, 24), torch.bfloat16),
     ((64, 1, 16), torch.float32)], ids=str)  # fmt: skip
def test_outputs_and_gradients_are_those_of_the_plain_one(shape, dtype, dropout):
    case = Case(*shape, dtype, dropout=dropout)
    torch.manual_seed(3)
    outputs = case.fused()
    torch.manual_seed(3)
    reference = case.plain()
    assert error(outputs[case.mask], reference[case.mask]) < ERRORS[dtype]
    case.attention.eval()
    assert error(outputs[case.mask], case.plain()[case.mask]) > 0.1
    for actual, expected in zip(case.gradients(outputs), case.gradients(reference), strict=True):
        # Gradients are sums of terms of size 1 that may cancel.
        assert error(actual, expected, floor=1.0) < 2 * ERRORS[dtype]


@pytest.mark.parametrize("dropout", [0.05, 0.5, 0.9])
def test_the_share_of_dropped_weights(dropout):
    kept = draw_kept(8, 4, 32, dropout)
    share = 1.0 - kept.double().mean()
    assert abs(share - dropout) < 5 * (dropout * (1 - dropout) / kept.numel()) ** 0.5


@pytest.mark.parametrize("kind", ["calls, atoms, heads", "queries", "keys"])
def test_what_is_dropped_is_uncorrelated(kind):
    calls = torch.stack([draw_kept(3, 4, 32, 0.3) for _ in range(2)]).double()
    rows = {
        "calls, atoms, heads": calls.flatten(3).flatten(0, 2),
        "queries": calls.flatten(0, 2).transpose(0, 1).flatten(1),
        "keys": calls.flatten(0, 3).T,
    }[kind]
    assert rows.shape in ((24, 1024), (32, 768))
    assert torch.corrcoef(rows).triu(1).abs().max() < 6 / rows.shape[1] ** 0.5


def test_the_generator_of_pytorch_decides():
    torch.manual_seed(1)
    first, second = draw_kept(2, 2, 20, 0.3), draw_kept(2, 2, 20, 0.3)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(draw_kept(2, 2, 20, 0.3), first)
    assert torch.equal(draw_kept(2, 2, 20, 0.3), second)
    torch.manual_seed(2)
    assert not torch.equal(draw_kept(2, 2, 20, 0.3), first)


def test_padding_of_a_batch_changes_nothing_that_is_dropped():
    torch.manual_seed(1)
    expected = draw_kept(2, 2, 20, 0.3)
    torch.manual_seed(1)
    assert torch.equal(draw_kept(3, 2, 33, 0.3)[:2, :, :20, :20], expected)


def test_without_dropout_no_number_is_drawn():
    case = Case(20, 2, 16, torch.float32)
    torch.manual_seed(1)
    expected = torch.rand(3, device=DEVICE)
    torch.manual_seed(1)
    case.fused()
    assert torch.equal(torch.rand(3, device=DEVICE), expected)


def test_a_probability_below_the_resolution_drops_nothing():
    case = Case(20, 2, 16, torch.float32)
    expected = case.fused()
    case.attention.dropout = 1e-12
    outputs = case.fused()
    assert torch.equal(outputs, expected)
    for one, other in zip(case.gradients(outputs), case.gradients(expected), strict=True):
        assert torch.equal(one, other)


# Whole models.


@pytest.mark.usefixtures("plain_drops_the_same")
@pytest.mark.parametrize("compiled", [False, True])
def test_training_of_a_model(compiled, used):
    plain, fast = (model.train() for model in models("direct", atten_dropout=0.3))
    if compiled:
        fast.backbone.config = dataclasses.replace(fast.backbone.config, compile=True)
        fast.backbone._regions = CompiledRegions("aot_eager")
    torch.manual_seed(0)
    expected = gradients(plain)
    torch.manual_seed(0)
    actual = gradients(fast)
    assert used == [0.3] * 2
    assert set(actual) == set(expected)
    for name, reference in expected.items():
        # Terms of gradients may cancel.
        assert error(actual[name], reference, floor=0.1) < 1e-5, name


def test_dropout_is_for_training_alone(used):
    _, without = models("direct")
    _, fast = models("direct", atten_dropout=0.3)
    fast.load_state_dict(without.state_dict())
    with torch.no_grad():
        expected, actual = without(systems()), fast.eval()(systems())
        assert used == [0.0] * 4
        assert all(torch.equal(actual[name], value) for name, value in expected.items())
        first, second = (fast.train()(systems()) for _ in range(2))
    assert used[4:] == [0.3] * 4
    assert not any(torch.equal(first[name], second[name]) for name in first)
