"""A process's place in a SLURM job, as torch wants to know it, and the roll call when one is lost."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_cases import finish, run_python

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.plugin.launch import hold_signals
from escaip_fairchem.plugin.launch.cluster_job import PORTS, is_cluster_job, join_job, node_name
from escaip_fairchem.plugin.launch.roll_call import end_in_words, is_about_connections

CONFIG = {"submit": True, "cpu": True, "world_size": 4}


def slurm(**changes: str) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "123456", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
        "SLURM_CPUS_PER_TASK": "1", **changes,
    }  # fmt: skip


@pytest.fixture(autouse=True)
def _threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_several_nodes():
    environment = slurm()
    config = join_job(CONFIG, environment, ["n1", "n2"])
    assert config == {**CONFIG, "submit": False}
    assert CONFIG["submit"]
    wanted = {"MASTER_ADDR": "n1", "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": ""}
    assert wanted.items() <= environment.items()
    assert int(environment["MASTER_PORT"]) in PORTS
    assert "GLOO_SOCKET_IFNAME" not in environment


def test_one_node_needs_no_name():
    environment = slurm()
    join_job(CONFIG, environment, ["n1"])
    assert environment["MASTER_ADDR"] == "127.0.0.1"
    assert environment["GLOO_SOCKET_IFNAME"] == "lo"


def test_jobs_of_an_array_meet_nowhere():
    ports = []
    for number in range(123456, 123466):
        environment = slurm(SLURM_JOB_ID=str(number))
        join_job(CONFIG, environment, ["n1"])
        ports.append(environment["MASTER_PORT"])
    assert len(set(ports)) == 10


def test_what_a_site_sets_stays():
    environment = slurm(MASTER_PORT="4711", MASTER_ADDR="fast-n1", GLOO_SOCKET_IFNAME="ib0")
    join_job(CONFIG, environment, ["n1"])
    found = [environment[key] for key in ("MASTER_PORT", "MASTER_ADDR", "GLOO_SOCKET_IFNAME")]
    assert found == ["4711", "fast-n1", "ib0"]


def test_a_process_that_sees_one_gpu_takes_that(monkeypatch: pytest.MonkeyPatch):
    for visible, of_the_job, expected in ((8, "8", "1"), (1, "8", "0"), (1, "", "0")):
        monkeypatch.setattr("torch.cuda.device_count", lambda visible=visible: visible)
        environment = slurm(SLURM_GPUS_ON_NODE=of_the_job)
        join_job({**CONFIG, "cpu": False}, environment, ["n1"])
        assert environment["LOCAL_RANK"] == expected


@pytest.mark.parametrize(
    ("visible", "of_the_job", "wanted"),
    [
        (
            0,
            "2",
            r"n7: process 3 sees no GPU \(torch .*, CUDA_VISIBLE_DEVICES='0,1'\); .*--slurm-exclude, or add --cpu",
        ),
        (2, None, r"process 3 is number 2 there, counted from 0, but sees 2 GPUs of 2 .*--num-gpus"),
        (2, "2", r"process 3 is number 2 there, counted from 0, but sees 2 GPUs of 2 .*--num-gpus"),
        (1, "1", r"process 3 is number 2 there, counted from 0, but sees 1 GPUs of 1 .*--num-gpus"),
    ],
)
def test_a_process_without_a_gpu_of_its_own_says_so(
    monkeypatch: pytest.MonkeyPatch, visible: int, of_the_job: str | None, wanted: str
):
    """torch speaks of a ProcessGroupNCCL, of an invalid ordinal, or of a duplicate."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: visible)
    environment = slurm(SLURM_LOCALID="2", CUDA_VISIBLE_DEVICES="0,1", SLURMD_NODENAME="n7")
    if of_the_job:
        environment["SLURM_GPUS_ON_NODE"] = of_the_job
    with pytest.raises(ConfigError, match=wanted):
        join_job({**CONFIG, "cpu": False}, environment, ["n1"])
    join_job(CONFIG, environment, ["n1"])


def test_gpus_of_other_jobs_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    """What a job of two GPUs sees with `--gpu-bind=none` on a node of eight."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    environment = slurm(SLURM_GPUS_ON_NODE="2")
    with pytest.raises(ConfigError, match=r"sees 8 GPUs, but 2 of them are this job's.*leave out `gpu_bind: none`"):
        join_job({**CONFIG, "cpu": False}, environment, ["n1"])
    for changes in ({"SLURM_GPUS_ON_NODE": "8"}, {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, {}):
        environment = slurm(**changes)
        join_job({**CONFIG, "cpu": False}, environment, ["n1"])
        assert environment["LOCAL_RANK"] == "1"


_HIDDEN = """
import os, sys
sys.path.insert(0, sys.argv[1])
import trainer_cases
from escaip_fairchem.plugin.launch import runner
runner.Runner.__call__ = lambda self, config: print(os.environ["CUDA_VISIBLE_DEVICES"] or "none")
runner.run_rank({"cpu": sys.argv[2] == "cpu", "world_size": 2})
"""


@pytest.mark.parametrize(("device", "seen"), [("cpu", "none"), ("gpu", "0,1")])
def test_processes_for_processors_see_no_gpus(tmp_path: Path, device: str, seen: str):
    """fairchem would take the GPU of a process's number, also with --cpu."""
    process = run_python(_HIDDEN, device, folder=tmp_path, environment={"CUDA_VISIBLE_DEVICES": "0,1"})
    assert finish(process).splitlines()[-1] == seen


