"""Every shipped configuration: fairchem reads it, its model has the size it should have, its keys are explained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from escaip_fairchem.cli.config_files import is_configuration
from escaip_fairchem.data import defaults
from escaip_fairchem.plugin.info import inspect_config, read_config

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs"
CONFIGS = [path for path in sorted(FOLDER.rglob("*.yml")) if is_configuration(path)]
COMPLETE = [path for path in CONFIGS if not path.name.startswith("base") and FOLDER / "base" not in path.parents]
SMALL, MEDIUM, LARGE = 83_299_466, 146_207_624, 311_842_954
SCALING = "oc20/equiformer_v2_scaling/equiformer_v2_"
MOLECULES = {
    "ac_ala3_nhme": 48,
    "dha": 48,
    "stachyose": 32,
    "at_at": 32,
    "at_at_cg_cg": 16,
    "buckyball_catcher": 8,
    "double_walled_nanotube": 4,
}
"""MD22's batch sizes; the largest and the smallest are the original's."""
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
    **{f"md22/escaip_md22_{molecule}": 52_819_590 for molecule in MOLECULES},
}
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


DATA = {"demo": "demo", "oc20": "2m|1m|500k|all_md", "oc22": "oc22", "spice": "spice", "mptrj": "mptrj", "md22": "md22"}
VARIANTS = ("small", "medium", "large", "conservative", "finetune", *MOLECULES)
ABLATION = re.compile(r"equiformer_v2_l[02468](_(boo|sc|at|more_at|both))?(_(25|50|75)_percent)?")


@complete
def test_it_is_called_by_the_scheme(path):
    """``<model>_<data>[_<size or variant>][_<share>_percent]``; the ablation's data are always the same."""
    stated = comments_at_the_top(FOLDER / "base/run.yml")
    assert "<model>_<data>[_<size or variant>][_<share>_percent]" in stated
    if path.parent.name == "equiformer_v2_scaling":
        assert ABLATION.fullmatch(path.stem)
        return
    data = DATA[path.relative_to(FOLDER).parts[0]]
    scheme = rf"(escaip|equiformer_v2)_({data})(_({'|'.join(VARIANTS)}))?(_(25|50|75)_percent)?"
    assert re.fullmatch(scheme, path.stem)


def test_none_repeats_a_block_of_another():
    """Four settings in a row that two files share belong into a file that both include.

    A list, such as loss_functions, counts as one setting: includes join keys alone. The demonstration's configuration
    stands by itself, so that it can be copied.
    """
    blocks: dict[str, Path] = {}
    for path in CONFIGS:
        if path.parent.name == "demo":
            continue
        lines = path.read_text().splitlines()
        own = [
            (key, [text for row in rows if row < len(lines) if (text := lines[row].partition("#")[0].strip())])
            for key, rows in keys_and_lines(yaml.compose(path.read_text()))
            if key != "includes"
        ]
        for start in range(len(own) - 3):
            block = str(own[start : start + 4])
            assert block not in blocks, f"{path} repeats of {blocks[block]}: {block}"
            blocks[block] = path
    assert len(blocks) > 50


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
        *(
            (f"md22/escaip_md22_{molecule}", (batch, 4e-5, 0.5, 10000 / 16, 0.05, [("energy", 1), ("forces", 100)]))
            for molecule, batch in MOLECULES.items()
        ),
        # Not published, but chosen after what is:
        ("spice/escaip_spice_conservative", (64, 1e-5, 0.5, 30, 0.05, [("energy", 4), ("forces", 100)])),
        ("oc22/escaip_oc22", (16, 1e-4, 0.1, 12, 0.1, [("energy", 4), ("forces", 100)])),
        ("oc22/equiformer_v2_oc22", (4, 2e-4, 0.01, 6, None, [("energy", 4), ("forces", 100)])),
    ],
)
def test_trainings_have_the_published_settings(name, expected):
    assert settings(name) == expected
    assert read_config(path_of(name))["optim"]["eval_batch_size"] == expected[0]
    assert functions(name) == ["mae", "l2mae"]


def functions(name: str) -> list[str]:
    """Names of the loss functions."""
    return [entry["fn"] for term in read_config(path_of(name))["loss_functions"] for entry in term.values()]


# L, sphere channels, hidden channels of attention, heads, alpha, value, feed-forward; structures per GPU.
ABLATIONS = {
    "l2": (2, 128, 64, 8, 64, 16, 128, 4),
    "l4": (4, 128, 64, 8, 64, 16, 128, 4),
    "l6": (6, 128, 64, 8, 64, 16, 128, 3),
    "l8": (8, 128, 64, 8, 64, 16, 128, 4),
    "l2_sc": (2, 694, 64, 8, 64, 16, 128, 4),
    "l2_at": (2, 128, 160, 20, 140, 40, 280, 4),
    "l2_more_at": (2, 96, 154, 22, 154, 44, 308, 4),
    "l2_both": (2, 224, 128, 16, 128, 32, 224, 4),
    "l4_sc": (4, 274, 64, 8, 64, 16, 128, 4),
    "l4_at": (4, 128, 92, 14, 84, 21, 168, 4),
    "l4_more_at": (4, 96, 96, 14, 98, 28, 182, 4),
    "l4_both": (4, 156, 84, 12, 84, 24, 156, 4),
    "l0_boo": (0, 704, 352, 16, 64, 44, 704, 4),  # not published
}
COLUMNS = (
    "sphere_channels", "attn_hidden_channels", "num_heads", "attn_alpha_channels", "attn_value_channels",
    "ffn_hidden_channels",
)  # fmt: skip


