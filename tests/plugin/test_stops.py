"""Signals during a training, on one process and on two: it stops between steps, saves, and tells."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_cases
import yaml
from trainer_cases import TinyModel, build, config, finish, rattled_slabs, run_python, write_lmdb

import escaip_fairchem  # noqa: F401
from escaip_fairchem.plugin.checkpoints import read_checkpoint
from escaip_fairchem.plugin.trainer.stops import StoppedFromOutsideError
from escaip_fairchem.runs.records import read_status


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return write_lmdb(folder / "train.lmdb", rattled_slabs(16, 0)), write_lmdb(folder / "val.lmdb", rattled_slabs(4, 1))


class Asked(TinyModel):
    """Has its training asked to stop in the middle of a step, or of an evaluation."""

    asking: Any = None
    calls = 0

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        Asked.calls += 1
        if Asked.asking is not None:
            Asked.asking(self.training)
        return super().forward(data)


@pytest.fixture(autouse=True)
def _asked(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(trainer_cases, "Asked", Asked, raising=False)
    Asked.asking, Asked.calls = None, 0
    yield
    Asked.asking = None


def test_a_stop_waits_for_the_end_of_the_step_and_saves(data: tuple[Path, Path], tmp_path: Path):
    trainer = build(config(*data, model__name="trainer_cases.Asked"), tmp_path, timestamp_id="run")

    def ask(training: bool) -> None:
        if Asked.calls == 3:
            assert trainer.stops.wait_for_step
            trainer.stops.ask(signal.SIGTERM)

    Asked.asking = ask
    with pytest.raises(StoppedFromOutsideError, match="SIGTERM"):
        trainer.train(disable_eval_tqdm=True)
    trainer.close()
    assert trainer.step == 3
    assert read_checkpoint(tmp_path / "checkpoints/run/checkpoint.pt")["step"] == 3
    status = read_status(tmp_path / "checkpoints/run")
    assert status is not None
    assert (status.saved_step, status.total_steps, status.run) == (3, 8, "run")
    assert not trainer.stops.wait_for_step


def test_during_an_evaluation_a_stop_does_not_wait(data: tuple[Path, Path], tmp_path: Path):
    trainer = build(config(*data, model__name="trainer_cases.Asked"), tmp_path)
    seen = []
    Asked.asking = lambda training: seen.append((training, trainer.stops.wait_for_step))
    trainer.train(disable_eval_tqdm=True)
    trainer.close()
    assert set(seen) == {(True, True), (False, False)}


def test_a_stop_asked_for_before_an_evaluation_leaves_it_to_the_next(data: tuple[Path, Path], tmp_path: Path):
    """Asked between the end of a step's agreement and the evaluation, which might take longer than is left."""
    settings = config(*data, optimizer__eval_every=2)
    trainer = build(settings, tmp_path, timestamp_id="run")
    agreed = trainer.stops.agreed

    def agree(step: int, *, next_step: int) -> bool:
        result = agreed(step, next_step=next_step)
        if step == 2:
            trainer.stops.ask(signal.SIGUSR2)
        return result

    trainer.stops.agreed = agree
    with pytest.raises(StoppedFromOutsideError):
        trainer.train(disable_eval_tqdm=True)
    trainer.close()
    assert trainer.logger.losses("val") == {}
    resumed = build(settings, tmp_path, timestamp_id="run")
    resumed.load_checkpoint(str(tmp_path / "checkpoints/run/checkpoint.pt"))
    resumed.train(disable_eval_tqdm=True)
    resumed.close()
    assert sorted(resumed.logger.losses("val")) == [2, 4, 6, 8]


def test_a_training_tells_where_it_stands(data: tuple[Path, Path], tmp_path: Path):
    trainer = build(config(*data), tmp_path, timestamp_id="run")
    before = read_status(tmp_path / "checkpoints/run")
    assert before is not None
    assert (before.state, before.pid, before.step, before.job) == ("starting", os.getpid(), 0, None)
    trainer.train(disable_eval_tqdm=True)
    trainer.close()
    status = read_status(tmp_path / "checkpoints/run")
    assert status is not None
    assert (status.state, status.step, status.total_steps, status.total_epochs) == ("finished", 8, 8, 2)
    assert status.saved_step == 8
    assert status.metrics_step == 8
    assert status.metrics["forces_mae"] == trainer.logger.values[("val", 8)]["forces_mae"]
    assert status.best == trainer.best_val_metric
    assert status.samples_per_second > 0
    assert status.seconds_per_step == pytest.approx(4 / status.samples_per_second)


