"""Whole checkpoints of the original: settings, normalisers and averages come along, nothing is lost silently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ase.build import molecule
from model_cases import HEADS_OF_KIND, model_of, original_names

from escaip_fairchem.cli import main as command
from escaip_fairchem.errors import CheckpointError
from escaip_fairchem.plugin.calculator import OCPCalculator
from escaip_fairchem.plugin.checkpoints import read_checkpoint
from escaip_fairchem.plugin.import_checkpoint import import_checkpoint
from escaip_fairchem.testing import TINY

MODULES = {
    "energy": "EScAIPEnergyHead",
    "forces": "EScAIPDirectForceHead",
    "energy_forces": "EScAIPGradientEnergyForceHead",
}
STDEV = 3.0


def section_of(kind: str) -> dict[str, Any]:
    direct = kind == "direct"
    names = ("energy", "forces") if direct else ("energy_forces",)
    return {
        "name": "hydra",
        "pass_through_head_outputs": True,
        "backbone": {
            "model": "src.EScAIP.EScAIPBackbone",
            **TINY,
            "regress_forces": True,
            "direct_force": direct,
        },
        "heads": {name: {"module": f"src.EScAIP.{MODULES[name]}"} for name in names},
    }


def old_checkpoint(kind: str, *, average: bool = True) -> dict[str, Any]:
    """As fairchem writes it; the parameters in another order than ours, as the original's modules have another."""
    names = original_names(model_of(kind, seed=1).state_dict())
    raw = dict(sorted(names.items(), reverse=True))
    averaged = original_names(model_of(kind, seed=2).state_dict())
    targets = {"energy": {"level": "system"}, "forces": {"level": "atom"}}
    normalizer = {"mean": torch.tensor([0.0]), "rmsd": torch.tensor([STDEV])}
    return {
        "state_dict": {f"module.{name}": value for name, value in raw.items()},
        "ema": {
            "decay": 0.999,
            "num_updates": None,
            "shadow_params": [averaged[name] for name in raw],
            "collected_params": [],
        }
        if average
        else None,
        "config": {
            "model": section_of(kind),
            "trainer": "forces",
            "task": {},
            "outputs": targets,
            "dataset": {"src": "somewhere", "format": "lmdb"},
            "loss_functions": [{"energy": {"fn": "mae", "coefficient": 1}}],
            "evaluation_metrics": {"metrics": {"energy": ["mae"]}, "primary_metric": "energy_mae"},
            "optim": {"batch_size": 1, "num_workers": 0, "lr_initial": 0.001, "max_epochs": 1, "ema_decay": 0.999},
            "logger": "tensorboard",
            "amp": False,
            "cmd": {"seed": 0},
        },
        "normalizers": {"energy": normalizer, "forces": normalizer},
        "elementrefs": {},
        "epoch": 1.5,
        "step": 10,
        "optimizer": {"state": {}},
        "scheduler": None,
        "amp": None,
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_the_calculator_predicts_with_the_averaged_weights(kind, folder, capsys):
    torch.save(old_checkpoint(kind), "old.pt")
    assert command.main(["import-checkpoint", "old.pt", "new.pt"]) == 0
    said = capsys.readouterr().out
    assert "averaged weights (EMA): converted" in said
    assert "left out, section of the old file: optimizer" in said
    atoms = molecule("CH3CH2OH")
    atoms.calc = OCPCalculator(checkpoint_path="new.pt")
    expected = model_of(kind, seed=2).state_dict()
    found = atoms.calc.trainer._unwrapped_model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert float(atoms.calc.trainer.normalizers["energy"].rmsd) == STDEV
    assert atoms.get_forces().shape == (9, 3)
    assert atoms.calc.results["free_energy"] == atoms.get_potential_energy()
    new = read_checkpoint("new.pt")
    assert (new["epoch"], new["step"], new["config"]["trainer"]) == (1.5, 10, "escaip_fairchem.EScAIPForcesTrainer")
    assert HEADS_OF_KIND[kind].keys() == new["config"]["model"]["heads"].keys()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_without_an_average_the_weights_are_the_raw_ones(folder):
    torch.save(old_checkpoint("direct", average=False), "old.pt")
    assert not import_checkpoint(Path("old.pt"), Path("new.pt")).has_average
    state_dict = read_checkpoint("new.pt")["state_dict"]
    expected = model_of("direct", seed=1).state_dict()
    assert all(torch.equal(state_dict[f"module.{name}"], value) for name, value in expected.items())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_placed_is_named_and_nothing_is_written(folder, capsys):
    old = old_checkpoint("direct")
    old["state_dict"]["module.backbone.novelty.weight"] = torch.ones(2)
    old["state_dict"]["module.backbone.other.weight"] = torch.ones(2)
    torch.save(old, "old.pt")
    assert command.main(["import-checkpoint", "old.pt", "new.pt"]) == 2
    message = capsys.readouterr().err
    assert "backbone.novelty.weight" in message
    assert "backbone.other.weight" in message
    assert not Path("new.pt").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_averages_that_do_not_fit_are_refused(folder):
    short, twisted = old_checkpoint("direct"), old_checkpoint("direct")
    short["ema"]["shadow_params"].pop()
    twisted["ema"]["shadow_params"].reverse()
    for old, message in ((short, "the order cannot be told"), (twisted, "has shape")):
        torch.save(old, "old.pt")
        with pytest.raises(CheckpointError, match=message):
            import_checkpoint(Path("old.pt"), Path("new.pt"))


def test_files_without_a_configuration_are_refused(folder):
    torch.save({"state_dict": {}}, "old.pt")
    with pytest.raises(CheckpointError, match="no configuration with a model section"):
        import_checkpoint(Path("old.pt"), Path("new.pt"))
