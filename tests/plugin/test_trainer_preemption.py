"""Checkpoints that are written at awkward moments hold what training needs to go on exactly."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from fairchem.core.trainers import OCPTrainer
from torch import nn
from torch._subclasses import FakeTensorMode
from trainer_cases import build, config, rattled_slabs, write_lmdb

import escaip_fairchem  # noqa: F401
from escaip_fairchem.plugin.checkpoints import read_checkpoint
from escaip_fairchem.plugin.trainer.ema import WeightSwap
from escaip_fairchem.plugin.trainer.objective import LossValues
from escaip_fairchem.plugin.trainer.state import RESUME_KEY
from escaip_fairchem.plugin.trainer.window import LossWindow


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("data")
    train = write_lmdb(folder / "train.lmdb", rattled_slabs(8, 0))
    return config(train, write_lmdb(folder / "val.lmdb", rattled_slabs(4, 1)), optimizer__max_epochs=1)


@pytest.fixture(scope="module")
def trained(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    trainer = build(settings, tmp_path_factory.mktemp("trained"), timestamp_id="run")
    trainer.train(disable_eval_tqdm=True)
    trainer.close()
    return trainer


def checkpoint_of(trainer: Any) -> Path:
    return Path(trainer.config["cmd"]["checkpoint_dir"]) / "checkpoint.pt"


def test_a_stop_before_the_first_batch_keeps_the_generators(
    settings: dict[str, Any], trained: Any, tmp_path: Path
) -> None:
    resumed = build(settings, tmp_path)
    resumed.load_checkpoint(str(checkpoint_of(trained)))
    torch.manual_seed(99)  # building and loading draw numbers, too
    saved = read_checkpoint(resumed.save())
    (expected,), (found,) = (state[RESUME_KEY]["ranks"] for state in (read_checkpoint(checkpoint_of(trained)), saved))
    for generator in ("python", "numpy"):
        assert torch.equal(found["random"][generator]["words"], expected["random"][generator]["words"])
    assert torch.equal(found["random"]["torch_cpu"], expected["random"]["torch_cpu"])


def test_a_stop_before_the_first_batch_keeps_the_other_processes_generators(
    settings: dict[str, Any], trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = read_checkpoint(checkpoint_of(trained))
    (own,) = checkpoint[RESUME_KEY]["ranks"]
    other = {**own, "random": {**own["random"], "torch_cpu": own["random"]["torch_cpu"].flip(0)}}
    checkpoint[RESUME_KEY]["ranks"] = [own, other]
    resumed = build(settings, tmp_path)
    with monkeypatch.context() as two_processes:
        two_processes.setattr("fairchem.core.common.distutils.get_world_size", lambda: 2)
        resumed.load_checkpoint(str(checkpoint_of(trained)), checkpoint)
    states = read_checkpoint(resumed.save())[RESUME_KEY]["ranks"]
    assert [state["random"]["torch_cpu"].tolist() for state in states] == [
        state["random"]["torch_cpu"].tolist() for state in (own, other)
    ]


def test_a_stop_during_relaxations_keeps_the_average(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = [parameter.clone() for parameter in trained.model.parameters()]
    saved = []
    monkeypatch.setattr(OCPTrainer, "run_relaxations", lambda trainer: saved.append(trainer.save()))
    trained.run_relaxations()
    checkpoint = read_checkpoint(saved[0])
    assert checkpoint["ema"]["decay"] == 0.9
    for average, kept in zip(checkpoint["ema"]["shadow_params"], trained.ema.shadow_params, strict=True):
        assert torch.equal(average, kept)
    assert all(torch.equal(now, before) for now, before in zip(trained.model.parameters(), raw, strict=True))
    assert all(torch.equal(checkpoint["state_dict"][name], value) for name, value in trained.model.named_parameters())


class InterruptedAverage(ExponentialMovingAverage):
    """Gets a signal at the end of every change of the weights."""

    def copy_to(self, parameters: Any = None) -> None:
        super().copy_to(parameters)
        signal.raise_signal(signal.SIGUSR1)

    def restore(self, parameters: Any = None) -> None:
        super().restore(parameters)
        signal.raise_signal(signal.SIGUSR1)


@pytest.fixture
def weight() -> nn.Parameter:
    return nn.Parameter(torch.ones(1))


@pytest.fixture
def swap(weight: nn.Parameter) -> Iterator[WeightSwap]:
    """A swap whose training weights are looked at by a signal's handler, once."""
    swap = WeightSwap()
    seen: list[float] = []

    def look(*_: Any) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        with swap.training():
            seen.append(weight.item())
        signal.signal(signal.SIGUSR1, look)

    before = signal.signal(signal.SIGUSR1, look)
    yield swap
    signal.signal(signal.SIGUSR1, before)
    assert set(seen) == {5.0}


def test_signals_while_weights_are_swapped_find_the_training_weights(swap: WeightSwap, weight: nn.Parameter) -> None:
    average = InterruptedAverage([weight], 0.5)
    with torch.no_grad():
        weight.fill_(5.0)
    with swap.averaged(average):
        assert weight.item() == 1.0
    assert weight.item() == 5.0


def test_an_error_while_weights_are_swapped_leaves_the_training_weights(weight: nn.Parameter) -> None:
    class Broken(ExponentialMovingAverage):
        def copy_to(self, parameters: Any = None) -> None:
            super().copy_to(parameters)
            raise KeyboardInterrupt

    average = Broken([weight], 0.5)
    with torch.no_grad():
        weight.fill_(5.0)
    swap = WeightSwap()
    with pytest.raises(KeyboardInterrupt), swap.averaged(average):
        pass
    assert weight.item() == 5.0


def test_running_means_leave_the_gpu_before_processes_exchange_them() -> None:
    with FakeTensorMode():
        window = LossWindow()
        window.add(LossValues(**dict.fromkeys(("total", "sums", "counts"), torch.ones(2, device="cuda"))))
        assert {tensor.device.type for tensor in window.state().values()} == {"cpu"}
