"""Parts of a model that nothing would train are refused; torch would stop such runs at the second step."""

from __future__ import annotations

import pytest
from fairchem.core.models.base import HydraModel
from model_cases import model_of
from trainer_cases import TinyModel

import escaip_fairchem  # noqa: F401
from escaip_fairchem.errors import ConfigError
from escaip_fairchem.plugin.models import EScAIP
from escaip_fairchem.plugin.original import convert_section
from escaip_fairchem.plugin.trainer.trained_heads import check_heads_are_trained
from escaip_fairchem.testing import TINY

STRESS = {
    "stress": {
        "decomposition": {"stress_isotropic": {"irrep_dim": 0}, "stress_anisotropic": {"irrep_dim": 2}},
    }
}
PARTS = {"stress_isotropic": {}, "stress_anisotropic": {}}


@pytest.mark.parametrize("flags", [{}, {"regress_forces": True}])
def test_edges_that_no_head_reads_are_refused(flags: dict[str, bool]) -> None:
    with pytest.raises(ConfigError, match=r"model\.heads: none of energy reads edges.*regress_forces: false"):
        EScAIP(**TINY, **flags, heads={"energy": None})
    hydra = HydraModel(
        backbone={"model": "escaip_backbone", **TINY, **flags}, heads={"energy": {"module": "escaip_energy_head"}}
    )
    with pytest.raises(ConfigError, match=r"model\.heads: none of energy reads edges"):
        check_heads_are_trained(hydra, ["energy"], {"energy": {"property": "energy"}})


def test_models_without_unread_edges_are_built() -> None:
    EScAIP(**TINY, heads={"energy": None}, regress_forces=False)
    EScAIP(**TINY, heads={"energy": None}, freeze_backbone=True)
    original = {"backbone": {"model": "EScAIPBackbone", **TINY}, "heads": {"energy": {"module": "EScAIPEnergyHead"}}}
    assert not EScAIP(**convert_section(original)).backbone.has_edge_stream


@pytest.mark.parametrize(
    ("kind", "trained", "message"),
    [
        ("direct", {"energy"}, "none trains the head 'forces'; add a loss of forces"),
        ("direct", {"forces"}, "none trains the head 'energy'"),
        ("direct", {"energy", "forces"}, None),
        ("conservative", {"forces"}, None),
        ("conservative", {"dipole"}, "add a loss of energy or forces or stress"),
        ("equivariant rank-2", {"energy", "forces", "stress"}, None),
        ("equivariant rank-2", {"energy", "forces", *PARTS}, None),
        ("equivariant rank-2", {"energy", "forces", "stress_isotropic"}, "'stress'; add a loss of stress_anisotropic"),
        ("original rank-2", {"energy", "forces"}, "'stress'; add a loss of stress_isotropic"),
    ],
)
def test_heads_without_a_loss_are_named(kind: str, trained: set[str], message: str | None) -> None:
    targets = {"energy": {}, "forces": {}, "dipole": {}, **STRESS, **PARTS}
    if message is None:
        check_heads_are_trained(model_of(kind), sorted(trained), targets)
    else:
        with pytest.raises(ConfigError, match=f"loss_functions: .*{message}"):
            check_heads_are_trained(model_of(kind), sorted(trained), targets)


def test_frozen_heads_and_other_models_need_none() -> None:
    model = model_of("direct")
    model.output_heads["forces"].requires_grad_(False)
    check_heads_are_trained(model, ["energy"], {"energy": {}})
    check_heads_are_trained(TinyModel(), ["energy"], {"energy": {}})


def test_outputs_under_their_heads_names_count() -> None:
    heads = {name: {"module": f"escaip_{name}_head"} for name in ("energy", "direct_force")}
    hydra = HydraModel(backbone={"model": "escaip_backbone", **TINY}, heads=heads)
    targets = {"energy": {"property": "energy"}, "direct_force": {"property": "forces"}}
    check_heads_are_trained(hydra, ["energy", "direct_force"], targets)
    with pytest.raises(ConfigError, match="head 'direct_force'"):
        check_heads_are_trained(hydra, ["energy"], targets)
