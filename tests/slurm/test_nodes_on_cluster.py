"""Trainings on two nodes, which have names and addresses of their own: on a real SLURM."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
import torch
import yaml
from cluster import Cluster
from slurm_cases import LAST, Runs, command, configuration, rank_process, resubmit_failed

pytestmark = [pytest.mark.slow, pytest.mark.end_to_end]
SITE = Path(__file__).parents[2] / "configs/slurm/gpus.site.yml"


@pytest.fixture(scope="module")
def runs(two_nodes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A folder with two undisturbed trainings on this machine: on two processes, and on four."""
    found = Runs(tmp_path_factory.mktemp("runs"), two_nodes)
    found.train_here("two", "--num-gpus=2")
    found.train_here("four", "--num-gpus=4")
    assert max(found.losses("two")) == LAST // 2
    return found


def places(runs: Runs, job: str) -> dict[int, str]:
    """Nodes of a job's processes, by their rank."""
    text = "".join(file.read_text() for file in (runs.folder / "logs" / job).glob("*_log.out"))
    return {int(rank): node for node, rank in re.findall(r"hostname=(\w+), .*global_rank=(\d+)\(", text)}


def test_two_processes_on_each_of_two_nodes_stop_after_the_same_step(runs: Runs) -> None:
    job = runs.submit("stopped", "--num-gpus=2", "--num-nodes=2")
    runs.wait_for_step("stopped", 3)
    runs.cluster.run(["scancel", "--signal=USR2", job])
    runs.wait_for_state(job, "PENDING")
    assert 3 <= runs.status("stopped")["saved_step"] < max(runs.losses("four"))
    runs.release(job)
    runs.wait_for_state(job, "COMPLETED")
    assert places(runs, job) == {0: "node1", 1: "node1", 2: "node2", 3: "node2"}
    runs.assert_undisturbed("stopped", "four")
    assert runs.repeated_steps("stopped") == []
    assert runs.status("stopped")["processes"] == 4


def test_a_requeued_job_goes_on_on_two_nodes(runs: Runs) -> None:
    """SLURM sends SIGTERM to the processes of both."""
    job = runs.submit("requeued", "--num-gpus=1", "--num-nodes=2")
    runs.wait_for_step("requeued", 3)
    runs.cluster.run(["scontrol", "requeue", job])
    runs.release(job)
    runs.wait_for_state(job, "COMPLETED")
    assert places(runs, job) == {0: "node1", 1: "node2"}
    runs.assert_undisturbed("requeued", "two")
    assert runs.repeated_steps("requeued") == []


@pytest.mark.parametrize("failing", ["node1", "node2"])
def test_one_of_two_nodes_fails(runs: Runs, failing: str) -> None:
    """SLURM queues the job again, wherever the node was that went; no process of the other stays behind.

    The others notice before SLURM does, and end; NCCL aborts them. If the job ended then, it had failed for good.
    """
    name = f"without_{failing}"
    job = runs.submit(name, "--num-gpus=1", "--num-nodes=2")
    runs.wait_for_step(name, 6)
    rank = 1 if failing == "node1" else 0
    survivor = rank_process(runs.cluster, job, rank)
    runs.cluster.kill_node(failing)
    if failing == "node2":
        os.kill(survivor, signal.SIGABRT)
    saved = runs.status(name)["saved_step"]
    runs.cluster.wait_for(lambda: runs.cluster.node_state(failing) not in ("mixed", "allocated"), "a missed node", 90)
    runs.cluster.wait_for(lambda: not Path(f"/proc/{survivor}").exists(), "the other process to end", 90)
    runs.wait_for_state(job, "PENDING")
    said = (runs.folder / "logs" / job / f"{job}_{rank}_log.err").read_text()
    assert ("process 0 of 2 (on node1) has gone without a word" in said) == (failing == "node1")
    runs.cluster.start_node(failing)
    runs.release(job)
    runs.wait_for_state(job, "COMPLETED")
    runs.assert_undisturbed(name, "two")
    assert saved >= 4
    assert set(runs.repeated_steps(name)) <= set(range(saved + 1, saved + 5))


def test_a_process_of_the_second_node_is_killed(runs: Runs) -> None:
    """The message says where it was, so that `--slurm-exclude` can leave that node out."""
    job = runs.submit("widowed", "--num-gpus=1", "--num-nodes=2")
    runs.wait_for_step("widowed", 5)
    os.kill(rank_process(runs.cluster, job, 1), signal.SIGKILL)
    assert runs.wait_for_state(job, "FAILED", "CANCELLED", "COMPLETED", seconds=60) == "FAILED"
    assert "process 1 of 2 (on node2) has gone without a word" in runs.status("widowed")["why"]
    resubmit_failed(runs, "widowed")
    runs.assert_undisturbed("widowed", "two")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here, which the tests' SLURM does not know")
def test_gpus_are_asked_for_and_handed_out(runs: Runs) -> None:
    """By the example for GPUs, of a cluster whose GPUs are none, which every process says of its own."""
    seen = {"together": ["0,1", "0,1"], "each": ["0", "1"]}
    jobs = {name: submit_for_gpus(runs, name, {"gpu_bind": "single:1"} if name == "each" else {}) for name in seen}
    for name, job in jobs.items():
        asked = runs.cluster.run(["scontrol", "show", "job", job]).stdout
        for wanted in ("Partition=gpu", "NumNodes=2", "NumTasks=4", "gpu:2", "Features=a100", "TimeLimit=2-00:00:00"):
            assert wanted in asked, asked
        assert runs.wait_for_state(job, "FAILED", "COMPLETED") == "FAILED"
        errors = [file.read_text() for file in sorted((runs.folder / "logs" / job).glob("*_log.err"))]
        pattern = r"(node\d): process (\d) sees no GPU .*CUDA_VISIBLE_DEVICES='(.*)'\)"
        found = {match.groups() for text in errors for match in re.finditer(pattern, text)}
        assert found, runs.printed(job)  # srun ends the others with the first
        nodes = ["node1", "node1", "node2", "node2"]
        assert found <= {(nodes[rank], str(rank), seen[name][rank % 2]) for rank in range(4)}
    said = command(["escaip", "runs", "."], runs.folder, runs.cluster).stdout
    for name in jobs:
        assert re.search(rf"{name}\s+failed .*node\d: process \d sees no GPU", said), said


def submit_for_gpus(runs: Runs, name: str, options: dict[str, str]) -> str:
    """Submit a training for two GPUs on each of two nodes; returns its job."""
    slurm = {"mem_per_gpu": "1G", "cpus_per_task": 1, "setup": ["export NCCL_DEBUG=WARN"], **options}
    (runs.folder / f"{name}.yml").write_text(yaml.safe_dump(configuration(slurm=slurm)))
    words = ["fairchem", "main", f"--config-yml={name}.yml", f"--slurm-yml={SITE}", f"--timestamp-id={name}"]
    said = command([*words, "--submit", "--num-gpus=2", "--num-nodes=2"], runs.folder, runs.cluster).stdout
    job = re.search(r"submitted as (\d+);", said)
    assert job, said
    return job[1]
