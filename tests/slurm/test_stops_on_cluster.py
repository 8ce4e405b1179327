"""Jobs that are told to stop, or are stopped, go on exactly where they were: on a real SLURM."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from slurm_cases import EPOCHS, STEPS_PER_EPOCH, Runs, command, configuration

pytestmark = [pytest.mark.slow, pytest.mark.end_to_end]
LAST = STEPS_PER_EPOCH * EPOCHS


@pytest.fixture(scope="module")
def runs(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A folder with two undisturbed trainings: ``one`` on one process, ``two`` on two."""
    found = Runs(tmp_path_factory.mktemp("runs"), cluster)
    found.train_here("one")
    found.train_here("two", "--num-gpus=2")
    assert max(found.losses("one")) == LAST
    assert max(found.losses("two")) == LAST // 2
    return found


def test_a_signal_before_the_end_queues_the_job_again(runs: Runs) -> None:
    job = runs.submit("warned")
    runs.wait_for_step("warned", 6)
    runs.cluster.run(["scancel", "--signal=USR2", job])
    runs.wait_for_state(job, "PENDING")
    assert 6 <= runs.status("warned")["saved_step"] == runs.step("warned") < LAST
    assert runs.status("warned")["why"] == "SIGUSR2: preempted, or its time was up; queued again"
    runs.release(job)
    runs.wait_for_state(job, "COMPLETED")
    runs.assert_undisturbed("warned", "one")
    assert runs.repeated_steps("warned") == []


def test_a_signal_while_the_job_starts_queues_it_again(runs: Runs) -> None:
    job = runs.submit("early")
    runs.wait_for_state(job, "RUNNING")
    runs.cluster.wait_for(lambda: runs.cluster.step_managers(), "the job's processes to start")
    time.sleep(0.5)  # Python is there, torch is not
    runs.cluster.run(["scancel", "--signal=USR2", job])
    runs.release(job)
    assert runs.step("early") == 0
    runs.wait_for_state(job, "COMPLETED")
    runs.assert_undisturbed("early", "one")


def test_two_processes_stop_after_the_same_step(runs: Runs) -> None:
    job = runs.submit("pair", "--num-gpus=2")
    runs.wait_for_step("pair", 3)
    runs.cluster.run(["scancel", "--signal=USR2", job])
    runs.wait_for_state(job, "PENDING")
    assert 3 <= runs.status("pair")["saved_step"] < LAST // 2
    assert runs.status("pair")["state"] == "stopped"
    runs.release(job)
    runs.wait_for_state(job, "COMPLETED")
    runs.assert_undisturbed("pair", "two")
    assert runs.repeated_steps("pair") == []
    assert runs.status("pair")["processes"] == 2


def test_scontrol_requeue_loses_nothing(runs: Runs) -> None:
    """SLURM sends SIGTERM, waits, kills, and queues the job again by itself."""
    job = runs.submit("requeued")
    runs.wait_for_step("requeued", 6)
    runs.cluster.run(["scontrol", "requeue", job])
    runs.release(job)
    runs.wait_for_state(job, "COMPLETED")
    runs.assert_undisturbed("requeued", "one")
    assert runs.repeated_steps("requeued") == []
    assert runs.status("requeued")["restarts"] == 1


def test_the_end_of_the_time_queues_the_job_again(runs: Runs) -> None:
    """SLURM counts in minutes, and sends the signal up to a minute early."""
    config = configuration(model__seconds=1.5, slurm={"time": "1", "signal": "USR2@25", "max_requeues": 20})
    job = runs.submit("short", config=config)
    while runs.wait_for_state(job, "PENDING", "COMPLETED", "FAILED", "TIMEOUT", seconds=120) == "PENDING":
        runs.release(job)
        runs.wait_for_state(job, "RUNNING")
    assert runs.status("short")["restarts"] >= 1
    runs.assert_undisturbed("short", "one")
    assert runs.repeated_steps("short") == []