@pytest.mark.parametrize("model", ABLATIONS)
def test_the_ablation_has_the_published_sizes(model):
    name = f"{SCALING}{model}"
    backbone = read_config(path_of(name))["model"]["backbone"]
    degree, *columns, batch = ABLATIONS[model]
    assert backbone["lmax_list"] == [degree]
    assert [backbone[key] for key in COLUMNS] == columns
    assert backbone["num_layers"] == 12
    assert settings(name) == (batch, 4e-4, 0.01, 30, None, [("energy", 2), ("forces", 100)])
    assert functions(name) == ["mae", "l2mae"]


def test_the_ablation_s_table_is_that_of_the_document():
    rows = [line.strip("| ").split(" | ") for line in (ROOT / "docs/ablations.md").read_text().splitlines()]
    stated = {row[0]: row[1:] for row in rows if row[0].startswith("equiformer_v2_l")}
    assert stated == {
        f"equiformer_v2_{model}": [*map(str, columns[:-1]), f"{PARAMETERS[SCALING + model]:,}"]
        for model, columns in ABLATIONS.items()
    }


EQUIFORMER_V2 = {
    "grid_resolution": 18, "num_sphere_samples": 128, "edge_channels": 128, "norm_type": "layer_norm_sh",
    "distance_function": "gaussian", "use_atom_edge_embedding": True, "share_atom_edge_embedding": False,
    "attn_activation": "silu", "ffn_activation": "silu", "use_s2_act_attn": False, "use_attn_renorm": True,
    "use_gate_act": False, "use_grid_mlp": True, "use_sep_s2_act": True, "alpha_drop": 0.1, "drop_path_rate": 0.05,
    "proj_drop": 0.0, "weight_init": "uniform", "max_radius": 12.0, "max_neighbors": 20, "regress_forces": True,
}  # fmt: skip


@pytest.mark.parametrize("path", [path for path in COMPLETE if path.name.startswith("equiformer")], ids=name_of)
def test_all_trainings_of_equiformer_v2_have_its_published_settings(path):
    config = read_config(path)
    backbone, optim = config["model"]["backbone"], config["optim"]
    assert {key: backbone[key] for key in EQUIFORMER_V2} == EQUIFORMER_V2
    assert backbone["mmax_list"] == [min(2, backbone["lmax_list"][0])]
    assert (optim["optimizer"], optim["optimizer_params"]) == ("AdamW", {"weight_decay": 1e-3})
    assert (optim["clip_grad_norm"], optim["ema_decay"]) == (100, 0.999)
    schedule = optim["scheduler_params"]
    assert (schedule["lambda_type"], schedule["warmup_factor"], schedule["warmup_epochs"]) == ("cosine", 0.2, 0.1)
    if "oc22" in path.name:
        assert (backbone["num_layers"], backbone["lmax_list"]) == (18, [6])
        assert [backbone[key] for key in COLUMNS] == [128, 64, 8, 64, 16, 128]


def test_mptrj_has_the_published_settings():
    batch, rate, end, epochs, dropout, weights = settings("mptrj/escaip_mptrj")
    assert (batch, rate, end, epochs, dropout) == (4, 1e-5, 0.5, 100, 0.05)
    later = settings("mptrj/escaip_mptrj_finetune")
    assert later[:5] == (4, 1e-5, 0.5, 150, 0.05)
    parts = [("forces", 20), ("forces", 5), ("stress_isotropic", 5), ("stress_anisotropic", 5)]
    assert weights == [("energy", 5), *parts]
    assert later[5] == [("energy", 20), *parts]
    for name in ("escaip_mptrj", "escaip_mptrj_finetune"):
        config = read_config(path_of(f"mptrj/{name}"))
        assert functions(f"mptrj/{name}") == ["per_atom_mae", "l2mae", "escaip_force_cosine", "mae", "mae"]
        assert config["optim"]["scheduler_params"]["epochs"] == 150  # one schedule over both parts
        assert config["model"]["backbone"]["max_num_elements"] == 96
        assert config["model"]["heads"]["stress"] == {"module": "escaip_fairchem.EScAIPRank2Head", "equivariant": False}


