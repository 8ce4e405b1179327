"""How many checkpoints stay, and what happens when the newest one is damaged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fairchem.core.tasks.task import TrainTask
from trainer_cases import RecordingLogger, build, config, rattled_slabs, write_lmdb

import escaip_fairchem  # noqa: F401
from escaip_fairchem.errors import CheckpointError, ConfigError
from escaip_fairchem.plugin.checkpoints import read_checkpoint
from escaip_fairchem.plugin.launch.runner import go_on
from escaip_fairchem.plugin.trainer.retention import continuable, earlier_checkpoints, keep_another_name, read_newest


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("data")
    train = write_lmdb(folder / "train.lmdb", rattled_slabs(16, 0))
    return config(train, write_lmdb(folder / "val.lmdb", rattled_slabs(4, 1)), optimizer__checkpoint_every=2)


@pytest.fixture(autouse=True)
def _no_stop() -> Any:
    RecordingLogger.stop_at = None
    yield
    RecordingLogger.stop_at = None


def train(settings: dict[str, Any], folder: Path, stop_at: int | None = None) -> Any:
    """Train in ``folder/checkpoints/run``, from where it stands, until it ends or is killed."""
    trainer = build(settings, folder, timestamp_id="run")
    RecordingLogger.stop_at = stop_at
    task = TrainTask({"checkpoint": None, "hide_eval_progressbar": True})
    task.setup(trainer)
    try:
        task.run()
    except KeyboardInterrupt:
        assert stop_at is not None
    RecordingLogger.stop_at = None
    trainer.close()
    return trainer


def steps(folder: Path) -> list[int]:
    """Of the checkpoints that can be continued from, newest first."""
    return [read_checkpoint(path)["step"] for path in continuable(folder / "checkpoints/run")]


@pytest.mark.parametrize(("keep", "expected"), [(None, [8, 6]), (1, [8]), (3, [8, 6, 4]), (9, [8, 6, 4, 2])])
def test_the_newest_stay_and_the_best(settings: dict[str, Any], tmp_path: Path, keep: int | None, expected: list[int]):
    train({**settings, "optimizer": {**settings["optimizer"], "keep_checkpoints": keep}}, tmp_path)
    assert steps(tmp_path) == expected
    assert [path.name for path in continuable(tmp_path / "checkpoints/run")[1:]] == [
        f"checkpoint_step_{step}.pt" for step in expected[1:]
    ]
    assert (tmp_path / "checkpoints/run/best_checkpoint.pt").is_file()


def test_earlier_ones_stay_across_a_resume(settings: dict[str, Any], tmp_path: Path):
    train(settings, tmp_path, stop_at=5)
    assert steps(tmp_path) == [4, 2]
    train(settings, tmp_path, stop_at=7)
    assert steps(tmp_path) == [6, 4]


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path: Path) -> None:
    """In the middle of the weights, where loading notices nothing."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut_off, flip_a_bit, empty])
def test_a_damaged_newest_checkpoint_is_passed_over(
    settings: dict[str, Any], tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
):
    whole = train(settings, tmp_path / "whole")
    train(settings, tmp_path, stop_at=5)
    # Its own file, not that of the one before, which hard links could share.
    damage(tmp_path / "checkpoints/run/checkpoint.pt")
    resumed = train(settings, tmp_path)
    assert "checkpoint.pt: " in caplog.text
    assert "going on from" in caplog.text
    assert "checkpoint_step_2.pt instead, step 2" in caplog.text
    assert min(resumed.logger.losses()) == 3
    assert not (tmp_path / "checkpoints/run/checkpoint_step_4.pt").exists()  # the damaged one, by another name
    assert resumed.logger.losses() == {step: loss for step, loss in whole.logger.losses().items() if step > 2}
    assert steps(tmp_path) == [8, 6]


def test_if_all_are_damaged_the_newest_is_named(settings: dict[str, Any], tmp_path: Path):
    train(settings, tmp_path, stop_at=5)
    for path in continuable(tmp_path / "checkpoints/run"):
        empty(path)
    with pytest.raises(CheckpointError, match=r"checkpoints/run/checkpoint\.pt: not a readable checkpoint"):
        read_newest(tmp_path / "checkpoints/run", trusted=False)


def test_a_checkpoint_of_elsewhere_has_no_substitute(settings: dict[str, Any], tmp_path: Path):
    train(settings, tmp_path, stop_at=5)
    path = tmp_path / "checkpoints/run/checkpoint.pt"
    cut_off(path)
    other = build(settings, tmp_path, timestamp_id="other")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        other.load_checkpoint(str(path))
    other.close()


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "checkpoint.pt").write_text("newest")
    keep_another_name(tmp_path / "checkpoint.pt", "checkpoint_step_7.pt")
    (earlier,) = earlier_checkpoints(tmp_path)
    assert (earlier.name, earlier.read_text()) == ("checkpoint_step_7.pt", "newest")
    assert (tmp_path / "checkpoint.pt").read_text() == "newest"


def test_while_a_save_fails_as_many_stay_as_before(settings: dict[str, Any], tmp_path: Path):
    trainer = train(settings, tmp_path, stop_at=5)
    assert steps(tmp_path) == [4, 2]
    trainer.step = 6

    def refuse(*_: Any) -> None:
        raise CheckpointError("no space")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("escaip_fairchem.plugin.trainer.checkpointing.save_atomically", refuse)
        with pytest.raises(CheckpointError, match="no space"):
            trainer.save()
    assert set(steps(tmp_path)) == {4, 2}


def test_a_job_that_starts_again_goes_on_in_its_own_folder(tmp_path: Path):
    whole = {"mode": "train", "run_dir": str(tmp_path), "timestamp_id": "run", "checkpoint": "elsewhere.pt"}
    assert go_on(whole) == whole
    own = tmp_path / "checkpoints/run/checkpoint_step_4.pt"
    own.parent.mkdir(parents=True)
    own.write_text("")
    assert go_on(whole)["checkpoint"] == str(own)
    own.with_name("checkpoint.pt").write_text("")
    assert go_on(whole)["checkpoint"] == str(own.with_name("checkpoint.pt"))
    assert go_on({**whole, "mode": "validate"})["checkpoint"] == "elsewhere.pt"


def test_at_least_one_checkpoint_is_kept(settings: dict[str, Any], tmp_path: Path):
    with pytest.raises(ConfigError, match=r"optim\.keep_checkpoints: 0 is below 1"):
        build({**settings, "optimizer": {**settings["optimizer"], "keep_checkpoints": 0}}, tmp_path)
