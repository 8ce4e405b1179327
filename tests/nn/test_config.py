"""Settings: strict about keys, types and ranges, with the nearest name in the message."""

from __future__ import annotations

import dataclasses
import warnings

import pytest

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn import BackboneConfig, parse_config
from escaip_fairchem.nn.config import OBSOLETE_KEYS, drop_obsolete_keys

REQUIRED = {"hidden_size": 16, "num_layers": 2, "atten_num_heads": 2, "max_radius": 6.0, "max_neighbors": 20}


def parse(**changes):
    return parse_config(BackboneConfig, {**REQUIRED, **changes}, "model.backbone")


def test_defaults_are_the_paper_s():
    config = parse()
    assert config.max_num_elements == 90
    assert (config.edge_distance_expansion_size, config.edge_distance_embedding_size) == (600, 512)
    assert (config.node_direction_expansion_size, config.node_direction_embedding_size) == (10, 64)
    assert (config.activation, config.normalization, config.distance_function) == ("gelu", "rmsnorm", "gaussian")
    assert config.energy_reduce == "mean"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("hiden_size", r"model\.backbone: unknown key 'hiden_size' \(did you mean 'hidden_size'\?\)"),
        ("xyzzy", r"model\.backbone: unknown key 'xyzzy' \(known: activation, atom_embedding_size, .*\)"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(key, message):
    with pytest.raises(ConfigError, match=message):
        parse(**{key: 1})


def test_missing_keys_are_all_named():
    with pytest.raises(ConfigError, match=r"model\.backbone: missing num_layers, max_radius"):
        parse_config(
            BackboneConfig,
            {key: value for key, value in REQUIRED.items() if key not in ("num_layers", "max_radius")},
            "model.backbone",
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "16"}, r"model\.backbone\.hidden_size: expected int, got '16'"),
        ({"hidden_size": 16.0}, r"hidden_size: expected int, got 16\.0"),
        ({"num_layers": True}, "num_layers: expected int, got True"),
        ({"max_radius": False}, "max_radius: expected float, got False"),
        ({"max_radius": None}, "max_radius: expected float, got None"),
        ({"direct_force": 1}, "direct_force: expected bool, got 1"),
        ({"activation": 3}, "activation: expected str, got 3"),
    ],
)
def test_wrong_types_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse(**changes)


def test_whole_numbers_are_floats_where_floats_are_meant():
    config = parse(max_radius=12, mlp_dropout=0)
    assert isinstance(config.max_radius, float)
    assert isinstance(config.mlp_dropout, float)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "gelo"}, r"activation: 'gelo' is unknown \(did you mean 'gelu'\?\)"),
        ({"normalization": "batchnorm"}, "normalization: 'batchnorm' is unknown"),
        ({"distance_function": "gauss"}, r"distance_function: 'gauss' is unknown \(did you mean 'gaussian'\?\)"),
        ({"atten_name": "mat"}, r"atten_name: 'mat' is unknown \(did you mean 'math'\?\)"),
        ({"energy_reduce": "max"}, "energy_reduce: 'max' is unknown"),
    ],
)
def test_choices(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse(**changes)


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size", "num_layers", "atten_num_heads", "max_radius", "max_neighbors", "max_num_elements",
        "edge_distance_embedding_size", "node_direction_embedding_size", "atom_embedding_size",
        "ffn_hidden_layer_multiplier", "readout_hidden_layer_multiplier", "output_hidden_layer_multiplier",
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [0, -3])
def test_sizes_are_positive(key, value):
    with pytest.raises(ConfigError, match=f"{key}: must be positive, got {value}"):
        parse(**{key: value})


@pytest.mark.parametrize("key", ["mlp_dropout", "atten_dropout", "stochastic_depth_prob"])
@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5])
def test_probabilities(key, value):
    with pytest.raises(ConfigError, match=rf"{key}: must be in \[0, 1\), got {value}"):
        parse(**{key: value})


@pytest.mark.parametrize("value", [-1, 0, 1])
def test_a_basis_needs_two_centres_to_have_a_spacing(value):
    with pytest.raises(ConfigError, match=f"edge_distance_expansion_size: must be at least 2, got {value}"):
        parse(edge_distance_expansion_size=value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_cutoff_is_finite(value):
    with pytest.raises(ConfigError, match=f"max_radius: must be a finite length in Å, got {value}"):
        parse(max_radius=value)


def test_heads_divide_the_width():
    with pytest.raises(ConfigError, match="hidden_size: 16 is not a multiple of atten_num_heads: 3"):
        parse(atten_num_heads=3)


@pytest.mark.parametrize("value", [0, 13])
def test_orders_are_those_that_spherical_harmonics_exist_for(value):
    with pytest.raises(ConfigError, match=f"node_direction_expansion_size: must be between 1 and 12.*got {value}"):
        parse(node_direction_expansion_size=value)


@pytest.mark.parametrize("name", ["scaled_dot_product", "memory_efficient", "flash"])
def test_conservative_models_need_attention_with_a_second_derivative(name):
    with pytest.raises(ConfigError, match=f"atten_name: '{name}' has no second derivative"):
        parse(direct_force=False, atten_name=name)
    parse(direct_force=True, atten_name=name)
    parse(direct_force=False, regress_forces=False, atten_name=name)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse().hidden_size = 3


def test_obsolete_keys_warn_once_each_and_are_left_out():
    section = {**REQUIRED, **dict.fromkeys(OBSOLETE_KEYS, 1)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert drop_obsolete_keys(section, "model.backbone") == REQUIRED
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == len(OBSOLETE_KEYS)
    for key, reason in OBSOLETE_KEYS.items():
        assert f"model.backbone.{key}: ignored, {reason}" in messages


def test_every_field_is_described():
    for field in dataclasses.fields(BackboneConfig):
        assert f"{field.name}: " in BackboneConfig.__doc__
