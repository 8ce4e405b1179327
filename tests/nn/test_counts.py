"""The numbers of parameters, exactly those of DESIGN §2 and the paper."""

from __future__ import annotations

import pytest
import torch

from escaip_fairchem.nn import BackboneConfig
from escaip_fairchem.testing.predictors import Predictor


def count(kind, **settings):
    config = BackboneConfig(max_radius=12.0, max_neighbors=20, **settings)
    with torch.device("meta"):
        model = Predictor(config, kind)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("width", "layers", "heads", "expected"),
    [(512, 10, 8, 83_299_466), (768, 8, 12, 146_207_624), (1024, 10, 16, 311_842_954)],
)
def test_direct_energy_and_forces(width, layers, heads, expected):
    assert count("direct", hidden_size=width, num_layers=layers, atten_num_heads=heads) == expected


def test_with_the_original_s_stress_head():
    settings = {"hidden_size": 512, "num_layers": 6, "atten_num_heads": 16, "max_num_elements": 96}
    assert count("original rank-2", **settings) == 54_931_590


def test_conservative_and_energy_only_models_are_the_same_size_and_smaller_than_direct_ones():
    settings = {"hidden_size": 512, "num_layers": 10, "atten_num_heads": 8}
    assert count("conservative", **settings) == count("energy", **settings) < count("direct", **settings)


def test_angle_scales_are_one_number_per_block():
    settings = {"hidden_size": 64, "num_layers": 5, "atten_num_heads": 8}
    with_angles, without = (count("direct", **settings, use_angle_embedding=use) for use in (True, False))
    assert with_angles - without == 5