def test_a_status_that_cannot_be_written_stops_nothing(
    data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("escaip_fairchem.plugin.trainer.standing.write_status", refuse)
    trainer = build(config(*data), tmp_path)
    trainer.train(disable_eval_tqdm=True)
    trainer.close()
    assert trainer.step == 8
    assert caplog.text.count("cannot tell where the training stands (no space left on device); it goes on") == 1


_TWO = """
import os, sys, json, signal, time
sys.path.insert(0, sys.argv[1])
import trainer_cases
import torch
from pathlib import Path
from fairchem.core.common import distutils
from escaip_fairchem.plugin.trainer import training
from escaip_fairchem.plugin.trainer.stops import StoppedFromOutsideError

folder, train, rank = Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
asked_rank, at, period = int(sys.argv[5]), int(sys.argv[6]), int(sys.argv[8])
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[7], "GLOO_SOCKET_IFNAME": "lo"}
torch.distributed.init_process_group("gloo", rank=rank, world_size=2)

class Uneven(trainer_cases.TinyModel):
    def forward(self, data):
        if self.training:
            self.calls = getattr(self, "calls", 0) + 1
            time.sleep(0.02 * rank)  # one is always ahead
            if rank == asked_rank and self.calls == at:
                trainer.stops.ask(signal.SIGUSR2)
        return super().forward(data)

trainer_cases.Uneven = Uneven
settings = trainer_cases.config(train, optimizer__batch_size=2, model__name="trainer_cases.Uneven", print_every=100)
if period:
    settings["optimizer"] |= {"max_epochs": 4, "eval_every": 100, "checkpoint_every": 100}
trainer = trainer_cases.build(settings, folder, timestamp_id="run")
if period:  # as on GPUs
    begin = training.TrainingLoop.__init__
    def begin_without_waiting(loop, *arguments, **options):
        begin(loop, *arguments, **options)
        loop._waits_after_every_step = False
    training.TrainingLoop.__init__ = begin_without_waiting
    training.STEPS_BETWEEN_AGREEMENTS = period
try:
    trainer.train(disable_eval_tqdm=True)
    end = "finished"
except StoppedFromOutsideError as stop:
    end = signal.Signals(stop.number).name
print(json.dumps([end, trainer.step]))
time.sleep(0.3)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "at"), [(0, 3), (1, 3), (1, 1)])
def test_two_processes_agree_whichever_was_asked(data: tuple[Path, Path], tmp_path: Path, rank: int, at: int):
    assert at <= stopped_step(data, tmp_path, rank, at) <= at + 2 < 8


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "at", "latest"), [(0, 1, 4), (0, 2, 4), (1, 1, 6), (1, 3, 8)])
def test_where_steps_are_not_waited_for_they_agree_now_and_then(
    data: tuple[Path, Path], tmp_path: Path, rank: int, at: int, latest: int
):
    """As on GPUs, here after every second step: what is announced after one such step is the next one."""
    step = stopped_step(data, tmp_path, rank, at, period=2)
    assert step % 2 == 0
    assert at + 2 <= step <= latest


def stopped_step(data: tuple[Path, Path], folder: Path, rank: int, at: int, period: int = 0) -> int:
    """The step after which two processes stop, of which one is asked to during a step."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [[folder, data[0], number, rank, at, port, period] for number in (0, 1)]
    both = [run_python(_TWO, *arguments, folder=folder) for arguments in words]
    (first, step), (second, other_step) = (json.loads(finish(process).splitlines()[-1]) for process in both)
    assert (first, second) == ("SIGUSR2", "SIGUSR2")  # also of the one that was not asked
    assert step == other_step
    checkpoint = read_checkpoint(folder / "checkpoints/run/checkpoint.pt")
    assert checkpoint["step"] == step
    assert len(checkpoint["escaip_training"]["ranks"]) == 2
    return int(step)


def test_a_signal_to_the_real_command_saves_and_ends_with_its_status(tmp_path: Path):
    """``kill`` and Ctrl-\\ in a terminal, or a batch system that knows nothing of submitit."""

    settings = config(write_lmdb(tmp_path / "train.lmdb", rattled_slabs(16, 0)))
    whole = {key: settings[key] for key in ("model", "outputs", "loss_functions")}
    whole |= {
        "trainer": "escaip_forces", "logger": "null", "optim": {**settings["optimizer"], "max_epochs": 100_000},
        "dataset": {"train": settings["dataset"]["train"]},
    }  # fmt: skip
    (tmp_path / "config.yml").write_text(yaml.safe_dump(whole))
    path = os.pathsep.join([str(trainer_cases.SOURCE), str(trainer_cases.HERE)])
    words = ["-m", "escaip_fairchem.cli.fairchem", "main", "--config-yml=config.yml", "--cpu", "--timestamp-id=run"]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until = time.monotonic() + 100
    while (told := read_status(tmp_path / "checkpoints/run")) is None or told.step == 0:
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said[-2000:]
    status = read_status(tmp_path / "checkpoints/run")
    assert status is not None
    assert (status.state, status.why) == ("stopped", "SIGTERM: ended from outside")
    assert read_checkpoint(tmp_path / "checkpoints/run/checkpoint.pt")["step"] == status.saved_step > 0
