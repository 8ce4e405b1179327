"""The seven non-linearities, against their formulas written out with numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn.activations import ACTIVATIONS, build_activation

FORMULAS = {
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "smelu": lambda x: 0.0 if x < -2 else x if x > 2 else (x + 2) ** 2 / 8,
    "squared_relu": lambda x: max(x, 0.0) ** 2,
    "star_relu": lambda x: 0.8944 * max(x, 0.0) ** 2 - 0.4472,
}
POINTS = [-30.0, -2.0001, -2.0, -1.9999, -0.7, -1e-9, 0.0, 1e-9, 0.3, 1.0, 1.9999, 2.0, 2.0001, 30.0]


def test_every_activation_has_a_formula_here():
    assert set(ACTIVATIONS) == set(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values(name, dtype):
    activation = build_activation(name)
    actual = activation(torch.tensor(POINTS, dtype=dtype))
    expected = torch.tensor([FORMULAS[name](x) for x in POINTS], dtype=dtype)
    assert actual.dtype == dtype
    assert torch.allclose(actual, expected, rtol=1e-6, atol=1e-7)
    assert not list(activation.parameters())


@pytest.mark.parametrize("name", FORMULAS)
def test_derivatives_are_finite_everywhere(name):
    inputs = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(build_activation(name)(inputs).sum(), inputs, create_graph=True)
    assert first.isfinite().all()
    if first.requires_grad:
        (second,) = torch.autograd.grad(first.sum(), inputs, allow_unused=True)
        assert second is None or second.isfinite().all()


def test_star_relu_normalises_a_standard_normal_input():
    outputs = build_activation("star_relu")(torch.randn(200_000, dtype=torch.float64))
    assert outputs.mean() == pytest.approx(0, abs=0.02)
    assert outputs.std() == pytest.approx(1, abs=0.02)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"activation: 'gelo' is unknown \(did you mean 'gelu'\?\)"):
        build_activation("gelo")


def test_each_call_builds_a_module_of_its_own():
    assert isinstance(build_activation("gelu"), nn.Module)
    assert build_activation("gelu") is not build_activation("gelu")
