"""The models as fairchem sees them: one model or parts, flat or nested keys, registered names, refusals."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from fairchem.core.common.registry import registry
from fairchem.core.models.base import BackboneInterface, GraphModelMixin, HeadInterface, HydraModel
from model_cases import FLAGS_OF_KIND, HEADS_OF_KIND, ZOO, batch_of, model_of

import escaip_fairchem
from escaip_fairchem.errors import ConfigError, DataError
from escaip_fairchem.nn.config import OBSOLETE_KEYS
from escaip_fairchem.plugin import models
from escaip_fairchem.plugin.models import EScAIP, EScAIPEnergyHead, backbone_section, heads_section
from escaip_fairchem.testing import KINDS, TINY, randomize, relative_error, structures, tiny_predictor
from escaip_fairchem.testing import batch as plain_batch

SHORT_NAMES = {
    "escaip": "EScAIP",
    "escaip_backbone": "EScAIPBackbone",
    "escaip_conservative_head": "EScAIPConservativeHead",
    "escaip_direct_force_head": "EScAIPDirectForceHead",
    "escaip_energy_head": "EScAIPEnergyHead",
    "escaip_rank2_head": "EScAIPRank2Head",
}


def same_predictions(one, other, data=None):
    data = batch_of(ZOO) if data is None else data
    first, second = one(data), other(data)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("name", "attribute"), SHORT_NAMES.items())
def test_every_name_resolves_short_dotted_and_as_attribute(name, attribute):
    expected = getattr(models, attribute)
    assert registry.get_model_class(name) is expected
    assert registry.get_model_class(f"escaip_fairchem.{attribute}") is expected
    assert registry.get_model_class(f"escaip_fairchem.plugin.models.{attribute}") is expected
    assert getattr(escaip_fairchem, attribute) is expected


def test_the_classes_fit_fairchem_s_interfaces():
    assert issubclass(models.EScAIP, HydraModel)
    assert issubclass(models.EScAIPBackbone, BackboneInterface)
    assert issubclass(models.EScAIPBackbone, GraphModelMixin)
    for name in ("EScAIPEnergyHead", "EScAIPDirectForceHead", "EScAIPConservativeHead", "EScAIPRank2Head"):
        assert issubclass(getattr(models, name), HeadInterface)
    assert models.EScAIPGradientEnergyForceHead is models.EScAIPConservativeHead


OUTPUTS = {
    "direct": {"energy": (5, 1), "forces": (25, 3)},
    "conservative": {"energy": (5, 1), "forces": (25, 3), "stress": (5, 3, 3)},
    "energy": {"energy": (5, 1)},
    "original rank-2": {
        "energy": (5, 1), "forces": (25, 3), "stress_isotropic": (5, 1), "stress_anisotropic": (5, 5)
    },
}  # fmt: skip
OUTPUTS["equivariant rank-2"] = OUTPUTS["original rank-2"]


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_have_the_names_and_shapes_that_trainers_expect(kind):
    outputs = model_of(kind)(batch_of(ZOO))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == OUTPUTS[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("low_precision", [False, True], ids=["float32", "bf16 autocast"])
def test_the_model_predicts_what_the_network_does(kind, low_precision):
    """Also under autocast: the heads run in the precision of the backbone, the geometry in full."""
    network, model = tiny_predictor(kind, dtype=torch.float32), model_of(kind)
    network.backbone.load_state_dict(model.backbone.network.state_dict())
    names = {"energy": "energy", "forces": "forces", "stress": "rank2", "energy_forces": "energy"}
    for name, head in model.output_heads.items():
        getattr(network, names[name]).load_state_dict(head.head.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low_precision):
        expected, actual = network(plain_batch(ZOO, torch.float32)), model(batch_of(ZOO))
    renamed = {"isotropic": "stress_isotropic", "anisotropic": "stress_anisotropic"}
    for name, value in expected.items():
        assert relative_error(actual[renamed.get(name, name)], value) < (0.1 if low_precision else 5e-6), name
        assert actual[renamed.get(name, name)].dtype == torch.float32
    if low_precision:
        full = model(batch_of(ZOO))
        assert any(not torch.equal(full[name], actual[name]) for name in full), "autocast must reach the model"


@pytest.mark.parametrize("kind", KINDS)
def test_one_model_is_its_hydra_parts(kind):
    whole = model_of(kind)
    heads = {name: {**(options or {})} for name, options in HEADS_OF_KIND[kind].items()}
    for name in heads:
        heads[name]["module"] = models.HEADS_BY_NAME[name]
    settings = {**TINY, **FLAGS_OF_KIND[kind]}
    parts = HydraModel(
        backbone={"model": "escaip_backbone", **settings}, heads=heads, pass_through_head_outputs=True
    ).eval()
    parts.load_state_dict(whole.state_dict())
    assert same_predictions(whole, parts)


def test_flat_keys_are_nested_keys():
    nested = EScAIP(backbone=TINY).eval()
    flat = EScAIP(**TINY).eval()
    mixed = EScAIP(backbone={"hidden_size": 16}, **{k: v for k, v in TINY.items() if k != "hidden_size"}).eval()
    flat.load_state_dict(nested.state_dict())
    mixed.load_state_dict(nested.state_dict())
    assert same_predictions(nested, flat)
    assert same_predictions(nested, mixed)


def test_settings_given_are_left_as_they_were():
    backbone, heads = copy.deepcopy(TINY), {"energy": {}, "forces": {"output_name": "forces"}}
    before = copy.deepcopy((backbone, heads))
    EScAIP(backbone=backbone, heads=heads)
    assert (backbone, heads) == before


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, {"energy", "forces"}),
        ({"direct_force": False}, {"energy_forces"}),
        ({"regress_forces": False}, {"energy"}),
        ({"regress_forces": False, "direct_force": False}, {"energy"}),
    ],
)
def test_heads_follow_from_the_flags(flags, expected):
    model = EScAIP(**TINY, **flags)
    assert set(model.output_heads) == expected
    assert set(EScAIP(backbone={**TINY, **flags}).output_heads) == expected
    assert model.backbone.has_edge_stream == ("forces" in expected)


def test_output_names():
    heads = {"energy": {"output_name": "e"}, "forces": {"output_name": "f"}, "stress": {"output_name": "virial"}}
    outputs = EScAIP(heads=heads, **TINY)(batch_of(ZOO))
    assert set(outputs) == {"e", "f", "virial_isotropic", "virial_anisotropic"}


def test_heads_with_names_and_classes_of_their_own():
    heads = {
        "first": {"module": "escaip_energy_head", "output_name": "e1"},
        "second": {"module": "escaip_fairchem.EScAIPEnergyHead", "output_name": "e2"},
    }
    assert set(EScAIP(heads=heads, **TINY, regress_forces=False)(batch_of(ZOO))) == {"e1", "e2"}


def test_outputs_by_head_where_asked_for():
    outputs = EScAIP(pass_through_head_outputs=False, **TINY)(batch_of(ZOO))
    assert set(outputs) == {"energy", "forces"}
    assert set(outputs["energy"]) == {"energy"}


def test_frozen_backbone():
    model = EScAIP(freeze_backbone=True, **TINY)
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert all(parameter.requires_grad for parameter in model.output_heads.parameters())


def test_a_checkpoint_s_model_is_continued_from(tmp_path):
    """fairchem's finetune_config: backbone from the checkpoint, heads from it too or new ones."""
    model = model_of()
    config = {"model": {"name": "escaip_fairchem.EScAIP", **TINY}}
    torch.save({"config": config, "state_dict": model.state_dict()}, tmp_path / "start.pt")
    section = {"starting_checkpoint": str(tmp_path / "start.pt")}
    assert same_predictions(EScAIP(finetune_config=section).eval(), model)
    with_new_heads = EScAIP(finetune_config=section, heads={"energy": {}}).eval()
    assert set(with_new_heads.output_heads) == {"energy"}
    first, second = with_new_heads.backbone.state_dict(), model.backbone.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in second)


