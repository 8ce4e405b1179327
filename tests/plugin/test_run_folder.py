"""Run folders: unique names, one run at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from escaip_fairchem.errors import RunFolderError
from escaip_fairchem.plugin import run_folder
from escaip_fairchem.plugin.run_folder import RunFolderLock, unique_run_name

# The module alone: importing fairchem as well would take most of the test's time.
_HOLD = f"""
import importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location("run_folder", {run_folder.__file__!r})
run_folder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run_folder)
lock = run_folder.RunFolderLock(sys.argv[1]); lock.acquire()
child = os.fork()  # like a data-loader worker: it must not keep the lock after its parent
if child == 0:
    print(os.getpid(), flush=True)  # by now it has given the parent's lock up
    time.sleep(60); os._exit(0)
time.sleep(60)
"""


def test_names_are_readable_and_never_repeat() -> None:
    now = datetime(2025, 1, 31, 23, 59, 58)
    names = {unique_run_name("my run/1", now) for _ in range(500)}
    assert len(names) == 500
    assert all(name.startswith("2025-01-31-23-59-58-my_run_1-") for name in names)
    assert unique_run_name("", now).count("-") == 6


def test_names_do_not_touch_seeded_generators() -> None:
    import random

    random.seed(0)
    expected = random.Random(0).random()
    unique_run_name("x")
    assert random.random() == expected


def test_a_folder_in_use_is_refused_and_freed_by_a_kill(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        with pytest.raises(RunFolderError, match=rf"in use by process {process.pid} on ") as error:
            RunFolderLock(tmp_path).acquire()
        assert "--timestamp-id" in str(error.value)
        process.kill()
        process.wait()
        os.kill(child, 0)  # the child lives on, as a worker may for some seconds
        lock = RunFolderLock(tmp_path)
        lock.acquire()
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
        lock.release()
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_same_process_is_refused_too_until_released(tmp_path: Path) -> None:
    first = RunFolderLock(tmp_path)
    first.acquire()
    with pytest.raises(RunFolderError, match=str(os.getpid())):
        RunFolderLock(tmp_path).acquire()
    first.release()
    first.release()
    RunFolderLock(tmp_path).acquire()


def test_without_locks_a_requeued_job_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_lock", lambda descriptor: None)
    record = {"pid": 1, "host": "elsewhere", "start": "today", "job": "77", "restarts": None}
    for job, restarts, refused in (("77", "1", False), ("77", None, True), ("78", "1", True), (None, None, True)):
        (tmp_path / "run.lock").write_text(json.dumps(record))
        for name, value in (("SLURM_JOB_ID", job), ("SLURM_RESTART_COUNT", restarts)):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)
        lock = RunFolderLock(tmp_path)
        if refused:
            with pytest.raises(RunFolderError, match="SLURM job 77"):
                lock.acquire()
        else:
            lock.acquire()
            assert json.loads((tmp_path / "run.lock").read_text())["restarts"] == "1"
            lock.release()


_END = _HOLD.replace("time.sleep(60); os._exit(0)", "os._exit(0)").replace(
    "time.sleep(60)", "os.wait(); exit(int(sys.argv[2]))"
)


@pytest.mark.parametrize("status", [0, 3])
def test_the_end_of_the_process_gives_the_folder_back(tmp_path: Path, status: int) -> None:
    run = subprocess.run([sys.executable, "-c", _END, str(tmp_path), str(status)], capture_output=True, check=False)
    assert run.returncode == status, run.stderr
    assert (tmp_path / "run.lock").read_text() == ""


def test_a_forked_child_leaves_the_record(tmp_path: Path) -> None:
    lock = RunFolderLock(tmp_path)
    lock.acquire()
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    lock.release()


def test_without_locks_the_named_process_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_lock", lambda descriptor: None)
    record = tmp_path / "run.lock"
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    here = run_folder.socket.gethostname()
    for pid, host, refused in ((os.getpid(), here, True), (finished.pid, here, False), (1, "elsewhere", True)):
        record.write_text(json.dumps({"pid": pid, "host": host, "start": "today"}))
        lock = RunFolderLock(tmp_path)
        if refused:
            with pytest.raises(RunFolderError, match=f"process {pid} on {host}"):
                lock.acquire()
        else:
            lock.acquire()
            lock.release()
    record.write_text("{half a rec")
    RunFolderLock(tmp_path).acquire()
