"""Interrupted runs continue exactly where they were; saves and loads keep fairchem's format."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_cases
from fairchem.core.tasks.task import TrainTask
from fairchem.core.trainers import OCPTrainer
from trainer_cases import RecordingLogger, TinyModel, build, config, rattled_slabs, write_lmdb

import escaip_fairchem  # noqa: F401
from escaip_fairchem.errors import CheckpointError, RunFolderError
from escaip_fairchem.plugin.checkpoints import read_checkpoint
from escaip_fairchem.plugin.trainer import checkpointing
from escaip_fairchem.plugin.trainer.state import RESUME_KEY


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return write_lmdb(folder / "train.lmdb", rattled_slabs(18, 0)), write_lmdb(folder / "val.lmdb", rattled_slabs(6, 1))


@pytest.fixture(autouse=True)
def _no_stop() -> Any:
    RecordingLogger.stop_at = None
    yield
    RecordingLogger.stop_at = None


def run(trainer: Any, checkpoint: Path | None = None) -> Any:
    """Train as fairchem's command does, with its task deciding what is loaded."""
    task = TrainTask({"checkpoint": checkpoint and str(checkpoint), "hide_eval_progressbar": True})
    task.setup(trainer)
    task.run()
    trainer.close()
    return trainer


def interrupt(trainer: Any, at: int) -> Any:
    RecordingLogger.stop_at = at
    with pytest.raises(KeyboardInterrupt):
        run(trainer)
    RecordingLogger.stop_at = None
    trainer.close()
    return trainer


