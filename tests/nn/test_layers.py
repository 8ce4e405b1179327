"""Dense layers, feed-forward layers, stochastic depth: formulas and statistics."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from escaip_fairchem.nn.layers import Dense, FeedForward, StochasticDepth
from escaip_fairchem.nn.readout import Projection, ResidualFeedForward


def test_dense_is_an_activated_linear_layer():
    layer, inputs = Dense(3, 4, activation="silu"), torch.randn(5, 3)
    expected = functional.silu(inputs @ layer[0].weight.T + layer[0].bias)
    assert torch.allclose(layer(inputs), expected)


def test_feed_forward_by_its_formula():
    layer, inputs = FeedForward(4, multiplier=3, activation="relu"), torch.randn(5, 4)
    (first, second) = (part for part in layer.modules() if isinstance(part, torch.nn.Linear))
    assert first.weight.shape == (12, 4)
    expected = functional.relu(inputs @ first.weight.T + first.bias) @ second.weight.T + second.bias
    assert torch.allclose(layer(inputs), expected, rtol=1e-5, atol=1e-6)


def test_residual_feed_forward_by_its_formula():
    layer = ResidualFeedForward(4, multiplier=2, activation="gelu", normalization="layernorm", dropout=0.0)
    inputs = torch.randn(2, 3, 4)
    assert torch.allclose(layer(inputs), inputs + layer.ffn(functional.layer_norm(inputs, (4,))), atol=1e-6)


def test_projection_by_its_formula():
    layer = Projection(4, 2, activation="relu", normalization="layernorm", dropout=0.0)
    first, second = torch.randn(2, 5, 4)
    joined = functional.layer_norm(torch.cat((first, second), dim=-1), (8,))
    expected = functional.layer_norm(functional.relu(layer.linear[0](joined)), (4,))
    assert torch.allclose(layer([first, second]), expected, atol=1e-6)


@pytest.mark.parametrize("make", [lambda: Dense(4, 4, activation="relu", dropout=0.5),
                                  lambda: FeedForward(4, multiplier=2, activation="relu", dropout=0.5)])  # fmt: skip
def test_dropout_is_for_training_alone(make):
    layer, inputs = make(), torch.randn(100, 4)
    layer.eval()
    assert torch.equal(layer(inputs), layer(inputs))
    layer.train()
    assert (layer(inputs) == 0).float().mean() > 0.2
    assert not torch.equal(layer(inputs), layer(inputs))


def test_dense_dropout_keeps_the_expectation():
    layer, inputs = Dense(3, 4, activation="relu", dropout=0.25), torch.randn(2, 3)
    samples = torch.stack([layer(inputs) for _ in range(4000)])
    exact = layer.eval()(inputs)
    assert torch.allclose(samples.mean(0), exact, atol=6 * float(exact.max()) * (0.25 / 0.75 / 4000) ** 0.5)


def test_stochastic_depth_drops_whole_structures_and_keeps_the_expectation():
    drop = StochasticDepth(0.3).train()
    structure = torch.tensor([0, 0, 0, 1, 2, 2])
    branch = torch.ones(6, 5, 2)
    samples = torch.stack([drop(branch, structure, 3) for _ in range(4000)])
    assert samples.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    per_structure = samples[:, [0, 3, 4], 0, 0]
    for atom, row in enumerate(structure):
        assert torch.equal(samples[:, atom], per_structure[:, row, None, None].expand(4000, 5, 2))
    kept = (per_structure > 0).double()
    assert kept.mean(0).tolist() == pytest.approx([0.7] * 3, abs=6 * (0.21 / 4000) ** 0.5)
    assert abs(float(torch.corrcoef(kept.T)[0, 1])) < 0.1, "structures are dropped independently"


@pytest.mark.parametrize(("probability", "training"), [(0.0, True), (0.9, False)])
def test_stochastic_depth_is_the_identity_otherwise(probability, training):
    branch = torch.randn(4, 3)
    dropped = StochasticDepth(probability).train(training)(branch, torch.tensor([0, 0, 1, 1]), 2)
    assert torch.equal(dropped, branch)
