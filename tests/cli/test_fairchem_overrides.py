"""Settings given as key=value."""

from __future__ import annotations

import pytest

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.plugin.launch.overrides import apply_overrides, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-1", -1),
        ("1e-4", 1e-4),
        ("True", True),
        ("false", False),
        ("null", None),
        ("None", None),
        ("adam", "adam"),
        ("", ""),
        ("data/a=b.lmdb", "data/a=b.lmdb"),
        ("2020-01-01", "2020-01-01"),
        ("[1, 2]", [1, 2]),
        ("[a, b]", ["a", "b"]),
        ("{fn: mae, coefficient: 1}", {"fn": "mae", "coefficient": 1}),
        ("{'a': 1}", {"a": 1}),
        ("'quoted'", "quoted"),
    ],
)
def test_values(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_brackets_that_do_not_close():
    with pytest.raises(ConfigError, match=r"cannot read '\[1, 2'"):
        parse_value("[1, 2")


def configured() -> dict:
    return {
        "model": {"name": "schnet", "cutoff": 5.0, "backbone": None},
        "loss_functions": [{"energy": {"fn": "mae", "coefficient": 1}}, {"forces": {"coefficient": 2}}],
    }


def test_settings_are_put_where_they_belong():
    config = configured()
    apply_overrides(
        config,
        [
            "model.cutoff=6",
            "--dataset.train.src=a=b",
            "model.backbone.hidden_size=64",
            "loss_functions.energy.coefficient=5",
            "loss_functions.1.forces.coefficient=7",
            "trainer=ocp",
        ],
    )
    assert config == {
        "trainer": "ocp",
        "model": {"name": "schnet", "cutoff": 6, "backbone": {"hidden_size": 64}},
        "dataset": {"train": {"src": "a=b"}},
        "loss_functions": [{"energy": {"fn": "mae", "coefficient": 5}}, {"forces": {"coefficient": 7}}],
    }


def test_an_element_of_a_list_can_be_replaced():
    config = configured()
    apply_overrides(config, ["loss_functions.0={energy: {fn: mse}}"])
    assert config["loss_functions"][0] == {"energy": {"fn": "mse"}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr_initial", "write key=value"),
        ("--optim.lr_initial", "write key=value"),
        ("=3", "write key=value"),
        ("a..b=3", "write key=value"),
        ("model.cutoff.x=3", "which has no keys"),
        ("model.name.x.y=3", "which has no keys"),
        ("loss_functions.2.x=3", "neither a position"),
        ("loss_functions.energie.fn=mse", "did you mean 'energy'"),
    ],
)
def test_what_cannot_be_put_anywhere(override, message):
    config = configured()
    with pytest.raises(ConfigError, match=message):
        apply_overrides(config, [override])
