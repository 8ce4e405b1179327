"""Attention within a neighbourhood: every implementation against loops over atoms, heads and slots."""

from __future__ import annotations

import math

import pytest
import torch

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn.attention import (
    ATTENTION_FUNCTIONS,
    NeighborhoodAttention,
    attention_function,
    plain_attention,
    sdpa_attention,
)
from escaip_fairchem.testing.tolerances import assert_close

ATOMS, HEADS, SLOTS, WIDTH = 4, 2, 5, 3
MASK = torch.tensor(
    [[True] * 5, [True, True, False, False, False], [True, False, False, False, False], [True, True, True, True, False]]
)


def inputs(dtype):
    query, key, value = torch.randn(3, ATOMS, HEADS, SLOTS, WIDTH, dtype=torch.float64).to(dtype).unbind()
    bias = torch.randn(ATOMS, SLOTS, SLOTS, dtype=torch.float64).to(dtype).masked_fill(~MASK.unsqueeze(1), -torch.inf)
    return query, key, value, bias


def by_loops(query, key, value, bias):
    result = torch.zeros_like(value)
    for atom in range(ATOMS):
        used = [slot for slot in range(SLOTS) if MASK[atom, slot]]
        for head in range(HEADS):
            for row in range(SLOTS):
                logits = [
                    float(query[atom, head, row] @ key[atom, head, slot]) / math.sqrt(WIDTH)
                    + float(bias[atom, row, slot])
                    for slot in used
                ]
                weights = [math.exp(logit - max(logits)) for logit in logits]
                for weight, slot in zip(weights, used, strict=True):
                    result[atom, head, row] += weight / sum(weights) * value[atom, head, slot]
    return result


@pytest.mark.parametrize("name", ATTENTION_FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_implementation_is_the_loop(name, dtype):
    tensors = inputs(dtype)
    assert_close(attention_function(name)(*tensors, 0.0), by_loops(*tensors), "fused attention")


def test_gradients_agree():
    gradients = []
    for attend in (plain_attention, sdpa_attention):
        torch.manual_seed(0)
        query, key, value, bias = inputs(torch.float64)
        leaves = [tensor.requires_grad_(True) for tensor in (query, key, value)]
        finite = bias.detach().clone().requires_grad_(True)
        out = attend(*leaves, finite, 0.0)
        gradients.append(torch.autograd.grad(out.square().sum(), [*leaves, finite]))
    for plain, fused in zip(*gradients, strict=True):
        assert_close(fused, plain, "fused attention")


def test_the_plain_one_has_second_derivatives():
    query, key, value, bias = (
        tensor[:2, :1, :2] if tensor.dim() == 4 else tensor[:2, :2, :2] for tensor in inputs(torch.float64)
    )
    leaves = [tensor.clone().requires_grad_(True) for tensor in (query, key, value)]
    assert torch.autograd.gradgradcheck(lambda q, k, v: plain_attention(q, k, v, bias, 0.0), leaves)


def module(**changes):
    options = {"use_angles": True, "dropout": 0.0, "implementation": "math", **changes}
    return NeighborhoodAttention(6, 2, **options).double().eval()


def test_the_module_by_loops():
    """Projections, split into heads, angle bias and output projection, one number at a time."""
    attention = module()
    with torch.no_grad():
        attention.angle_scale.fill_(0.7)
    messages = torch.randn(ATOMS, SLOTS, 6, dtype=torch.float64)
    cosines = torch.randn(ATOMS, SLOTS, SLOTS, dtype=torch.float64)
    weight, bias = attention.in_projection.weight, attention.in_projection.bias
    query, key, value = ((messages @ weight[part : part + 6].T + bias[part : part + 6]) for part in (0, 6, 12))
    # Heads are consecutive features.
    heads = [torch.stack((part[..., :3], part[..., 3:]), dim=1) for part in (query, key, value)]
    mixed = by_loops(*heads, 0.7 * cosines)
    expected = attention.out_projection(torch.cat((mixed[:, 0], mixed[:, 1]), dim=-1))
    assert_close(attention(messages, cosines, MASK), expected, "fused attention")


def test_the_module_is_torch_s_multi_head_attention():
    attention = module(use_angles=False)
    torchs = torch.nn.MultiheadAttention(6, 2, batch_first=True, dtype=torch.float64)
    torchs.in_proj_weight.data.copy_(attention.in_projection.weight)
    torchs.in_proj_bias.data.copy_(attention.in_projection.bias)
    torchs.out_proj.load_state_dict(attention.out_projection.state_dict())
    messages = torch.randn(ATOMS, SLOTS, 6, dtype=torch.float64)
    expected, _ = torchs(messages, messages, messages, key_padding_mask=~MASK)
    actual = attention(messages, torch.randn(ATOMS, SLOTS, SLOTS, dtype=torch.float64), MASK)
    assert_close(actual[MASK], expected[MASK], "fused attention")


@pytest.mark.parametrize("implementation", ["math", "flash"])
def test_what_empty_slots_hold_does_not_matter(implementation):
    attention = module(implementation=implementation)
    messages, cosines = torch.randn(ATOMS, SLOTS, 6).double(), torch.randn(ATOMS, SLOTS, SLOTS).double()
    changed = torch.where(MASK.unsqueeze(-1), messages, 1e6)
    first, second = attention(messages, cosines, MASK), attention(changed, cosines, MASK)
    assert torch.equal(first[MASK], second[MASK])
    assert second.isfinite().all()


def test_angles_matter_exactly_where_they_are_used():
    messages, mask = torch.randn(ATOMS, SLOTS, 6).double(), MASK
    one, other = torch.randn(2, ATOMS, SLOTS, SLOTS).double()
    attention = module()
    assert not torch.allclose(attention(messages, one, mask), attention(messages, other, mask))
    without = module(use_angles=False)
    assert without.angle_scale is None
    assert torch.equal(without(messages, one, mask), without(messages, other, mask))


def test_the_angle_scale_starts_at_one():
    assert module().angle_scale.item() == 1.0
    assert module().angle_scale.shape == ()


@pytest.mark.parametrize("attend", [plain_attention, sdpa_attention])
def test_dropout_keeps_the_expectation(attend):
    torch.manual_seed(0)
    query, key, value, bias = inputs(torch.float32)
    exact = attend(query, key, value, bias, 0.0)
    samples = torch.stack([attend(query, key, value, bias, 0.4) for _ in range(3000)])
    assert samples.std(dim=0).mean() > 0.1
    assert torch.allclose(samples.mean(0), exact, atol=6 * float(samples.std(dim=0).max()) / 3000**0.5)


def test_dropout_is_for_training_alone():
    attention = module(dropout=0.5)
    messages, cosines = torch.randn(ATOMS, SLOTS, 6).double(), torch.randn(ATOMS, SLOTS, SLOTS).double()
    assert torch.equal(attention(messages, cosines, MASK), attention(messages, cosines, MASK))
    attention.train()
    assert not torch.equal(attention(messages, cosines, MASK), attention(messages, cosines, MASK))


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"atten_name: 'falsh' is unknown \(did you mean 'flash'\?\)"):
        attention_function("falsh")
