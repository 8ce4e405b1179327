"""The original's models and parameters: its numbers, and a clear word on every key that does not fit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import yaml
from model_cases import HEADS_OF_KIND, ZOO, batch_of, model_of, original_names, quietly_imported
from torch_geometric.data import Batch, Data

from escaip_fairchem.errors import CheckpointError, ConfigError
from escaip_fairchem.nn.activations import ACTIVATIONS
from escaip_fairchem.nn.basis import DISTANCE_FUNCTIONS
from escaip_fairchem.plugin.original import convert_section, load_original
from escaip_fairchem.testing import TINY
from escaip_fairchem.testing.tolerances import TOLERANCES, root_mean_square

CASES = ("direct", "gradient", "stress")
ORIGINAL_HEADS = {
    "direct": {"energy": "EScAIPEnergyHead", "forces": "EScAIPDirectForceHead"},
    "conservative": {"energy_forces": "EScAIPGradientEnergyForceHead"},
    "original rank-2": {
        "energy": "EScAIPEnergyHead", "forces": "EScAIPDirectForceHead", "stress": "EScAIPRank2Head"
    },
}  # fmt: skip


def parity_case(shared, name):
    folder = shared / "parity" / name
    model = yaml.safe_load((folder / "model.yml").read_text())
    return model, torch.load(folder / "state_dict.pt", weights_only=True), np.load(folder / "io.npz")


def batch_from_arrays(io):
    counts, first, graphs = io["natoms"], 0, []
    for row, count in enumerate(counts):
        own = slice(first, first + int(count))
        graphs.append(
            Data(
                pos=torch.tensor(io["pos"][own]),
                cell=torch.tensor(io["cell"][row : row + 1]),
                atomic_numbers=torch.tensor(io["atomic_numbers"][own]).float(),
                natoms=int(count),
                pbc=torch.tensor([[True] * 3]),
                tags=torch.tensor(io["tags"][own]),
                fixed=torch.tensor(io["fixed"][own]),
            )
        )
        first += int(count)
    return Batch.from_data_list(graphs)


@pytest.mark.shared
@pytest.mark.parametrize("case", CASES)
def test_the_original_s_outputs_are_reproduced(shared, case):
    section, state_dict, io = parity_case(shared, case)
    outputs = quietly_imported(section, state_dict)(batch_from_arrays(io))
    expected = {name.removeprefix("out_"): torch.tensor(io[name]) for name in io.files if name.startswith("out_")}
    assert outputs.keys() >= expected.keys()
    limit = TOLERANCES["original"].float32
    for name, value in expected.items():
        difference, unit = outputs[name].detach() - value, root_mean_square(value)
        assert outputs[name].shape == value.shape
        assert root_mean_square(difference) / unit < limit, name
        assert float(difference.abs().max()) / unit < 3 * limit, name


@pytest.mark.shared
@pytest.mark.parametrize("case", CASES)
def test_the_names_that_these_tests_write_are_the_original_s(shared, case):
    """The round trips below prove something only if their names are real."""
    section, state_dict, _ = parity_case(shared, case)
    model = quietly_imported(section, state_dict)
    theirs = original_names(model.state_dict())
    assert theirs.keys() <= state_dict.keys()
    assert all(torch.equal(theirs[name], state_dict[name]) for name in theirs)
    if case != "gradient":
        assert theirs.keys() == state_dict.keys()


def section_of(kind, **settings):
    backbone = {
        "model": "src.EScAIP.EScAIPBackbone", **TINY, "regress_forces": True,
        "direct_force": kind != "conservative", **settings
    }  # fmt: skip
    heads = {name: {"module": f"src.EScAIP.{module}"} for name, module in ORIGINAL_HEADS[kind].items()}
    return {"name": "hydra", "pass_through_head_outputs": True, "otf_graph": True, "backbone": backbone, "heads": heads}


def same_predictions(one, other):
    first, second = one(batch_of(ZOO)), other(batch_of(ZOO))
    return all(torch.equal(first[name], second[name]) for name in first)


def round_trip(kind, **settings):
    model = model_of(kind, **settings)
    imported = quietly_imported(section_of(kind, **settings), original_names(model.state_dict()))
    assert not imported.training
    assert same_predictions(imported, model)


@pytest.mark.parametrize("kind", ORIGINAL_HEADS)
@pytest.mark.parametrize("use_angles", [True, False])
def test_every_kind_of_model_comes_over(kind, use_angles):
    round_trip(kind, use_angle_embedding=use_angles)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_comes_over(activation):
    round_trip("direct", activation=activation)


@pytest.mark.parametrize("normalization", ["rmsnorm", "layernorm", "skip", "none"])
def test_every_normalization_comes_over(normalization):
    round_trip("direct", normalization=normalization)


@pytest.mark.parametrize("basis", DISTANCE_FUNCTIONS)
def test_every_distance_function_comes_over(basis):
    round_trip("conservative", distance_function=basis)


@pytest.mark.parametrize("prefix", ["module.", "module.module."])
def test_prefixes_of_distributed_training_are_taken_off(prefix):
    model = model_of()
    prefixed = {f"{prefix}{name}": value for name, value in original_names(model.state_dict()).items()}
    assert same_predictions(quietly_imported(section_of("direct"), prefixed), model)


def test_buffers_that_follow_from_the_settings_are_left_out():
    model = model_of()
    tensors = original_names(model.state_dict())
    tensors["backbone.distance_function.offset"] = torch.zeros(24)
    assert same_predictions(quietly_imported(section_of("direct"), tensors), model)


def report_of(section, tensors):
    from escaip_fairchem.plugin.models import EScAIP
    from escaip_fairchem.plugin.original import load_original

    return load_original(EScAIP(**convert_section(section)), tensors)


def test_conservative_imports_list_the_edge_stream_that_they_leave_out():
    """The original builds it although nothing reads it; its tensors are those of a direct model."""
    direct = original_names(model_of("direct").backbone.state_dict(prefix="backbone."))
    conservative = model_of("conservative")
    tensors = {**direct, **original_names(conservative.state_dict())}
    report = report_of(section_of("conservative"), tensors)
    assert report.unknown == report.missing == []
    assert set(report.placed.values()) == set(original_names(conservative.state_dict()))
    assert set(report.without_effect) == set(tensors) - set(original_names(conservative.state_dict()))
    for part in ("feedforward.mlp_edge.0.0.weight", "norm_ffn.edge_norm.weight"):
        assert f"backbone.transformer_blocks.1.{part}" in report.without_effect
    assert "backbone.readout_layers.2.force_ffn.0.0.bias" in report.without_effect
    assert "backbone.output_projection.edge_projection.0.weight" in report.without_effect
    assert "backbone.input_block.norm.edge_norm.weight" in report.without_effect
    assert same_predictions(quietly_imported(section_of("conservative"), tensors), conservative)


@pytest.mark.shared
def test_the_parity_case_s_edge_stream_is_listed_too(shared):
    section, state_dict, _ = parity_case(shared, "gradient")
    with pytest.warns(UserWarning, match="ignored"):
        report = report_of(section, state_dict)
    assert report.without_effect
    assert all("edge" in name or "force" in name for name in report.without_effect)
    assert len(report.without_effect) + len(report.placed) == len(state_dict)


def test_edge_parameters_of_a_direct_model_are_not_left_out():
    tensors = original_names(model_of().state_dict())
    del tensors["backbone.readout_layers.1.force_norm.weight"]
    with pytest.raises(CheckpointError, match=r"no value for backbone\.network\.readouts\.1\.edge\.norm\.weight$"):
        quietly_imported(section_of("direct"), tensors)


def test_every_key_that_does_not_fit_is_named():
    tensors = original_names(model_of().state_dict())
    for name in ("backbone.transformer_blocks.0.norm_attn.weight", "output_heads.energy.energy_layer.ffn.0.0.bias"):
        del tensors[name]
    tensors["backbone.mystery.weight"] = torch.zeros(3)
    tensors["backbone.transformer_blocks.7.norm_attn.weight"] = torch.zeros(16)
    with pytest.raises(CheckpointError) as caught:
        quietly_imported(section_of("direct"), tensors)
    for name in (
        "backbone.mystery.weight", "backbone.transformer_blocks.7.norm_attn.weight",
        "backbone.network.blocks.0.attention_norm.weight", "output_heads.energy.head.layer.ffn.0.0.bias",
    ):  # fmt: skip
        assert name in str(caught.value)


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes():
    tensors = original_names(model_of().state_dict())
    tensors["backbone.transformer_blocks.0.norm_attn.weight"] = torch.zeros(17)
    message = r"backbone\.transformer_blocks\.0\.norm_attn\.weight: shape \(17,\), but the section makes it \(16,\)"
    with pytest.raises(CheckpointError, match=message):
        quietly_imported(section_of("direct"), tensors)


REFUSED = {
    "module": (lambda s: s["heads"]["energy"].update(module="src.Other.Head"), r"model\.heads\.energy\.module: 'src"),
    "backbone": (lambda s: s["backbone"].update(model="src.GemNet"), r"model\.backbone\.model: 'src.GemNet' is no mod"),
    "no module": (lambda s: s["heads"].update(extra={}), r"model\.heads\.extra\.module: '' is no module"),
    "key": (lambda s: s.update(otfgraph=True), r"model: unknown key 'otfgraph' \(did you mean 'otf_graph'\?\)"),
    "no heads": (lambda s: s.pop("heads"), "model: the original's sections have a mapping 'heads', got None"),
    "no backbone": (lambda s: s.update(backbone=3), "have a mapping 'backbone', got 3"),
    "setting": (lambda s: s["backbone"].update(hiddensize=3), r"unknown key 'hiddensize' \(did you mean 'hidden_size'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_sections_that_are_refused(case):
    change, message = REFUSED[case]
    section = section_of("direct")
    change(section)
    with pytest.raises(ConfigError, match=message):
        quietly_imported(section, {})


def test_the_section_is_left_as_it_was():
    section = section_of("conservative")
    before = copy.deepcopy(section)
    convert_section(section)
    assert section == before


def test_the_original_s_numbers_are_kept_where_ours_would_differ():
    """Its gradient head averages whatever energy_reduce says; its rank-2 head is not the equivariant one."""
    conservative = convert_section(section_of("conservative", energy_reduce="sum"))
    assert conservative["backbone"]["energy_reduce"] == "mean"
    assert convert_section(section_of("direct", energy_reduce="sum"))["backbone"]["energy_reduce"] == "sum"
    assert convert_section(section_of("original rank-2"))["heads"]["stress"]["equivariant"] is False
    assert set(HEADS_OF_KIND["original rank-2"]) == set(ORIGINAL_HEADS["original rank-2"])
    round_trip("original rank-2")


def test_the_scale_of_angles_is_left_out_where_angles_are_not_used():
    model = model_of("direct", use_angle_embedding=False)
    state_dict = original_names(model.state_dict())
    name = "backbone.transformer_blocks.0.graph_attention.attn_scalar"
    report = load_original(model, {**state_dict, name: torch.ones(())})
    assert report.without_effect == [name]
    assert not report.unknown
