"""Every shipped configuration: fairchem reads it, its model has the size it should have, its keys are explained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from escaip_fairchem.plugin.info import inspect_config, read_config

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs"
CONFIGS = sorted(FOLDER.rglob("*.yml"))
COMPLETE = [path for path in CONFIGS if not path.name.startswith("base") and FOLDER / "base" not in path.parents]
SMALL, MEDIUM, LARGE = 83_299_466, 146_207_624, 311_842_954
SCALING = "oc20/equiformer_v2_scaling/equiformer_v2_"
PARAMETERS = {
    "demo/escaip_demo": 384_770,
    "oc20/escaip_2m": SMALL,
    **{
        f"oc20/{folder}escaip_{data}_{size}": count
        for folder, names in (("", ["all_md"]), ("scaling/", ["500k", "1m", "2m"]))
        for data in names
        for size, count in (("small", SMALL), ("medium", MEDIUM), ("large", LARGE))
    },
    # The paper's figure 2, as instantiated
    f"{SCALING}l2": 19_268_482,
    f"{SCALING}l4": 44_826_882,
    f"{SCALING}l6": 83_164_802,
    f"{SCALING}l8": 134_282_242,
    f"{SCALING}l2_sc": 83_306_288,
    f"{SCALING}l2_at": 86_059_602,
    f"{SCALING}l2_more_at": 84_529_594,
    f"{SCALING}l2_both": 85_701_826,
    f"{SCALING}l4_sc": 83_689_308,
    f"{SCALING}l4_at": 84_191_190,
    f"{SCALING}l4_more_at": 85_070_436,
    f"{SCALING}l4_both": 86_865_986,
    f"{SCALING}l0_boo": 82_136_065,
    "oc22/escaip_oc22": SMALL,
    "oc22/equiformer_v2_oc22": 121_526_402,
    "spice/escaip_spice": 15_775_878,
    "spice/escaip_spice_conservative": 11_366_534,
    "mptrj/escaip_mptrj": 54_931_590,
    "mptrj/escaip_mptrj_finetune": 54_931_590,
    "mptrj/escaip_mptrj_conservative": 35_229_830,
    **{
        f"md22/escaip_md22_{molecule}": 52_819_590
        for molecule in (
            "ac_ala3_nhme", "dha", "stachyose", "at_at", "at_at_cg_cg", "buckyball_catcher", "double_walled_nanotube",
        )
    },
}  # fmt: skip
SHARES = [
    f"{SCALING}{model}_{percent}_percent"
    for model in ("l2_both", "l4_both", "l6", "l2_more_at", "l4_more_at")
    for percent in (25, 50, 75)
]


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).with_suffix("").as_posix()


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.yml"


complete = pytest.mark.parametrize("path", COMPLETE, ids=name_of)


def test_every_complete_configuration_is_listed_here():
    assert {name_of(path) for path in COMPLETE} == {*PARAMETERS, *SHARES}


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_fairchem_reads_it_without_conflicts(path):
    from fairchem.core.common.utils import load_config

    config, overwritten, conflicts = load_config(str(path))
    assert not conflicts
    assert not overwritten, "a key is set in an included file as well: say it once"
    assert "includes" not in config


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_model_has_the_documented_number_of_parameters(name):
    path = path_of(name)
    assert inspect_config(path).total == PARAMETERS[name]
    stated = {int(text.replace(",", "")) for text in re.findall(r"\d{1,3}(?:,\d{3})+", comments_at_the_top(path))}
    assert not {count for count in stated if count > 5_000_000} - {PARAMETERS[name]}


def comments_at_the_top(path: Path) -> str:
    lines = path.read_text().splitlines()
    return "\n".join(lines[: next(row for row, line in enumerate(lines) if not line.startswith("#"))])


@pytest.mark.parametrize("name", SHARES)
def test_the_data_size_study_changes_the_share_of_the_data_alone(name):
    model, percent = re.fullmatch(r"(.*)_(\d\d)_percent", name).groups()
    share, whole = read_config(path_of(name)), read_config(path_of(model))
    assert share["dataset"]["train"].pop("fraction") == int(percent) / 100
    assert share == whole


@pytest.mark.parametrize(("data", "fraction"), [("500k", 0.25), ("1m", 0.5), ("2m", None)])
@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_the_scaling_study_changes_size_and_share_alone(size, data, fraction):
    config = read_config(path_of(f"oc20/scaling/escaip_{data}_{size}"))
    assert config["dataset"]["train"].pop("fraction", None) == fraction
    reference = read_config(path_of("oc20/escaip_2m"))
    for key in ("num_layers", "atten_num_heads", "hidden_size"):
        del config["model"]["backbone"][key], reference["model"]["backbone"][key]
    assert config == reference


@complete
def test_it_is_complete_and_holds_no_unknown_key(path, tmp_path):
    """The checks of ``fairchem main``, with data sets that exist."""
    from escaip_fairchem.plugin.launch.checks import check_config

    config = read_config(path)
    (tmp_path / "empty.lmdb").touch()
    (tmp_path / "empty.aselmdb").touch()
    (tmp_path / "metadata.npz").touch()
    for split in config["dataset"].values():
        split["src"] = str(tmp_path)
    config.update(mode="train", cpu=True, checkpoint=None)
    check_config(config)


def settings(name: str) -> tuple[Any, ...]:
    """What PAPER-like tables list: batch, rate, its end, epochs, dropout, loss weights."""
    config = read_config(path_of(name))
    optim, backbone = config["optim"], config["model"]["backbone"]
    weights = [(target, entry["coefficient"]) for term in config["loss_functions"] for target, entry in term.items()]
    schedule = optim["scheduler_params"]
    return (
        optim["batch_size"], optim["lr_initial"], schedule["lr_min_factor"], optim["max_epochs"],
        backbone.get("mlp_dropout"), weights,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("oc20/escaip_2m", (12, 1e-4, 0.5, 30, 0.05, [("energy", 4), ("forces", 100)])),
        ("oc20/escaip_all_md_small", (16, 1e-4, 0.1, 12, 0.1, [("energy", 2), ("forces", 100)])),
        ("oc20/escaip_all_md_medium", (12, 1e-4, 0.1, 12, 0.1, [("energy", 2), ("forces", 100)])),
        ("oc20/escaip_all_md_large", (8, 1e-4, 0.1, 6, 0.1, [("energy", 2), ("forces", 100)])),
        ("spice/escaip_spice", (64, 1e-5, 0.5, 30, 0.05, [("energy", 4), ("forces", 100)])),
        ("md22/escaip_md22_ac_ala3_nhme", (48, 4e-5, 0.5, 10000 / 16, 0.05, [("energy", 1), ("forces", 100)])),
        ("md22/escaip_md22_double_walled_nanotube", (4, 4e-5, 0.5, 10000 / 16, 0.05, [("energy", 1), ("forces", 100)])),
        (f"{SCALING}l6", (3, 4e-4, 0.01, 30, None, [("energy", 2), ("forces", 100)])),
        (f"{SCALING}l8", (4, 4e-4, 0.01, 30, None, [("energy", 2), ("forces", 100)])),
    ],
)
def test_trainings_have_the_published_settings(name, expected):
    assert settings(name) == expected


def test_mptrj_has_the_published_settings():
    batch, rate, end, epochs, dropout, weights = settings("mptrj/escaip_mptrj")
    assert (batch, rate, end, epochs, dropout) == (4, 1e-5, 0.5, 100, 0.05)
    parts = {"energy": 5, "stress_isotropic": 5, "stress_anisotropic": 5}
    assert {target: weight for target, weight in weights if target != "forces"} == parts
    assert [weight for target, weight in weights if target == "forces"] == [20, 5]
    later = settings("mptrj/escaip_mptrj_finetune")
    assert later[3] == 150
    assert dict(later[5])["energy"] > 5
    # One schedule over both parts.
    ends = {
        read_config(path_of(f"mptrj/{name}"))["optim"]["scheduler_params"]["epochs"]
        for name in ("escaip_mptrj", "escaip_mptrj_finetune")
    }
    assert ends == {150}


@pytest.mark.parametrize(
    "path", [path for path in COMPLETE if path.name.startswith("escaip") and "demo" not in path.name]
)
def test_all_trainings_of_escaip_have_what_the_original_has_in_common(path):
    config = read_config(path)
    backbone, optim = config["model"]["backbone"], config["optim"]
    assert (backbone["edge_distance_expansion_size"], backbone["edge_distance_embedding_size"]) == (600, 512)
    assert (backbone["node_direction_expansion_size"], backbone["node_direction_embedding_size"]) == (10, 64)
    assert (backbone["atom_embedding_size"], backbone["max_neighbors"]) == (128, 20)
    assert backbone["max_radius"] == (6.0 if "md22" in path.name else 12.0)
    assert (backbone["atten_dropout"], backbone["stochastic_depth_prob"]) == (0.1, 0.0)
    assert (backbone["activation"], backbone["normalization"]) == ("gelu", "rmsnorm")
    assert {backbone[f"{part}_hidden_layer_multiplier"] for part in ("ffn", "readout", "output")} == {2}
    assert (optim["optimizer"], optim["optimizer_params"]) == ("AdamW", {"weight_decay": 0.01})
    assert (optim["clip_grad_norm"], optim["ema_decay"]) == (10, 0.999)
    schedule = optim["scheduler_params"]
    assert (schedule["lambda_type"], schedule["warmup_factor"], schedule["warmup_epochs"]) == ("cosine", 0.2, 0.1)


def test_normalizers_are_the_published_ones():
    normalizers = {
        name: read_config(path_of(name))["dataset"]["train"]["transforms"]["normalizer"]
        for name in ("oc20/escaip_2m", "oc22/escaip_oc22", "spice/escaip_spice")
    }
    assert normalizers["oc20/escaip_2m"] == {
        "energy": {"mean": -0.7554450631141663, "stdev": 2.887317180633545},
        "forces": {"mean": 0.0, "stdev": 2.887317180633545},
    }
    assert normalizers["oc22/escaip_oc22"] == {
        "energy": {"mean": 0.0, "stdev": 25.119809935106424},
        "forces": {"mean": 0.0, "stdev": 0.14759646356105804},
    }
    assert normalizers["spice/escaip_spice"] == {
        "energy": {"mean": -140.80356519035792, "stdev": 69.1667169308504},
        "forces": {"mean": 0.0, "stdev": 1.0757999822144813},
    }


@pytest.mark.parametrize("folder", ["spice", "md22"])
def test_molecules_are_not_periodic(folder):
    for path in (FOLDER / folder).glob("escaip*.yml"):
        assert read_config(path)["model"]["backbone"]["use_pbc"] is False


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name.endswith("conservative")])
def test_conservative_models_have_one_scale(name):
    """Forces and stress are derivatives of the energy: other scales would be no energy's."""
    normalizer = read_config(path_of(name))["dataset"]["train"]["transforms"]["normalizer"]
    if "file" in normalizer["energy"]:
        assert all("conservative_" in entry["file"] for entry in normalizer.values())
    else:
        assert len({entry["stdev"] for entry in normalizer.values()}) == 1


