"""Checkpoint files: whole or untouched, readable everywhere."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from escaip_fairchem.errors import CheckpointError
from escaip_fairchem.plugin import checkpoints
from escaip_fairchem.plugin.checkpoints import as_plain, atomic_file, read_checkpoint, save_atomically

# The module alone: importing fairchem as well would take most of the test's time.
_LOAD = f"""
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("checkpoints", {checkpoints.__file__!r})
checkpoints = importlib.util.module_from_spec(spec)
spec.loader.exec_module(checkpoints)
save_atomically = checkpoints.save_atomically
"""
_SAVE_FOREVER = """
for step in range(10**9):
    save_atomically({"state_dict": {"w": torch.full((200_000,), float(step))}, "step": step}, sys.argv[1])
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_file_that_loads(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    moments = random.Random(0)
    seen = []
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", _LOAD + _SAVE_FOREVER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        checkpoint = read_checkpoint(path)
        assert checkpoint["state_dict"]["w"].eq(checkpoint["step"]).all()
        seen.append(checkpoint["step"])
    assert max(seen) > 1
    assert len(list(tmp_path.iterdir())) <= 2  # the file and at most one temporary one, however many kills


def test_a_save_within_a_save_leaves_both_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with atomic_file(path) as outer:
        outer.write(b"out")
        with atomic_file(path) as inner:
            inner.write(b"inner")
        assert path.read_bytes() == b"inner"
        outer.write(b"er")
    assert path.read_bytes() == b"outer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    save_atomically({"state_dict": {}}, tmp_path / "x.pt")
    assert (tmp_path / "x.pt").stat().st_mode == (tmp_path / "plain").stat().st_mode


_FULL_DISK = """
import json, resource
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    save_atomically({"state_dict": {"w": torch.zeros(1_000_000)}}, sys.argv[1])
except checkpoints.CheckpointError as error:
    print(json.dumps(str(error)))
"""


def test_a_full_disk_is_a_clear_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_atomically({"state_dict": {"w": torch.ones(3)}}, path)
    run = subprocess.run([sys.executable, "-c", _LOAD + _FULL_DISK, str(path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    message = json.loads(run.stdout)
    assert str(path) in message
    assert "the previous file is intact" in message
    assert read_checkpoint(path)["state_dict"]["w"].tolist() == [1, 1, 1]
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "x") as file:
        file.write(b"half" * (1 // 0))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no_such_folder"):
        save_atomically({}, tmp_path / "no_such_folder" / "checkpoint.pt")


def test_a_parent_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot be written \(Not a directory\); no file was left behind"):
        save_atomically({}, tmp_path / "file" / "checkpoint.pt")


def test_a_file_system_that_cannot_sync_folders_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sync = os.fsync

    def of_files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_only)
    save_atomically({"state_dict": {}, "step": 1}, tmp_path / "x.pt")
    assert read_checkpoint(tmp_path / "x.pt")["step"] == 1
    assert "x.pt: written, but" in caplog.text


def test_reading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pt: no such checkpoint"):
        read_checkpoint(tmp_path / "absent.pt")
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(CheckpointError, match=r"damaged\.pt"):
        read_checkpoint(damaged)
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not a fairchem checkpoint"):
        read_checkpoint(tmp_path / "other.pt")


@pytest.mark.parametrize("content", [b"", b"words", b"trainer: ocp\noptim: {}\n", b"PK\x03\x04"])
@pytest.mark.parametrize("trusted", [False, True])
def test_files_of_other_kinds_are_named_and_not_to_be_trusted(tmp_path: Path, content: bytes, trusted: bool) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"other\.pt: not a readable checkpoint \(\w+") as error:
        read_checkpoint(path, trusted=trusted)
    assert "trust" not in str(error.value)


class Foreign:
    """Any class that a checkpoint might have been pickled with."""


def test_foreign_objects_load_only_when_trusted(tmp_path: Path) -> None:
    path = tmp_path / "foreign.pt"
    torch.save({"state_dict": {}, "thing": Foreign()}, path)
    with pytest.raises(CheckpointError, match=r"plain values \(\w*test_checkpoints\.Foreign\).*trust_checkpoint"):
        read_checkpoint(path)
    assert isinstance(read_checkpoint(path, trusted=True)["thing"], Foreign)


def test_plain_values_load_under_weights_only(tmp_path: Path) -> None:
    config = {"a": np.float32(0.5), "b": (np.int64(3), Path("x/y")), "c": [np.arange(2)], "d": {"e": None}}
    plain = as_plain(config)
    assert plain == {"a": 0.5, "b": (3, "x/y"), "c": [[0, 1]], "d": {"e": None}}
    save_atomically({"config": plain}, tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", weights_only=True)["config"] == plain
