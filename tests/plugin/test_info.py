"""What ``escaip info`` says: parameters by part, costs per atom, the resolved configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from escaip_fairchem.cli import main as command
from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn import Backbone, build_graph
from escaip_fairchem.nn.costs import count_costs
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
    info = inspect_config(path)
    assert info.costs is None
    assert info.total > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {}", "no section 'model:'"),
        ("includes: [none.yml]\nmodel: {name: escaip}", "cannot be read as a configuration"),
        ("model: {name: escaip, hiden_size: 8}", "did you mean 'hidden_size'"),
        ("model: {name: escape}", "model.name: Failed to find the model 'escape'"),
    ],
)
def test_files_that_are_no_configuration(text, message, tmp_path):
    path = tmp_path / "broken.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        inspect_config(path)


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


def test_the_table_finds_folders_that_come_with_the_package(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(["info", "--table", "configs/oc22"]) == 0
    said = capsys.readouterr().out
    assert "escaip_oc22.yml" in said
    assert "121,526,402" in said