def keys_and_lines(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, range]]:
    """Every key that holds no further keys in lines of their own, with the lines of its value."""
    assert isinstance(node, yaml.MappingNode)
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from keys_and_lines(value, f"{name}.")
        else:
            yield name, range(key.start_mark.line, max(value.end_mark.line, key.start_mark.line + 1))


def test_every_key_is_explained_somewhere():
    explained: set[str] = set()
    used: dict[str, Path] = {}
    for path in CONFIGS:
        if path.parent.name == "demo":
            continue
        lines = path.read_text().splitlines()
        for key, rows in keys_and_lines(yaml.compose(path.read_text())):
            used[key] = path
            if any("#" in lines[row] for row in rows if row < len(lines)):
                explained.add(key)
    missing = {key: str(path) for key, path in used.items() if key not in explained and key != "includes"}
    assert not missing


def test_every_file_says_what_it_is():
    for path in CONFIGS:
        first = path.read_text().splitlines()[0]
        assert first.startswith("# "), path
        assert first.endswith((".", ",", ":")) or len(first) > 60, path


@complete
def test_paths_are_relative_and_nothing_calls_the_network(path):
    config = read_config(path)
    assert config["logger"] == "tensorboard"
    for split in config["dataset"].values():
        assert split["src"].startswith("data/")
