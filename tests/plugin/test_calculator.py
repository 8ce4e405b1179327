"""The calculator takes fairchem's arguments and averaged weights, and leaves alone what is not its own."""

from __future__ import annotations

import inspect
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairchem.core.common.relaxation.ase_utils import OCPCalculator as FairchemCalculator
from fairchem.core.models.model_registry import MODEL_REGISTRY, URLModel
from model_cases import model_of
from trainer_cases import build, config, rattled_slabs, write_lmdb

import escaip_fairchem  # noqa: F401
from escaip_fairchem.errors import CheckpointError, ConfigError
from escaip_fairchem.nn import find_neighbors
from escaip_fairchem.plugin.backbone import EScAIPBackbone
from escaip_fairchem.plugin.calculator import OCPCalculator, global_state_untouched
from escaip_fairchem.plugin.random_checkpoint import save_random_checkpoint


class Foreign:
    """An object that no checkpoint should hold."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose averaged weights are zero, and the raw ones are not."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = build(config(write_lmdb(folder / "train.lmdb", rattled_slabs(4, 0))), folder, timestamp_id="run")
    for average in trainer.ema.shadow_params:
        average.zero_()
    path = Path(trainer.save())
    trainer.close()
    return path


def total_weight(calculator: Any) -> float:
    return sum(float(parameter.abs().sum()) for parameter in calculator.trainer.model.parameters())


def test_arguments_are_fairchems_in_the_same_order(checkpoint: Path) -> None:
    expected = list(inspect.signature(FairchemCalculator).parameters.values())
    found = list(inspect.signature(OCPCalculator).parameters.values())
    assert [(p.name, p.default) for p in found if p.kind is not p.KEYWORD_ONLY] == [
        (p.name, p.default) for p in expected
    ]
    assert total_weight(OCPCalculator(None, checkpoint)) == 0
    with pytest.raises(ConfigError, match="give checkpoint_path="):
        OCPCalculator()


def test_averaged_weights_are_used_whatever_names_the_model(checkpoint: Path, tmp_path: Path) -> None:
    name = next(name for name, model in MODEL_REGISTRY.models.items() if isinstance(model, URLModel))
    published = tmp_path / Path(MODEL_REGISTRY.models[name].url).name
    published.write_bytes(checkpoint.read_bytes())
    # fairchem's own trainer loads the raw weights
    assert total_weight(OCPCalculator(model_name=name, local_cache=str(tmp_path), trainer="ocp")) == 0
    calculator = OCPCalculator(checkpoint_path=checkpoint, trainer="ocp")
    assert total_weight(calculator) == 0
    with torch.no_grad():
        next(calculator.trainer.model.parameters()).fill_(1.0)
    calculator.load_checkpoint(checkpoint)
    assert total_weight(calculator) == 0


def test_foreign_objects_are_loaded_only_if_trusted(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "thing": Foreign()}, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match=r"Foreign.*give OCPCalculator `trusted=True`"):
        OCPCalculator(checkpoint_path=tmp_path / "foreign.pt")
    before = dict(os.environ)
    assert total_weight(OCPCalculator(checkpoint_path=tmp_path / "foreign.pt", trusted=True)) == 0
    assert dict(os.environ) == before


def test_a_calculator_on_the_cpu_does_not_start_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def start(*_: Any) -> None:
        raise AssertionError("CUDA was started")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", start)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(7)
    with global_state_untouched():
        torch.manual_seed(8)
    assert seeds[-1] == 7  # kept until CUDA starts, as torch.manual_seed does


def trajectories(kind: str, folder: Path, skins: tuple[float, ...]) -> tuple[list[list[Any]], list[Any]]:
    """Run the same dynamics with calculators of different skins; return all results and the calculators."""
    model = model_of(kind)
    path = folder / "model.pt"
    backbone = next(module for module in model.modules() if isinstance(module, EScAIPBackbone))
    save_random_checkpoint(asdict(backbone.config), path, seed=1)
    rows, calculators = [], []
    for skin in skins:
        atoms = rattled_slabs(1, 3)[0]
        atoms.positions -= atoms.positions[0]  # some atoms cross the boundary to and fro, and fairchem wraps them
        atoms.calc = OCPCalculator(checkpoint_path=path, skin=skin)
        calculators.append(atoms.calc)
        rng = np.random.default_rng(0)
        rows.append([])
        for _ in range(12):
            atoms.positions += rng.normal(scale=0.02, size=atoms.positions.shape)
            rows[-1] += [atoms.get_potential_energy(), atoms.get_forces().copy(), atoms.positions.copy()]
            atoms.positions += 1e-2 * atoms.get_forces()
    return rows, calculators


@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_a_skin_changes_nothing(kind: str, tmp_path: Path) -> None:
    (without, usual, narrow), calculators = trajectories(kind, tmp_path, (0.0, 1.0, 0.2))
    for expected, first, second in zip(without, usual, narrow, strict=True):
        assert np.array_equal(expected, first)
        assert np.array_equal(expected, second)
    searches = [
        next(module.search for module in calculator.trainer.model.modules() if isinstance(module, EScAIPBackbone))
        for calculator in calculators
    ]
    assert searches[0] is find_neighbors
    assert [search.skin for search in searches[1:]] == [1.0, 0.2]
    assert searches[1]._candidates is not None, "the list was used"
    assert not any("search" in key for key in calculators[1].trainer.model.state_dict())


def test_a_negative_skin_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="skin: -1"):
        OCPCalculator(checkpoint_path=checkpoint, skin=-1.0)
