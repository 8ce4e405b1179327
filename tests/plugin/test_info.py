"""What ``escaip info`` says: parameters by part, costs per atom, the resolved configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from escaip_fairchem.cli import main as command
from escaip_fairchem.cli.config_files import is_configuration
from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn import Backbone, build_graph
from escaip_fairchem.nn.costs import count_costs
from escaip_fairchem.plugin import info
from escaip_fairchem.plugin.info import inspect_config
from escaip_fairchem.testing import batch, structures, tiny_predictor

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_paper_s_configuration(capsys):
    assert command.main(["info", str(CONFIGS / "oc20/escaip_2m.yml")]) == 0
    said = capsys.readouterr().out
    assert "83,299,466 parameters" in said
    assert "input block" in said
    assert "2.25 GFLOP per atom" in said  # 457 GFLOP were counted for 199 atoms of the original
    assert "max_radius: 12" in said
    assert command.main(["info", "--no-config", str(CONFIGS / "oc20/escaip_2m.yml")]) == 0
    assert "max_radius" not in capsys.readouterr().out


def test_costs_are_those_of_a_real_forward_pass():
    copper = batch([structures.copper()], torch.float32)  # more than four neighbours: all slots are in use
    predictor = tiny_predictor("direct", dtype=torch.float32, max_neighbors=4, execution="plain")
    graph = build_graph(copper, predictor.neighborhoods(copper))
    assert graph.edge_mask_NK.all()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        predictor.backbone(graph)
    with torch.device("meta"):
        costs = count_costs(Backbone(predictor.config, has_edge_stream=True), predictor.config)
    assert costs.forward_flops == pytest.approx(counter.get_total_flops() / len(copper.numbers_N))
    assert costs.readout_bytes == 4 * (1 + 4) * 3 * 16  # float32, node and slots, depths, width
    assert costs.saved_bytes > costs.readout_bytes


def test_models_of_others_have_parameters_and_no_costs(tmp_path):
    path = tmp_path / "schnet.yml"
    path.write_text(
        "model: {name: schnet, hidden_channels: 8, num_filters: 8, num_interactions: 1, num_gaussians: 4}\n"
    )
    schnet = inspect_config(path)
    assert schnet.costs is None
    assert schnet.total > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {}", "no section 'model:'"),
        ("includes: [none.yml]\nmodel: {name: escaip}", "cannot be read as a configuration"),
        ("model: {name: escaip, hiden_size: 8}", "did you mean 'hidden_size'"),
        ("model: {name: escape}", "model.name: Failed to find the model 'escape'"),
        ("model: {name: hydra, backbone: {num_layers: 2}}", r"no hydra can be made .* \(KeyError\('model'\)\)"),
        ("model: {name: schnet, hidden_chanels: 8}", "TypeError.*unexpected keyword argument 'hidden_chanels'"),
        (
            "model: {name: hydra, backbone: {model: equiformer_v2_backbone, weight_init: even}, heads: {}}",
            r"AssertionError\(\)",
        ),
        ("model: {name: hydra, heads: {}}", "RuntimeError.*Backbone not specified"),
    ],
)
def test_files_that_are_no_configuration(text, message, tmp_path):
    path = tmp_path / "broken.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        inspect_config(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_part_of_others_alone_is_an_error_and_no_traceback(capsys):
    assert command.main(["info", str(CONFIGS / "base/equiformer_v2.yml")]) == ConfigError.EXIT_STATUS
    said = capsys.readouterr().err
    assert "base/equiformer_v2.yml: no hydra can be made of its section 'model:'" in said
    assert "Traceback" not in said


def test_the_table_lists_every_complete_configuration(capsys):
    assert (
        command.main(["info", "--table", str(CONFIGS / "mptrj"), str(CONFIGS / "oc20/scaling/escaip_500k_small.yml")])
        == 0
    )
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0].split() == ["configuration", "trained", "on", "parameters", "batch", "rate", "epochs"]
    (mptrj,) = [line.split() for line in lines if "escaip_mptrj.yml" in line]
    assert mptrj[1:] == ["data/mptrj/train", "54,931,590", "4", "1e-05", "100"]
    (share,) = [line for line in lines if "escaip_500k_small" in line]
    assert "data/oc20/s2ef/2M/train (25 %)" in share
    assert "83,299,466" in share
    assert "parts of other files:" in lines[-1]
    assert "base_direct.yml" in lines[-1]


def test_several_files_make_a_table_without_parts_of_others(capsys):
    """Bases without a class of the backbone or without a model cannot be built; only one file is told in full."""
    parts = ["base/equiformer_v2.yml", "base/sizes/small.yml", "mptrj/base.yml", "mptrj/base_direct.yml"]
    names = [*parts[:2], "spice/escaip_spice.yml", *parts[2:], "mptrj/escaip_mptrj.yml"]
    assert command.main(["info", *(str(CONFIGS / name) for name in names)]) == 0
    *rows, empty, left_out = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == [
        "configuration", str(CONFIGS / "spice/escaip_spice.yml"), str(CONFIGS / "mptrj/escaip_mptrj.yml"),
    ]  # fmt: skip
    assert "15,775,878" in rows[1]
    assert empty == ""
    listed = ", ".join(str(CONFIGS / part) for part in parts)
    assert left_out == f"left out, because they are parts of other files: {listed}"


def test_all_files_at_once(capsys, monkeypatch):
    """``escaip info configs/**/*.yml``, as the shell writes it out. Stand-ins for models save minutes."""
    built = []
    monkeypatch.setattr(info, "build_model", lambda section, path: built.append(section) or torch.nn.Linear(2, 1))
    files = [path for path in sorted(CONFIGS.glob("**/*.yml")) if is_configuration(path)]
    assert command.main(["info", *map(str, files)]) == 0
    *rows, _, left_out = capsys.readouterr().out.splitlines()
    listed = [Path(row.split()[0]) for row in rows[1:]]
    parts = [Path(path) for path in left_out.partition("files: ")[2].split(", ")]
    assert sorted([*listed, *parts]) == files
    assert parts == [path for path in files if path.name.startswith("base") or CONFIGS / "base" in path.parents]
    assert len(built) == len({json.dumps(section, sort_keys=True) for section in built}) < len(listed)


def test_one_model_is_counted_once(monkeypatch):
    built = []
    monkeypatch.setattr(info, "build_model", lambda section, path: built.append(section) or torch.nn.Linear(2, 1))
    sizes = info.ModelSizes()
    assert [sizes.of(section, Path("x")) for section in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1})] == [3, 3, 3]
    assert built == [{"a": 1, "b": 2}, {"a": 1}]


def test_settings_that_others_left_out_or_wrote_as_text(capsys, tmp_path):
    (tmp_path / "mine.yml").write_text(
        "dataset: {train: {src: data/mine}}\n"
        "optim: {max_epochs: 3, lr_initial: 1e-4}\n"
        "model: {name: schnet, hidden_channels: 8, num_filters: 8, num_interactions: 1, num_gaussians: 4}\n"
    )
    assert command.main(["info", "--table", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[-3:] == ["-", "1e-4", "3"]
    (tmp_path / "empty").mkdir()
    assert command.main(["info", str(tmp_path / "empty")]) == ConfigError.EXIT_STATUS
    assert "no configuration (*.yml) is in this folder" in capsys.readouterr().err


def test_the_table_finds_folders_that_come_with_the_package(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(["info", "--table", "configs/oc22"]) == 0
    said = capsys.readouterr().out
    assert "escaip_oc22.yml" in said
    assert "121,526,402" in said
