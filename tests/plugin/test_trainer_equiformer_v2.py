"""EquiformerV2's configurations, trained by this package's trainer, against fairchem's trainer for EquiformerV2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairchem.core.models.equiformer_v2 import equiformer_v2  # noqa: F401 -- registers the backbone and its heads
from fairchem.core.models.equiformer_v2.trainers.forces_trainer import EquiformerV2ForcesTrainer
from trainer_cases import build, rattled_slabs, write_lmdb

from escaip_fairchem.plugin.info import read_config

CONFIG = Path(__file__).parents[2] / "configs/oc20/equiformer_v2_scaling/equiformer_v2_l2.yml"
SMALL = {
    "num_layers": 1, "sphere_channels": 4, "attn_hidden_channels": 4, "num_heads": 2, "attn_alpha_channels": 4,
    "attn_value_channels": 4, "ffn_hidden_channels": 4, "edge_channels": 4, "max_neighbors": 8,
}  # fmt: skip
EPOCHS = 30


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Ours and theirs, by the same file but for its sizes, with equal weights; twenty steps make an epoch."""
    folder = tmp_path_factory.mktemp("equiformer_v2")
    settings = read_config(CONFIG)
    for key in ("trainer", "logger"):
        del settings[key]
    settings["model"]["backbone"].update(SMALL)
    train = write_lmdb(folder / "train.lmdb", rattled_slabs(40, 0))
    settings["dataset"]["train"]["src"] = settings["dataset"]["val"]["src"] = str(train)
    optimizer = settings.pop("optim")
    optimizer.update(batch_size=2, eval_batch_size=2, num_workers=0)
    del optimizer["load_balancing"]  # one process
    settings |= {
        "optimizer": optimizer, "identifier": "case", "local_rank": 0, "print_every": 1, "seed": 1, "cpu": True,
        "logger": "trainer_cases.RecordingLogger",
    }  # fmt: skip
    ours = build(settings, folder, timestamp_id="ours")
    theirs = build(settings, folder, EquiformerV2ForcesTrainer, timestamp_id="theirs")
    theirs.model.load_state_dict(ours.model.state_dict())
    return ours, theirs


def test_losses_are_equal(trainers: tuple[Any, Any]) -> None:
    batch = next(batch for batch in trainers[0].train_loader if (batch.fixed == 1).any())  # which take no part
    losses, gradients = [], []
    for trainer in trainers:
        trainer.model.eval()  # without dropout
        trainer.model.zero_grad()
        torch.manual_seed(0)  # the frames of edges are drawn at random
        loss = trainer._compute_loss(trainer._forward(batch), batch)
        loss.backward()
        losses.append(loss.item())
        slopes = [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
        gradients.append(torch.cat([slope.reshape(-1) for slope in slopes]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()


def test_rates_are_equal_in_every_step(trainers: tuple[Any, Any]) -> None:
    steps = EPOCHS * len(trainers[1].train_loader)
    assert steps == 600
    rates: list[list[float]] = []
    for trainer in trainers:
        trainer.model.zero_grad(set_to_none=True)  # so that the optimizer changes nothing
        rates.append([])
        for _ in range(steps + 10):
            rates[-1].append(trainer.scheduler.get_lr())
            trainer.optimizer.step()
            trainer.scheduler.step()
    assert rates[0] == pytest.approx(rates[1], rel=1e-12)
    assert rates[0][0] == pytest.approx(0.2 * 4e-4)
    assert rates[0][2] == pytest.approx(4e-4)  # after a tenth of an epoch
    assert rates[0][steps] == pytest.approx(0.01 * 4e-4)


def exempt_from_decay(trainer: Any) -> set[str]:
    """Names of the parameters that a trainer's optimizer does not decay."""
    exempt, decayed = trainer.optimizer.param_groups
    assert (exempt["weight_decay"], decayed["weight_decay"]) == (0, 1e-3)
    names = {id(parameter): name for name, parameter in trainer._unwrapped_model.named_parameters()}
    assert len(exempt["params"]) + len(decayed["params"]) == len(names)
    return {names[id(parameter)] for parameter in exempt["params"]}


def test_decay_spares_the_weights_of_norms_as_the_class_asks_for_and_is_equal_else(trainers: tuple[Any, Any]) -> None:
    """fairchem's trainer asks ``hydra``, which knows names with "embedding", "frequencies" or "bias" alone."""
    found, expected = (exempt_from_decay(trainer) for trainer in trainers)
    model = trainers[0]._unwrapped_model
    norms = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if "Norm" in type(module).__name__
        for name, _ in module.named_parameters(recurse=False)
    }
    assert found == expected | norms
    assert "backbone.blocks.0.norm_1.affine_weight" in found - expected
    assert {f"backbone.{name}" for name in model.backbone.no_weight_decay()} <= found


def test_optimizer_clipping_and_average_are_equal(trainers: tuple[Any, Any]) -> None:
    ours, theirs = trainers
    assert type(ours.optimizer) is type(theirs.optimizer) is torch.optim.AdamW
    assert ours.optimizer.defaults == theirs.optimizer.defaults
    assert ours.clip_grad_norm == theirs.clip_grad_norm == 100
    assert ours.ema.decay == theirs.ema.decay == 0.999
