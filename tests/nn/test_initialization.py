"""Initial values, and which parameters weight decay leaves alone."""

from __future__ import annotations

import torch
from torch import nn

from escaip_fairchem.nn import EnergyHead
from escaip_fairchem.nn.initialization import ENERGY_HEAD_GAIN, initialize, parameters_without_decay
from escaip_fairchem.testing import tiny_config
from escaip_fairchem.testing.predictors import Predictor


def test_linears_are_xavier_uniform_with_zero_biases():
    layer = nn.Linear(300, 100)
    nn.init.ones_(layer.bias)
    initialize(layer)
    limit = (6 / 400) ** 0.5
    assert layer.weight.abs().max() <= limit
    assert layer.weight.abs().max() > 0.99 * limit
    assert abs(layer.weight.std() - limit / 3**0.5) < 0.02 * limit
    assert not layer.bias.any()


def test_element_embeddings_are_uniform_and_small():
    embedding = nn.Embedding(90, 64)
    initialize(embedding)
    assert 0.99e-3 < embedding.weight.abs().max() <= 1e-3
    assert abs(embedding.weight.std() - 1e-3 / 3**0.5) < 2e-5


def test_the_energy_head_starts_near_zero():
    head = EnergyHead(64, multiplier=2, activation="gelu", reduce="mean")
    initialize(head, ENERGY_HEAD_GAIN)
    limit = 0.01 * (6 / 65) ** 0.5
    assert 0.9 * limit < head.layer.linear.weight.abs().max() <= limit


def test_the_backbone_initialises_itself():
    backbone = Predictor(tiny_config(), "direct").backbone
    for name, parameter in backbone.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name or name.endswith("angle_scale"):
            assert (parameter == 1).all(), name
        elif "element_embedding" in name:
            assert parameter.abs().max() <= 1e-3, name
        else:
            limit = (6 / sum(parameter.shape)) ** 0.5
            assert 0.8 * limit < parameter.abs().max() <= limit, name


def test_the_same_seed_builds_the_same_model():
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(Predictor(tiny_config(), "direct").state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not all(torch.equal(models[0][name], models[2][name]) for name in models[0])


def test_parameters_without_decay_are_biases_norms_embeddings_and_scalars():
    model = Predictor(tiny_config(num_layers=1), "equivariant rank-2")
    exempt = parameters_without_decay(model)
    assert exempt == sorted(set(exempt))
    decayed = {name for name, _ in model.named_parameters()} - set(exempt)
    linears = {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    assert decayed == linears
    for name in (
        "backbone.blocks.0.graph_attention.attention.angle_scale",
        "backbone.blocks.0.graph_attention.edge_attributes.sender_element_embedding.weight",
        "backbone.input_block.ffn_norm.weight",
        "backbone.input_block.edge_linear.0.bias",
        "backbone.node_projection.out_norm.weight",
    ):
        assert name in exempt


def test_a_linear_layer_of_width_one_is_decayed_all_the_same():
    assert parameters_without_decay(nn.Linear(1, 1)) == ["bias"]
