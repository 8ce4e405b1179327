"""Jobs that are told to stop, or are stopped, go on exactly where they were: on a real SLURM."""

from __future__ import annotations

import time

import pytest
from cluster import Cluster
from slurm_cases import LAST, Runs, configuration, with_references

pytestmark = [pytest.mark.slow, pytest.mark.end_to_end]


@pytest.fixture(scope="module")
def runs(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return with_references(tmp_path_factory.mktemp("runs"), cluster)


def test_a_signal_before_the_end_queues_the_job_again(runs: Runs) -> None:
    """Loader processes get the signal as well."""
    job = runs.submit("warned", "--slurm-mem=8", config=configuration(optim__num_workers=2))
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
    """SLURM sends SIGTERM to all processes, waits, kills, and queues the job again by itself."""
    job = runs.submit("requeued", "--slurm-mem=8", config=configuration(optim__num_workers=2))
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