def test_a_preempted_job_goes_on_when_there_is_room_again(runs: Runs) -> None:
    job = runs.submit("displaced")
    runs.wait_for_step("displaced", 4)
    urgent = ["--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 3"]
    runs.cluster.run(["sbatch", "--parsable", *urgent])
    runs.release(job)
    runs.wait_for_state(job, "COMPLETED")
    runs.assert_undisturbed("displaced", "one")
    assert runs.repeated_steps("displaced") == []


def test_a_job_whose_node_fails_goes_on_from_its_last_checkpoint(runs: Runs) -> None:
    job = runs.submit("orphaned")
    runs.wait_for_step("orphaned", 6)
    runs.cluster.kill_node()
    saved = runs.status("orphaned")["saved_step"]
    runs.cluster.wait_for(lambda: runs.cluster.node_state() not in ("mixed", "allocated"), "the node to be missed", 90)
    runs.cluster.start_node()
    time.sleep(3)  # a node refuses a job that it has been told to forget within the same second
    runs.release(job)
    runs.wait_for_state(job, "COMPLETED")
    runs.assert_undisturbed("orphaned", "one")
    assert saved >= 4
    assert set(runs.repeated_steps("orphaned")) <= set(range(saved + 1, saved + 5))


def rank_process(cluster: Cluster, job: str, rank: int) -> int:
    """The process of a job that has a rank, without its children."""
    wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode(), b"SUBMITIT_EXECUTOR=slurm"}
    found = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and wanted <= set(_environment(entry)) and b"submitit" in _read(entry / "cmdline")
    ]
    assert found, f"job {job} has no process {rank}"
    return min(found)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _environment(entry: Path) -> list[bytes]:
    return _read(entry / "environ").split(b"\0")


def resubmit_failed(runs: Runs, name: str, *words: str) -> None:
    """See a run called failed, queue it again, and see it end."""
    said = command(["escaip", "runs", "."], runs.folder, runs.cluster).stdout
    assert re.search(rf"{name}\s+failed", said), said
    said = command(["escaip", "resubmit", ".", f"--only={name}", *words], runs.folder, runs.cluster).stdout
    again = re.search(r"submitted as (\d+)", said)
    assert again, said
    runs.wait_for_state(again[1], "COMPLETED")


def test_one_of_two_processes_is_killed(runs: Runs) -> None:
    """The other ends soon, says whose end it was, and the run goes on from its last checkpoint when it is asked to."""
    job = runs.submit("widowed", "--num-gpus=2")
    runs.wait_for_step("widowed", 5)
    victim = rank_process(runs.cluster, job, 1)
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    assert runs.wait_for_state(job, "FAILED", "CANCELLED", "COMPLETED", seconds=60) == "FAILED"
    assert time.monotonic() - began < 45
    assert "task 1: Killed" in runs.log("widowed")  # in srun's words
    status = runs.status("widowed")
    assert status["state"] != "failed" or "process 1 of 2 has gone without a word" in status["why"]  # if it had time
    resubmit_failed(runs, "widowed")
    runs.assert_undisturbed("widowed", "two")


def test_a_job_that_is_killed_for_its_memory_goes_on_with_more(runs: Runs) -> None:
    config: dict[str, Any] = configuration(model__megabytes=2500, model__from_step=6)
    job = runs.submit("fat", config=config)
    state = runs.wait_for_state(job, "FAILED", "CANCELLED", "OUT_OF_MEMORY", "COMPLETED")
    assert state != "COMPLETED"
    resubmit_failed(runs, "fat", "--slurm-mem=6")
    runs.assert_undisturbed("fat", "one")


def test_a_second_job_in_a_run_folder_refuses(runs: Runs) -> None:
    slow = configuration(model__seconds=1.0)
    first = runs.submit("shared", config=slow)
    runs.wait_for_step("shared", 2)
    second = runs.submit("shared", config=slow)
    assert runs.wait_for_state(second, "FAILED", "COMPLETED") == "FAILED"
    assert f"SLURM job {first}" in runs.log("shared")
    assert "in use by process" in runs.log("shared")
    runs.wait_for_state(first, "COMPLETED")
    runs.assert_undisturbed("shared", "one")
