"""Every shipped configuration: fairchem reads it, its model has the size it should have, its keys are explained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from escaip_fairchem.plugin.info import inspect_config, read_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yml"))
PARAMETERS = {"oc20/escaip_2m.yml": 83_299_466, "demo/escaip_demo.yml": 384_770}
COMPLETE = [ROOT / "configs" / name for name in PARAMETERS]
ids = [str(path.relative_to(ROOT)) for path in CONFIGS]


def keys_of(section: Any, prefix: str = "") -> set[str]:
    if not isinstance(section, dict):
        return set()
    nested = {key for name, value in section.items() for key in keys_of(value, f"{prefix}{name}.")}
    return nested | {f"{prefix}{name}" for name in section}


def test_every_complete_configuration_is_listed_here():
    bases = {path for path in CONFIGS if path.name.startswith("base")}
    assert {*CONFIGS} - bases == {*COMPLETE}


@pytest.mark.parametrize("path", CONFIGS, ids=ids)
def test_fairchem_reads_it_without_conflicts(path):
    from fairchem.core.common.utils import load_config

    config, overwritten, conflicts = load_config(str(path))
    assert not conflicts
    assert not overwritten, "a key is set in an included file as well: say it once"
    assert "includes" not in config


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_model_has_the_documented_number_of_parameters(name):
    info = inspect_config(ROOT / "configs" / name)
    assert info.total == PARAMETERS[name]


@pytest.mark.parametrize("path", COMPLETE, ids=list(PARAMETERS))
def test_it_is_complete_and_holds_no_unknown_key(path, tmp_path):
    """The checks of ``fairchem main``, with data sets that exist."""
    from escaip_fairchem.plugin.launch.checks import check_config

    config = read_config(path)
    (tmp_path / "empty.lmdb").touch()
    (tmp_path / "metadata.npz").touch()
    for split in config["dataset"].values():
        split["src"] = str(tmp_path)
    config.update(mode="train", cpu=True, checkpoint=None)
    check_config(config)


def test_2m_has_the_settings_of_the_original():
    config = read_config(ROOT / "configs/oc20/escaip_2m.yml")
    backbone, optim = config["model"]["backbone"], config["optim"]
    assert (backbone["num_layers"], backbone["atten_num_heads"], backbone["hidden_size"]) == (10, 8, 512)
    assert (backbone["max_radius"], backbone["max_neighbors"], backbone["max_num_elements"]) == (12.0, 20, 90)
    assert (backbone["mlp_dropout"], backbone["atten_dropout"], backbone["stochastic_depth_prob"]) == (0.05, 0.1, 0.0)
    assert (optim["batch_size"], optim["lr_initial"], optim["max_epochs"]) == (12, 1e-4, 30)
    assert (optim["optimizer"], optim["optimizer_params"]) == ("AdamW", {"weight_decay": 0.01})
    assert (optim["clip_grad_norm"], optim["ema_decay"]) == (10, 0.999)
    assert optim["scheduler_params"] == {
        "lambda_type": "cosine",
        "warmup_factor": 0.2,
        "warmup_epochs": 0.1,
        "lr_min_factor": 0.5,
    }
    assert config["loss_functions"] == [
        {"energy": {"fn": "mae", "coefficient": 4}},
        {"forces": {"fn": "l2mae", "coefficient": 100}},
    ]
    normalizer = config["dataset"]["train"]["transforms"]["normalizer"]
    assert normalizer["energy"] == {"mean": -0.7554450631141663, "stdev": 2.887317180633545}
    assert normalizer["forces"] == {"mean": 0.0, "stdev": 2.887317180633545}


LEAF = re.compile(r"^ *(- )?[a-z_0-9]+: *[^ #{].*|^ *(- )?[a-z_0-9]+: *\{")


def test_every_key_is_explained_where_it_is_first_defined():
    seen: set[str] = set()
    for path in [ROOT / "configs/oc20/base.yml", ROOT / "configs/oc20/escaip_2m.yml"]:
        bare = [line for line in path.read_text().splitlines() if LEAF.match(line) and "#" not in line]
        assert not bare
        new = keys_of(yaml.safe_load(path.read_text())) - {"includes"}
        leaves = {key for key in new if not any(other.startswith(f"{key}.") for other in new)}
        assert not leaves & seen
        seen |= leaves


def test_paths_are_relative_and_nothing_calls_the_network():
    for path in COMPLETE:
        config = read_config(path)
        assert config["logger"] == "tensorboard"
        for split in config["dataset"].values():
            assert split["src"].startswith("data/")
