"""Normalisers under which a conservative model's forces would not be the derivative of its energy are refused."""

import pytest
from fairchem.core.modules.normalization.normalizer import create_normalizer

import escaip_fairchem  # noqa: F401 -- fairchem can be imported after it
from escaip_fairchem.errors import ConfigError
from escaip_fairchem.plugin.models import EScAIP
from escaip_fairchem.plugin.trainer.conservative import check_common_scale

TINY = {
    "hidden_size": 8,
    "num_layers": 1,
    "atten_num_heads": 2,
    "max_radius": 4.0,
    "max_neighbors": 6,
    "edge_distance_expansion_size": 8,
    "edge_distance_embedding_size": 8,
}


def model(**settings):
    return EScAIP(**TINY, **settings)


def normalizers(**scales):
    return {name: create_normalizer(mean=mean, stdev=stdev) for name, (mean, stdev) in scales.items()}


def test_equal_scales_pass():
    check_common_scale(model(direct_force=False), normalizers(energy=(-3.0, 2.5), forces=(0.0, 2.5)))
    check_common_scale(model(direct_force=False), {})


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"energy": (0.0, 2.5), "forces": (0.0, 1.0)}, "forces are scaled by 1 and energy by 2.5"),
        ({"energy": (0.0, 2.5)}, "forces are scaled by 1 and energy by 2.5"),
        ({"energy": (0.0, 2.5), "forces": (0.1, 2.5)}, "forces: the derivative of an energy is not shifted"),
    ],
)
def test_other_scales_are_refused(scales, message):
    with pytest.raises(ConfigError, match=message):
        check_common_scale(model(direct_force=False), normalizers(**scales))


def test_stress_counts_where_it_is_predicted():
    head = {"energy_forces": {"regress_stress": True}}
    scales = normalizers(energy=(0.0, 2.5), forces=(0.0, 2.5))
    check_common_scale(model(direct_force=False), scales)
    with pytest.raises(ConfigError, match="stress are scaled by 1 and energy by 2.5"):
        check_common_scale(model(direct_force=False, heads=head), scales)


def test_direct_models_may_scale_as_they_like():
    check_common_scale(model(), normalizers(energy=(0.0, 2.5), forces=(0.0, 1.0)))