def test_processors_are_shared_out():
    join_job(CONFIG, slurm(SLURM_CPUS_PER_TASK="2"), ["n1"])
    assert torch.get_num_threads() == 2
    join_job(CONFIG, slurm(SLURM_CPUS_PER_TASK="3", OMP_NUM_THREADS="7"), ["n1"])
    assert torch.get_num_threads() == 2  # what the environment says was in force from the start


def test_another_number_of_processes_is_refused():
    with pytest.raises(ConfigError, match="make 4 processes, but SLURM started 2"):
        join_job(CONFIG, slurm(SLURM_NTASKS="2"), ["n1"])


def test_a_shell_within_a_job_is_no_job_of_ours():
    assert not is_cluster_job(slurm())
    assert is_cluster_job(slurm(SUBMITIT_EXECUTOR="slurm"))


_HELD = """
import signal, sys, time
print("started", flush=True)
time.sleep(1.0)
signal.signal(signal.SIGUSR2, lambda *_: print("handled", flush=True))
sys.path.insert(0, sys.argv[1])
import hold_signals
hold_signals.let_signals_in()
print("ended", flush=True)
"""


def test_signals_wait_until_they_are_let_in():
    folder = str(Path(hold_signals.__file__).parent)
    words = [sys.executable, "-S", hold_signals.__file__, sys.executable, "-u", "-c", _HELD, folder]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGUSR2)
    said, _ = process.communicate(timeout=30)
    assert (said, process.returncode) == ("handled\nended\n", 0)


def test_one_process_has_its_own_words_alone():
    assert end_in_words(ValueError("no")) == "ValueError: no"
    assert end_in_words(ConfigError("no")) == "no"


def test_nodes_have_slurms_names(monkeypatch: pytest.MonkeyPatch):
    """By which options name them; what a machine calls itself may be longer."""
    monkeypatch.setattr("socket.gethostname", lambda: "n1.cluster.example.org")
    assert node_name(slurm(SLURMD_NODENAME="n1")) == "n1"
    assert node_name(slurm()) == "n1.cluster.example.org"


def test_which_errors_are_about_connections():
    assert is_about_connections(RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
    assert is_about_connections(RuntimeError("NCCL communicator was aborted on rank 1"))
    assert not is_about_connections(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_about_connections(ConfigError("connection closed"))


_ROLL = """
import json, os, sys, time
sys.path.insert(0, sys.argv[1])
import trainer_cases
import torch
from escaip_fairchem.errors import DataError
from escaip_fairchem.plugin.launch.roll_call import end_in_words
rank, lost, how = int(sys.argv[2]), int(sys.argv[4]), sys.argv[5]
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[3], "GLOO_SOCKET_IFNAME": "lo"}
torch.distributed.init_process_group("gloo", rank=rank, world_size=3)
torch.distributed.barrier()
if rank == lost and how == "killed":
    os.kill(os.getpid(), 9)
began = time.monotonic()
try:
    if rank == lost:
        raise DataError("sid 7 has no cell")
    for _ in range(100):
        torch.distributed.all_reduce(torch.ones(3))
        time.sleep(0.05)
except Exception as error:
    hosts = ["a", "b", "b"] if lost == 2 else ["a", "a", "a"]
    print(json.dumps([end_in_words(error, hosts, 3.0), time.monotonic() - began]), flush=True)
if rank == lost:
    time.sleep(1.0 if rank else 6.0)  # the first one keeps the words
    os._exit(2)
time.sleep(2.0)
os._exit(0)
"""


def on_three(lost: int, how: str, folder: Path) -> list[Any]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return [run_python(_ROLL, rank, port, lost, how, folder=folder) for rank in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [2, 1, 0])
def test_the_others_name_who_is_lost(lost: int, tmp_path: Path):
    for rank, process in enumerate(on_three(lost, "killed", tmp_path)):
        if rank == lost:
            process.communicate(timeout=60)
            assert process.returncode == -signal.SIGKILL
            continue
        words, seconds = json.loads(finish(process).splitlines()[-1])
        where = " (on b)" if lost == 2 else ""
        assert words.startswith(f"process {lost} of 3{where} has gone without a word (killed")
        assert "whereupon here: " in words
        assert seconds < 20


@pytest.mark.slow
@pytest.mark.parametrize("lost", [2, 1])
def test_the_others_repeat_why_one_has_ended(lost: int, tmp_path: Path):
    """It ends by itself, with a message for the user, and nobody is called killed."""
    for rank, process in enumerate(on_three(lost, "by itself", tmp_path)):
        said, errors = process.communicate(timeout=60)
        words, _ = json.loads(said.splitlines()[-1])
        where = " (on b)" if lost == 2 else ""
        expected = "sid 7 has no cell" if rank == lost else f"process {lost}{where}: sid 7 has no cell"
        assert words == expected, errors[-2000:]