def messages(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught if "ignored" in str(warning.message)]


@pytest.mark.parametrize("nested", [True, False])
def test_the_original_s_obsolete_keys_warn_once_each(nested):
    obsolete = dict.fromkeys(OBSOLETE_KEYS, True)
    settings = {"backbone": {**TINY, **obsolete}} if nested else {**TINY, **obsolete}
    found = messages(lambda: EScAIP(**settings))
    assert len(found) == len(OBSOLETE_KEYS)
    for key in OBSOLETE_KEYS:
        assert sum(f".{key}: ignored" in message for message in found) == 1


def test_known_keys_do_not_warn():
    assert messages(lambda: EScAIP(**TINY)) == []


REFUSED = {
    "flat": ({**TINY, "hiden_size": 3}, r"model: unknown key 'hiden_size' \(did you mean 'hidden_size'\?\)"),
    "nested": ({"backbone": {**TINY, "max_radios": 3}}, r"unknown key 'max_radios' \(did you mean 'max_radius'\?\)"),
    "twice": ({"backbone": TINY, "hidden_size": 16}, r"model\.hidden_size: given twice, also as model\.backbone"),
    "missing": ({"backbone": {"hidden_size": 16}}, "missing num_layers, atten_num_heads, max_radius, max_neighbors"),
    "nothing": ({}, "missing hidden_size"),
    "head option": ({**TINY, "heads": {"energy": {"outputname": "e"}}}, r"energy head: unknown key 'outputname' \(did"),
    "head option type": ({**TINY, "heads": {"stress": {"equivariant": 1}}}, "rank-2 head.equivariant: expected bool"),
    "head name": ({**TINY, "heads": {"enrgy": {}}}, r"model\.heads\.enrgy: missing key 'module' \(did you mean 'en"),
    "direct head": (
        {**TINY, "direct_force": False, "heads": {"forces": {}}},
        "EScAIPDirectForceHead reads edges.*regress_forces: true and direct_force: true",
    ),
    "rank-2 head": ({**TINY, "regress_forces": False, "heads": {"stress": {}}}, "EScAIPRank2Head reads edges"),
    "conservative head": (
        {**TINY, "heads": {"energy_forces": {}}},
        "EScAIPConservativeHead differentiates the energy: .*direct_force: false",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_and_why(case):
    settings, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        EScAIP(**settings)


def test_heads_read_our_backbone_alone():
    with pytest.raises(ConfigError, match="EScAIPEnergyHead reads an EScAIPBackbone, got Linear"):
        EScAIPEnergyHead(torch.nn.Linear(1, 1))


def test_sections_are_completed():
    assert backbone_section({"model": "my.Backbone", "hidden_size": 3}, {}, None)["model"] == "my.Backbone"
    assert backbone_section({}, {"hidden_size": 3}, False) == {
        "model": "escaip_fairchem.EScAIPBackbone", "hidden_size": 3, "otf_graph": False
    }  # fmt: skip
    assert heads_section(None, None).keys() == {"energy", "forces"}


# Complete neighbourhoods: 4.3 Å hold fewer than 200 neighbours, so that fairchem's choice among ties has no say.
CRYSTALS = [structures.disordered(1), structures.disordered(2, 4), structures.disordered(3, 1, length=2.5)]
COMPLETE = {"max_radius": 4.3, "max_neighbors": 200}


@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_stored_edges_give_the_same_predictions(kind):
    data = batch_of(CRYSTALS, edges=True, cutoff=4.3, max_neigh=200)
    searching = model_of(kind, **COMPLETE)
    stored = model_of(kind, otf_graph=False, **COMPLETE)
    assert stored.otf_graph is False
    first, second = searching(data), stored(data)
    for name in first:
        assert relative_error(second[name], first[name]) < 5e-6
    kept = data.edge_index[1] != 0
    data.edge_index, data.cell_offsets = data.edge_index[:, kept], data.cell_offsets[kept]
    assert not torch.equal(stored(data)["energy"], second["energy"]), "the stored edges are really used"


def test_without_stored_edges_neighbours_are_searched_with_a_warning():
    with pytest.warns(UserWarning, match="otf_graph: false, but the data holds no edges"):
        found = model_of(otf_graph=False)(batch_of(ZOO))
    assert all(torch.equal(found[name], value) for name, value in model_of()(batch_of(ZOO)).items())


def test_fairchem_s_own_switch_of_the_graph_is_obeyed():
    """`model.otf_graph`, which fairchem's trainers and YAML files set beside the backbone, overrides the backbone's."""
    model = EScAIP(backbone={**TINY, "otf_graph": True}, otf_graph=False)
    assert model.otf_graph is False
    assert model.backbone.otf_graph is False
    model = EScAIP(backbone={**TINY, "otf_graph": False})
    assert model.otf_graph is False
    assert model.backbone.otf_graph is False
    assert EScAIP(otf_graph=True, **TINY).backbone.otf_graph is True


def test_use_pbc_false_treats_all_as_molecules():
    same_atoms = [structures.disordered(1), structures.disordered(1, pbc=False)]
    energies = model_of(use_pbc=False)(batch_of(same_atoms))["energy"]
    assert torch.allclose(energies[0], energies[1], rtol=1e-6)
    energies = model_of()(batch_of(same_atoms))["energy"]
    assert not torch.allclose(energies[0], energies[1], rtol=1e-3)


@pytest.mark.parametrize("no_grad", [torch.no_grad, torch.enable_grad])
def test_conservative_models_predict_with_gradients_switched_off(no_grad):
    exact, data = model_of("conservative", distance_table=False), batch_of(ZOO)
    tabulated = model_of("conservative")
    expected = exact(data)
    with no_grad():
        outputs, close = exact(data), tabulated(data)
    for name, value in outputs.items():
        assert torch.equal(value, expected[name])
        assert relative_error(close[name], expected[name]) < 1e-5
        assert value.requires_grad == (no_grad is torch.enable_grad)
    assert not data.pos.requires_grad


def test_direct_models_keep_no_graph_with_gradients_switched_off():
    with torch.no_grad():
        outputs = model_of()(batch_of(ZOO))
    assert not any(value.requires_grad for value in outputs.values())


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_the_model_gets_a_gradient(kind):
    model = model_of(kind).train()
    sum((value - 0.3).square().sum() for value in model(batch_of(ZOO)).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_float64_models_predict_in_float64_from_fairchem_s_float32_data():
    outputs = model_of().double()(batch_of(ZOO))
    assert {value.dtype for value in outputs.values()} == {torch.float64}


def test_inputs_are_not_changed():
    data = batch_of(ZOO)
    before = copy.deepcopy(data)
    model_of("conservative")(data)
    assert data.keys() == before.keys()
    for name in data.keys():  # noqa: SIM118
        value = data[name]
        assert torch.equal(value, before[name]) if isinstance(value, torch.Tensor) else value == before[name], name


def test_no_weight_decay_names_exist_and_are_those_of_biases_norms_embeddings_and_scalars():
    model = model_of()
    names = dict(model.named_parameters())
    exempt = set(model.no_weight_decay())
    assert exempt <= set(names)
    linears = {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    assert set(names) - exempt == linears
    inside = {f"backbone.{name}" for name in model.backbone.no_weight_decay()}
    assert inside == {name for name in exempt if name.startswith("backbone.")}


def test_fairchem_s_count_of_parameters():
    model = model_of()
    assert model.num_params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_copies_predict_the_same(kind):
    model = model_of(kind)
    assert same_predictions(copy.deepcopy(model), model)
    assert same_predictions(pickle.loads(pickle.dumps(model)), model)


def test_fresh_models_predict_energies_near_zero():
    model = EScAIP(**TINY).eval()
    assert model(batch_of(ZOO))["energy"].abs().max() < 0.1
    randomize(model)
    assert model(batch_of(ZOO))["energy"].abs().max() > 0.1


def test_fused_attention_gives_way_in_conservative_models_with_a_warning():
    with pytest.warns(UserWarning, match="atten_name: 'memory_efficient' has no second derivative"):
        fused = EScAIP(**TINY, direct_force=False, atten_name="memory_efficient")
    assert fused.backbone.config.atten_name == "math"


def test_molecules_need_no_cell():
    data = batch_of([structures.molecule(), structures.isolated(8)])
    expected = model_of(use_pbc=False)(data)["energy"]
    del data.cell
    assert torch.equal(model_of(use_pbc=False)(data)["energy"], expected)
    del data.pbc
    with pytest.raises(DataError, match="holds no cell"):
        model_of()(data)