def assert_same_end(resumed: Any, whole: Any) -> None:
    """Losses at every logging step, validations, weights, averages, optimizer: the same bits."""
    for split in ("train", "val"):
        expected = {
            step: loss for step, loss in whole.logger.losses(split).items() if step in resumed.logger.losses(split)
        }
        assert resumed.logger.losses(split) == expected
        assert expected
    assert max(resumed.logger.losses()) == max(whole.logger.losses())
    assert resumed.step == whole.step
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(resumed.ema.shadow_params, whole.ema.shadow_params, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(*(list(t.optimizer.state.values()) for t in (resumed, whole)), strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert resumed.best_val_metric == whole.best_val_metric
    assert resumed.scheduler.get_lr() == whole.scheduler.get_lr()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("checkpoint_every", "stop", "resumes_at", "print_every"),
    [(3, 5, 3, 1), (5, 8, 5, 1), (7, 8, 7, 2)],
    ids=["mid-epoch", "epoch-end", "within-a-logging-window"],
)
def test_an_interrupted_run_continues_bit_for_bit(
    data: tuple[Path, Path],
    tmp_path: Path,
    workers: int,
    checkpoint_every: int,
    stop: int,
    resumes_at: int,
    print_every: int,
) -> None:
    settings = config(
        *data,
        optimizer__num_workers=workers,
        optimizer__checkpoint_every=checkpoint_every,
        optimizer__max_epochs=3,
        print_every=print_every,
    )
    whole = run(build(settings, tmp_path / "whole"))
    interrupt(build(settings, tmp_path, timestamp_id="run"), at=stop)
    resumed = build(settings, tmp_path, timestamp_id="run", seed=settings["seed"])
    torch.manual_seed(99)  # whatever the generators stand at, the checkpoint decides
    run(resumed)
    assert min(resumed.logger.losses()) > resumes_at
    assert_same_end(resumed, whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_share_in_several_orientations_continues_bit_for_bit(
    data: tuple[Path, Path], tmp_path: Path, workers: int
) -> None:
    settings = config(*data, optimizer__num_workers=workers, optimizer__checkpoint_every=3)
    settings["dataset"]["train"] |= {"fraction": 0.5, "rotations": {"copies": 2, "seed": 3}}
    whole = run(build(settings, tmp_path / "whole"))
    assert whole.step == 10  # twice 9 of 18 structures, each twice
    interrupt(build(settings, tmp_path, timestamp_id="run"), at=5)
    resumed = build(settings, tmp_path, timestamp_id="run")
    torch.manual_seed(99)
    run(resumed)
    assert min(resumed.logger.losses()) == 4
    assert_same_end(resumed, whole)


def test_continuing_from_a_named_checkpoint_is_the_same(data: tuple[Path, Path], tmp_path: Path) -> None:
    settings = config(*data, optimizer__checkpoint_every=4)
    whole = run(build(settings, tmp_path / "whole"))
    interrupt(build(settings, tmp_path, timestamp_id="first"), at=6)
    resumed = run(build(settings, tmp_path / "elsewhere"), tmp_path / "checkpoints" / "first" / "checkpoint.pt")
    assert min(resumed.logger.losses()) == 5
    assert_same_end(resumed, whole)


def test_a_validation_that_was_interrupted_is_made_up_for(data: tuple[Path, Path], tmp_path: Path) -> None:
    settings = config(*data, optimizer__scheduler="ReduceLROnPlateau", optimizer__patience=0, optimizer__max_epochs=3)
    del settings["optimizer"]["scheduler_params"]
    whole = run(build(settings, tmp_path / "whole"))
    broken = build(settings, tmp_path, timestamp_id="run")
    broken.update_best = lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run(broken)
    broken.close()
    resumed = run(build(settings, tmp_path, timestamp_id="run"))
    assert sorted(resumed.logger.losses("val")) == [5, 10, 15]
    assert_same_end(resumed, whole)


class Preempted(TinyModel):
    """Gets a preemption signal in the middle of a training step, after dropout was drawn."""

    at = 0
    calls = 0

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        result = super().forward(data)
        if self.training:
            Preempted.calls += 1
            if Preempted.calls == Preempted.at:
                os.kill(os.getpid(), signal.SIGUSR2)
        return result


def test_a_save_by_a_signal_loses_no_batch(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_cases, "Preempted", Preempted, raising=False)
    settings = config(*data, model__name="trainer_cases.Preempted")
    whole = run(build(settings, tmp_path / "whole"))
    Preempted.calls, Preempted.at = 0, 7
    preempted = build(settings, tmp_path, timestamp_id="run")

    def save_and_leave(number: int, frame: Any) -> None:
        preempted.save(checkpoint_file="checkpoint.pt", training_state=True)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR2, save_and_leave)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(preempted)
    finally:
        signal.signal(signal.SIGUSR2, before)
    preempted.close()
    resumed = run(build(settings, tmp_path, timestamp_id="run"))
    assert min(resumed.logger.losses()) == 7
    assert_same_end(resumed, whole)


def test_a_signal_during_a_save_is_handled_after_it(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(config(*data), tmp_path, timestamp_id="run")
    path = tmp_path / "checkpoints/run/checkpoint.pt"
    write = checkpointing.save_atomically

    def interrupted_write(*args: Any) -> None:
        signal.raise_signal(signal.SIGUSR2)
        write(*args)

    monkeypatch.setattr(checkpointing, "save_atomically", interrupted_write)
    was_written: list[bool] = []
    before = signal.signal(signal.SIGUSR2, lambda *_: was_written.append(path.exists()))
    try:
        trainer.save()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert was_written == [True]


def test_a_save_during_validation_holds_the_training_weights(data: tuple[Path, Path], tmp_path: Path) -> None:
    trainer = build(config(*data, optimizer__max_epochs=1), tmp_path)
    run(trainer)
    with trainer.swap.averaged(trainer.ema):
        path = trainer.save()
    weights = read_checkpoint(path)["state_dict"]
    assert all(torch.equal(weights[name], value) for name, value in trainer.model.state_dict().items())
    assert not torch.equal(weights["energy.weight"], trainer.ema.shadow_params[-4])


def test_the_best_weights_come_along_to_another_folder(data: tuple[Path, Path], tmp_path: Path) -> None:
    """The metric to beat comes with the checkpoint; without these weights the folder might end without any."""
    settings = config(*data, optimizer__eval_every=3)
    first = run(build(settings, tmp_path, timestamp_id="first"))
    best = tmp_path / "checkpoints/first/best_checkpoint.pt"

    def continue_it() -> Any:
        trainer = build(
            {**settings, "optimizer": {**settings["optimizer"], "max_epochs": 3}},
            tmp_path / "elsewhere",
            timestamp_id="second",
        )
        trainer.update_best = lambda *args, **kwargs: None  # nothing is better
        return run(trainer, best.with_name("checkpoint.pt"))

    assert continue_it().best_val_metric == first.best_val_metric
    own = tmp_path / "elsewhere/checkpoints/second/best_checkpoint.pt"
    assert own.read_bytes() == best.read_bytes()
    own.write_bytes(b"its own")
    continue_it()
    assert own.read_bytes() == b"its own"


def test_the_last_weights_are_evaluated_and_may_be_the_best(data: tuple[Path, Path], tmp_path: Path) -> None:
    settings = config(*data, optimizer__max_epochs=2, optimizer__eval_every=100)
    trainer = run(build(settings, tmp_path, timestamp_id="run"))
    assert sorted(trainer.logger.losses("val")) == [trainer.step] == [10]
    folder = tmp_path / "checkpoints/run"
    assert (folder / "best_checkpoint.pt").is_file()
    saved = read_checkpoint(folder / "checkpoint.pt")
    assert saved["best_val_metric"] == trainer.best_val_metric
    assert saved[RESUME_KEY]["evaluated_step"] == 10
    longer = config(*data, optimizer__max_epochs=3, optimizer__eval_every=100)
    assert sorted(run(build(longer, tmp_path, timestamp_id="run")).logger.losses("val")) == [15]


def test_the_last_evaluation_is_no_step_of_a_schedule_of_plateaus(data: tuple[Path, Path], tmp_path: Path) -> None:
    settings = config(*data, optimizer__scheduler="ReduceLROnPlateau", optimizer__patience=0, optimizer__eval_every=4)
    del settings["optimizer"]["scheduler_params"]
    trainer = run(build(settings, tmp_path))
    assert sorted(trainer.logger.losses("val")) == [4, 8, 10]
    assert trainer.scheduler.scheduler.last_epoch == 2


def test_the_best_checkpoint_starts_a_new_training(
    data: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = run(build(config(*data), tmp_path, timestamp_id="first"))
    best = tmp_path / "checkpoints" / "first" / "best_checkpoint.pt"
    assert all(
        torch.equal(value, average)
        for (_, value), average in zip(
            build_weights(read_checkpoint(best), first.model), first_best_average(first, best), strict=True
        )
    )
    trainer = build(config(*data), tmp_path)
    trainer.load_checkpoint(str(best))
    assert "training would start at step 0 from these weights" in caplog.text
    assert (trainer.step, trainer.best_val_metric) == (0, None)
    assert all(torch.equal(a, b) for a, b in zip(trainer.ema.shadow_params, trainer.model.parameters(), strict=True))
    run(trainer, best)
    assert trainer.step == 10


def build_weights(checkpoint: dict[str, Any], model: Any) -> list[tuple[str, torch.Tensor]]:
    return [(name, checkpoint["state_dict"][name]) for name, _ in model.named_parameters()]


def first_best_average(trainer: Any, best: Path) -> list[torch.Tensor]:
    """Averages at the step of the best validation: those of the end, if the last one was the best."""
    losses = trainer.logger.losses("val")
    if read_checkpoint(best)["val_metrics"]["loss"]["metric"] == losses[max(losses)]:
        return list(trainer.ema.shadow_params)
    return [value for _, value in build_weights(read_checkpoint(best), trainer.model)]


def test_checkpoints_hold_plain_values_and_fairchems_keys(data: tuple[Path, Path], tmp_path: Path) -> None:
    trainer = run(build(config(*data, optimizer__max_epochs=1), tmp_path, timestamp_id="run"))
    checkpoint = torch.load(tmp_path / "checkpoints/run/checkpoint.pt", weights_only=True)
    expected = {
        "state_dict",
        "normalizers",
        "elementrefs",
        "config",
        "val_metrics",
        "amp",
        "epoch",
        "step",
        "optimizer",
    }
    assert expected | {"scheduler", "ema", "best_val_metric", "primary_metric"} <= checkpoint.keys()
    assert checkpoint["config"]["trainer"] == "escaip_fairchem.EScAIPForcesTrainer"
    assert checkpoint["ema"]["collected_params"] == []
    assert checkpoint["scheduler"]["last_epoch"] == checkpoint["step"] == trainer.step
    assert not list((tmp_path / "checkpoints/run").glob("*.tmp"))


def test_fairchem_reads_our_checkpoints_and_we_read_fairchems(data: tuple[Path, Path], tmp_path: Path) -> None:
    settings = config(*data, optimizer__scheduler="ExponentialLR", optimizer__gamma=0.5, optimizer__num_workers=0)
    del settings["optimizer"]["scheduler_params"], settings["optimizer"]["optimizer_params"]
    settings["evaluation_metrics"] = {"primary_metric": "forces_mae", "metrics": {"forces": ["mae"], "energy": ["mae"]}}
    settings["outputs"]["forces"] = {"level": "atom", "train_on_free_atoms": True, "eval_on_free_atoms": True}
    ours = run(build(settings, tmp_path, timestamp_id="ours"))
    theirs = build(settings, tmp_path, OCPTrainer, timestamp_id="theirs")
    theirs.load_checkpoint(str(tmp_path / "checkpoints/ours/checkpoint.pt"))
    assert theirs.step == ours.step
    assert theirs.scheduler.get_lr() == ours.scheduler.get_lr()
    theirs.model.eval()
    metrics = theirs.validate(disable_tqdm=True)
    assert metrics["forces_mae"]["metric"] == pytest.approx(ours.logger.values[("val", 10)]["forces_mae"], rel=1e-6)

    stock = build(settings, tmp_path, OCPTrainer, timestamp_id="stock")
    stock.train(disable_eval_tqdm=True)
    back = build(settings, tmp_path)
    back.load_checkpoint(str(tmp_path / "checkpoints/stock/checkpoint.pt"))
    assert back.step == 10
    assert back.scheduler.scheduler.last_epoch == 10  # fairchem saves before it advances the schedule
    assert back.scheduler.get_lr() == pytest.approx(0.01 * 0.5**10)
    assert RESUME_KEY not in read_checkpoint(tmp_path / "checkpoints/stock/checkpoint.pt")


def test_a_checkpoint_of_another_model_is_refused(data: tuple[Path, Path], tmp_path: Path) -> None:
    trainer = run(build(config(*data, optimizer__max_epochs=1), tmp_path, timestamp_id="run"))
    path = str(tmp_path / "checkpoints/run/checkpoint.pt")
    other = build(config(*data, model__width=16), tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: averaged tensor 0 .*check `model`"):
        other.load_checkpoint(path)
    checkpoint = read_checkpoint(path)
    del checkpoint["ema"]
    with pytest.raises(CheckpointError, match="does not fit the model"):
        other.load_checkpoint(path, checkpoint)
    assert trainer.step == 5


def test_an_optimizer_that_does_not_fit_stops_training_but_not_validation(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    run(build(config(*data, optimizer__max_epochs=1), tmp_path, timestamp_id="run"))
    other = build(config(*data, optimizer__optimizer_params={}, optimizer__ema_decay=None), tmp_path)
    other.load_checkpoint(str(tmp_path / "checkpoints/run/checkpoint.pt"))
    other.validate(disable_tqdm=True)
    for forbidden in (other.train, other.save):
        with pytest.raises(CheckpointError, match="optimizer state does not fit"):
            forbidden()


@pytest.mark.parametrize(
    "other", [{"scheduler": "StepLR", "step_size": 3}, {"scheduler": None}, {"scheduler": "ReduceLROnPlateau"}], ids=str
)
def test_another_schedule_stops_training_but_not_validation(
    data: tuple[Path, Path], tmp_path: Path, other: dict[str, Any]
) -> None:
    run(build(config(*data, optimizer__max_epochs=1), tmp_path, timestamp_id="run"))
    settings = config(*data)
    del settings["optimizer"]["scheduler_params"]
    settings["optimizer"] |= other
    resumed = build(settings, tmp_path)
    resumed.load_checkpoint(str(tmp_path / "checkpoints/run/checkpoint.pt"))
    resumed.validate(disable_tqdm=True)
    for forbidden in (resumed.train, resumed.save):
        with pytest.raises(
            CheckpointError, match=f"saved with optim.scheduler LambdaLR.*{other['scheduler'] or 'Null'}"
        ):
            forbidden()


def test_a_run_folder_in_use_refuses_a_second_run(data: tuple[Path, Path], tmp_path: Path) -> None:
    first = build(config(*data), tmp_path, timestamp_id="same")
    with pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}"):
        build(config(*data), tmp_path, timestamp_id="same")
    first.close()
    build(config(*data), tmp_path, timestamp_id="same").close()
    names = {build(config(*data), tmp_path).timestamp_id for _ in range(2)}
    assert len(names) == 2
    assert all(name.count("case") == 1 for name in names)
