"""Jobs that fail, or must not begin, lose only the steps since their last checkpoint: on a real SLURM."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cluster import Cluster, slow_folder
from slurm_cases import LAST, Runs, command, configuration, rank_process, resubmit_failed, with_references

pytestmark = [pytest.mark.slow, pytest.mark.end_to_end]
SLOW = 30
"""Kilobytes per second."""


@pytest.fixture(scope="module")
def runs(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return with_references(tmp_path_factory.mktemp("runs"), cluster)


def test_a_job_whose_node_fails_goes_on_from_its_last_checkpoint(runs: Runs) -> None:
    job = runs.submit("orphaned")
    runs.wait_for_step("orphaned", 6)
    runs.cluster.kill_node()
    saved = runs.status("orphaned")["saved_step"]
    runs.cluster.wait_for(lambda: runs.cluster.node_state() not in ("mixed", "allocated"), "the node to be missed", 90)
    runs.cluster.start_node()
    runs.release(job)
    runs.wait_for_state(job, "COMPLETED")
    runs.assert_undisturbed("orphaned", "one")
    assert saved >= 4
    assert set(runs.repeated_steps("orphaned")) <= set(range(saved + 1, saved + 5))


def test_one_of_two_processes_is_killed(runs: Runs) -> None:
    """The other ends soon, says whose end it was, and the run goes on from its last checkpoint when it is asked to."""
    job = runs.submit("widowed", "--num-gpus=2")
    runs.wait_for_step("widowed", 5)
    victim = rank_process(runs.cluster, job, 1)
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    assert runs.wait_for_state(job, "FAILED", "CANCELLED", "COMPLETED", seconds=60) == "FAILED"
    assert time.monotonic() - began < 45
    assert runs.status("widowed")["state"] == "failed"
    assert "process 1 of 2 has gone without a word" in runs.status("widowed")["why"]
    resubmit_failed(runs, "widowed")
    runs.assert_undisturbed("widowed", "two")


def test_a_job_that_is_killed_for_its_memory_goes_on_with_more(runs: Runs) -> None:
    config: dict[str, Any] = configuration(model__megabytes=2500, model__from_step=6)
    job = runs.submit("fat", config=config)
    state = runs.wait_for_state(job, "FAILED", "CANCELLED", "OUT_OF_MEMORY", "COMPLETED")
    assert state != "COMPLETED"
    resubmit_failed(runs, "fat", "--slurm-mem=6")
    runs.assert_undisturbed("fat", "one")


def test_a_full_disk_while_saving_keeps_the_checkpoint_before(runs: Runs) -> None:
    """The run folder is a file system of a few megabytes, which something else fills meanwhile."""
    small = runs.folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small], check=True)
    try:
        job = runs.submit("full", f"--run-dir={small}", config=configuration(logger="null"))
        status = small / "checkpoints" / "full" / "status.json"

        def saved() -> int:
            return (json.loads(status.read_text())["saved_step"] or 0) if status.is_file() else 0

        runs.cluster.wait_for(lambda: saved() >= 4, "the first checkpoint", 60)
        kept = saved()
        filler = os.open(small / "filler", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match="No space"):
            while True:
                os.write(filler, bytes(4096))
        os.close(filler)
        assert runs.wait_for_state(job, "FAILED", "COMPLETED") == "FAILED"
        log = (runs.folder / "logs" / job / f"{job}_0_log.err").read_text()
        assert "cannot be written (No space left on device); the previous file is intact" in log
        (small / "filler").unlink()
        said = command(["escaip", "resubmit", str(small)], runs.folder, runs.cluster).stdout
        again = re.search(r"submitted as (\d+)", said)
        assert again, said
        runs.wait_for_state(again[1], "COMPLETED")
        found = json.loads(status.read_text())
        assert (found["state"], found["step"]) == ("finished", LAST)
        assert kept >= 4
        ours, undisturbed = (
            torch.load(path / "checkpoint.pt", weights_only=True)["state_dict"]
            for path in (status.parent, runs.checkpoints("one"))
        )
        assert ours.keys() == undisturbed.keys()
        assert all(torch.equal(ours[name], undisturbed[name]) for name in ours)
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)


def test_a_second_job_in_a_run_folder_refuses(runs: Runs) -> None:
    go_on = runs.folder / "shared.go_on"
    config = configuration(model__from_step=3, model__wait_for=str(go_on))
    first = runs.submit("shared", config=config)
    runs.wait_for_step("shared", 2)
    second = runs.submit("shared", config=config)
    assert runs.wait_for_state(second, "FAILED", "COMPLETED") == "FAILED"
    assert f"SLURM job {first}" in runs.log("shared")
    assert "in use by process" in runs.log("shared")
    go_on.touch()
    runs.wait_for_state(first, "COMPLETED")
    runs.assert_undisturbed("shared", "one")


def test_slow_data(runs: Runs, tmp_path: Path) -> None:
    """Data on a file server that delivers the set in seconds, once more for every start: waited for, also by a stop."""
    (tmp_path / "train.lmdb").write_bytes((runs.folder / "train.lmdb").read_bytes())
    place = runs.folder / "slow"
    place.mkdir()
    with slow_folder(tmp_path, place, kilobytes_per_second=SLOW):
        began = time.monotonic()
        (place / "train.lmdb").read_bytes()
        assert time.monotonic() - began > 2
        config = configuration(dataset__train__src="slow/train.lmdb", optim__num_workers=2)
        job = runs.submit("slow_data", "--slurm-mem=8", config=config)
        runs.wait_for_step("slow_data", 3)
        runs.cluster.run(["scancel", "--signal=USR2", job])
        runs.release(job)
        runs.wait_for_state(job, "COMPLETED")
    assert runs.status("slow_data")["restarts"] == 1
    runs.assert_undisturbed("slow_data", "one")
    assert runs.repeated_steps("slow_data") == []