def test_conservative_models_have_the_settings_of_direct_ones_but_for_what_derivatives_need():
    assert settings("mptrj/escaip_mptrj_conservative") == (
        4, 1e-5, 0.5, 150, 0.05, [("energy", 5), ("forces", 20), ("forces", 5), ("stress", 10)],
    )  # fmt: skip
    assert functions("mptrj/escaip_mptrj_conservative") == ["per_atom_mae", "l2mae", "escaip_force_cosine", "mae"]
    for data in ("spice", "mptrj"):
        direct, derived = (read_config(path_of(f"{data}/escaip_{data}{end}")) for end in ("", "_conservative"))
        head = {"module": "escaip_fairchem.EScAIPConservativeHead"} | (
            {"regress_stress": True} if data == "mptrj" else {}
        )
        assert derived["model"]["heads"] == {"energy_forces": head}
        backbones = [config["model"]["backbone"] for config in (direct, derived)]
        kinds = [(backbone.pop("direct_force"), backbone.pop("energy_reduce")) for backbone in backbones]
        assert kinds == [(True, "mean"), (False, "sum")]
        assert backbones[0] == backbones[1]
        derived["optim"]["max_epochs"] = direct["optim"]["max_epochs"]  # MPtrj's is trained in one part
        assert direct["optim"] == derived["optim"]


def test_sizes_are_the_published_ones():
    sizes = {
        "oc20/escaip_2m": (10, 8, 512),
        "oc20/escaip_all_md_small": (10, 8, 512),
        "oc20/escaip_all_md_medium": (8, 12, 768),
        "oc20/escaip_all_md_large": (10, 16, 1024),
        "oc22/escaip_oc22": (10, 8, 512),
        "spice/escaip_spice": (6, 16, 256),  # by the name of the original's file
        "mptrj/escaip_mptrj": (6, 16, 512),
        **{f"md22/escaip_md22_{molecule}": (6, 8, 512) for molecule in MOLECULES},
    }
    keys = ("num_layers", "atten_num_heads", "hidden_size")
    found = {name: read_config(path_of(name))["model"]["backbone"] for name in sizes}
    assert {name: tuple(backbone[key] for key in keys) for name, backbone in found.items()} == sizes


def test_data_are_read_as_published():
    train = read_config(path_of("oc22/escaip_oc22"))["dataset"]["train"]
    assert (train["format"], train["key_mapping"]) == ("oc22_lmdb", {"y": "energy", "force": "forces"})
    assert list(train["transforms"]["element_references"]) == ["energy"]
    for molecule in MOLECULES:
        train = read_config(path_of(f"md22/escaip_md22_{molecule}"))["dataset"]["train"]
        assert train["rotations"]["copies"] == 16


BASES = {"oc20": 8, "oc22": 8, "spice": 1, "mptrj": 8, "md22": 1}


@pytest.mark.parametrize("benchmark", BASES)
def test_bases_say_how_many_gpus_are_assumed_and_what_that_makes(benchmark):
    """Batch sizes are per GPU, so that a rate means nothing without their number, which the paper does not tell."""
    stated = " ".join(comments_at_the_top(FOLDER / benchmark / "base.yml").replace("#", "").split())
    (assumed,) = re.findall(r"Assumed: (.*?run\.yml)", stated)
    gpus = {"escaip": int(re.match(r"(\d+) GPUs?\b", assumed)[1])}
    assert gpus["escaip"] == BASES[benchmark]
    others = re.search(r"(\d+) GPUs for EquiformerV2", assumed)
    gpus["equiformer"] = int(others[1]) if others else 0
    totals = set()
    for path in COMPLETE:
        if path.relative_to(FOLDER).parts[0] == benchmark:
            totals.add(gpus[path.stem.split("_")[0]] * read_config(path)["optim"]["batch_size"])
    numbers = {int(text) for text in re.findall(r"(?<!= )\b\d+\b", assumed)}
    assert numbers == totals | (set(gpus.values()) - {0})


def test_the_number_of_gpus_is_assumed_in_one_place():
    stating = {path for path in CONFIGS if re.search(r"Assumed: \d+ GPU", path.read_text())}
    assert stating == {FOLDER / benchmark / "base.yml" for benchmark in BASES}


@pytest.mark.parametrize(
    ("benchmark", "split"),
    [("spice", defaults.SPICE_SPLIT), ("mptrj", defaults.MPTRJ_SPLIT), ("md22", defaults.SPLIT)],
)
def test_bases_say_how_their_data_are_divided(benchmark, split):
    *most, last = [f"{100 * part:g}" for part in split]
    stated = " ".join(comments_at_the_top(FOLDER / benchmark / "base.yml").replace("#", "").split())
    assert f"{', '.join(most)} and {last} %" in stated


def test_files_say_what_was_chosen_here():
    said = {
        "oc20/base": "`at_most`",
        "oc22/base": "`at_most`",
        "mptrj/base": "`at_most`",
        "mptrj/base_direct": "`equivariant: false`",
        "md22/base": "625 epochs",
        "base/equiformer_v2": "not by fairchem's `equiformerv2_forces`",
    }
    for name, words in said.items():
        assert words in " ".join(comments_at_the_top(path_of(name)).replace("#", "").split()), name
    assert "corrections" in comments_at_the_top(path_of("mptrj/base"))
    assert defaults.MPTRJ_ENERGIES[0] == "corrected"
    assert read_config(path_of("md22/escaip_md22_dha"))["optim"]["max_epochs"] == 625


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
