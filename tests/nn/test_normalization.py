"""Normalisation against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn.normalization import RMSNorm, build_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rmsnorm_by_hand(dtype):
    norm = RMSNorm(2).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, -1.0]))
    # rms of (3, 4) is sqrt(12.5); of (0, 0) nothing is divided by zero.
    actual = norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=dtype))
    expected = torch.tensor([[6.0 / 12.5**0.5, -4.0 / 12.5**0.5], [0.0, 0.0]], dtype=dtype)
    assert actual.dtype == dtype
    assert torch.allclose(actual, expected, rtol=1e-6)


def test_rmsnorm_s_epsilon_is_that_of_float32_in_both_precisions():
    tiny = torch.full((1, 4), 1e-4, dtype=torch.float64)
    expected = 1e-4 / (1e-8 + torch.finfo(torch.float32).eps) ** 0.5
    assert RMSNorm(4).double()(tiny)[0, 0].item() == pytest.approx(expected, rel=1e-12)
    assert RMSNorm(4)(tiny.float())[0, 0].item() == pytest.approx(expected, rel=1e-5)


def test_rmsnorm_equals_torch_s():
    inputs = torch.randn(5, 3, 8)
    norm = RMSNorm(8)
    torch.nn.init.normal_(norm.weight)
    expected = torch.nn.functional.rms_norm(inputs, (8,), norm.weight, torch.finfo(torch.float32).eps)
    assert torch.allclose(norm(inputs), expected, rtol=1e-6, atol=1e-7)


def test_rmsnorm_of_half_precision_is_computed_in_float32():
    large = torch.full((1, 4), 300.0, dtype=torch.float16)  # its square overflows fp16
    outputs = RMSNorm(4)(large)
    assert outputs.dtype == torch.float16
    assert torch.allclose(outputs.float(), torch.ones(1, 4), rtol=1e-3)


def test_layernorm_by_hand():
    outputs = build_norm("layernorm", 2)(torch.tensor([[1.0, 3.0]]))
    assert torch.allclose(outputs, torch.tensor([[-1.0, 1.0]]), rtol=1e-4)


@pytest.mark.parametrize("name", ["none", "skip"])
def test_no_normalisation(name):
    inputs, norm = torch.randn(3, 4), build_norm(name, 4)
    assert torch.equal(norm(inputs), inputs)
    assert not list(norm.parameters())


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"normalization: 'rms_norm' is unknown \(did you mean 'rmsnorm'\?\)"):
        build_norm("rms_norm", 4)
