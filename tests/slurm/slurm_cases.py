"""Tiny trainings for jobs on a real cluster: a model whose steps take their time, a logger that tests can read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import escaip_fairchem  # isort: skip -- first: jobs import fairchem by this module

import torch
import yaml
from cluster import Cluster
from trainer_cases import TinyModel, rattled_slabs, write_lmdb

HERE = Path(__file__).parent
SOURCE = Path(escaip_fairchem.__file__).parents[1]
STEPS_PER_EPOCH, EPOCHS = 10, 3
LAST = STEPS_PER_EPOCH * EPOCHS


class SlowModel(TinyModel):
    """Takes some time for every step of a training, from some step on memory, and at that step waits for a file."""

    def __init__(
        self, seconds: float = 0.0, megabytes: int = 0, from_step: int = 0, wait_for: str = "", **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.seconds, self.megabytes, self.from_step, self.wait_for = seconds, megabytes, from_step, wait_for
        self.steps, self.hoard = 0, b""

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        if self.training:
            time.sleep(self.seconds)
            self.steps += 1
            if self.steps == self.from_step:
                self.hoard = b"x" * (self.megabytes * 2**20)
                while self.wait_for and not Path(self.wait_for).exists():
                    time.sleep(0.05)
        return super().forward(data)


class LineLogger:
    """Appends what it is told as lines of JSON to ``values.jsonl`` in the run's folder of logs."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.path = Path(config["cmd"]["logs_dir"]) / "values.jsonl"

    def log(self, update_dict: dict[str, Any], step: int, split: str = "") -> None:
        with self.path.open("a") as stream:
            stream.write(json.dumps({"split": split, "step": step, "loss": update_dict["loss"]}) + "\n")

    def log_summary(self, summary_dict: dict[str, Any]) -> None:
        """Nothing reads it."""

    def mark_preempting(self) -> None:
        """Nothing reads it."""


def write_data(folder: Path) -> None:
    """Data sets for the configurations below."""
    write_lmdb(folder / "train.lmdb", rattled_slabs(2 * STEPS_PER_EPOCH, 0))
    write_lmdb(folder / "val.lmdb", rattled_slabs(6, 1))


def configuration(**changes: Any) -> dict[str, Any]:
    """A training of 30 steps on one process, 10 per epoch. ``changes`` name keys with ``__`` between the levels."""
    settings: dict[str, Any] = {
        "trainer": "escaip_fairchem.EScAIPForcesTrainer",
        "logger": "slurm_cases.LineLogger",
        "model": {"name": "slurm_cases.SlowModel", "seconds": 0.1},
        "outputs": {"energy": {"level": "system"}, "forces": {"level": "atom"}},
        "dataset": {
            "train": {
                "src": "train.lmdb",
                "format": "lmdb",
                "transforms": {
                    "normalizer": {"energy": {"mean": 3.0, "stdev": 2.0}, "forces": {"mean": 0, "stdev": 0.5}}
                },
            },
            "val": {"src": "val.lmdb"},
        },
        "optim": {
            "batch_size": 2,
            "num_workers": 0,
            "lr_initial": 0.01,
            "max_epochs": EPOCHS,
            "clip_grad_norm": 10,
            "ema_decay": 0.9,
            "checkpoint_every": 4,
            "scheduler": "LambdaLR",
            "scheduler_params": {
                "lambda_type": "cosine", "warmup_factor": 0.2, "warmup_epochs": 0.5, "lr_min_factor": 0.1,
            },
        },
        "loss_functions": [
            {"energy": {"fn": "mae", "coefficient": 4}},
            {"forces": {"fn": "l2mae", "coefficient": 100}},
        ],
    }  # fmt: skip
    for key, value in changes.items():
        place = settings
        *path, last = key.split("__")
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return settings


def environment(cluster: Cluster | None) -> dict[str, str]:
    """Of commands and, as SLURM hands it on, of jobs."""
    paths = [str(SOURCE), str(HERE), str(HERE.parent / "plugin"), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
    return {**os.environ, **own, **(cluster.environment if cluster else {})}


def command(
    words: Sequence[str], folder: Path, cluster: Cluster | None, *, status: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run ``fairchem …`` or ``escaip …`` as a user would, and see how it ends."""
    module = {"fairchem": "escaip_fairchem.cli.fairchem", "escaip": "escaip_fairchem.cli.main"}[words[0]]
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module, *words[1:]],
        cwd=folder,
        env=environment(cluster),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert found.returncode == status, found.stdout[-3000:] + found.stderr[-3000:]
    return found


class Runs:
    """A folder with data, in which runs are submitted and looked at."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster = folder, cluster
        write_data(folder)

    def submit(self, name: str, *words: str, config: dict[str, Any] | None = None) -> str:
        """Submit a training; returns SLURM's name of its job."""
        (self.folder / f"{name}.yml").write_text(yaml.safe_dump(config or configuration()))
        words = ("--submit", "--slurm-mem=2", *self._flags(name), *words)
        found = command(["fairchem", "main", *words], self.folder, self.cluster)
        match = re.search(r"submitted as (\S+);", found.stdout + found.stderr)
        assert match, found.stdout + found.stderr
        return match[1]

    def train_here(self, name: str, *words: str, config: dict[str, Any] | None = None, status: int = 0) -> str:
        """The same training on this machine, undisturbed; returns what it printed."""
        (self.folder / f"{name}.yml").write_text(yaml.safe_dump(config or configuration(model__seconds=0.0)))
        found = command(["fairchem", "main", *self._flags(name), *words], self.folder, None, status=status)
        return found.stdout + found.stderr

    def _flags(self, name: str) -> list[str]:
        return ["--config-yml", f"{name}.yml", "--cpu", "--print-every=1", "--timestamp-id", name]

    def losses(self, name: str, split: str = "train") -> dict[int, float]:
        """By step; where a step was repeated, its last loss."""
        path = self.folder / "logs" / "slurm_cases.LineLogger" / name / "values.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        return {line["step"]: line["loss"] for line in lines if line["split"] == split}

    def repeated_steps(self, name: str) -> list[int]:
        """Steps that were taken more than once."""
        path = self.folder / "logs" / "slurm_cases.LineLogger" / name / "values.jsonl"
        steps = [line["step"] for line in map(json.loads, path.read_text().splitlines()) if line["split"] == "train"]
        return sorted({step for step in steps if steps.count(step) > 1})

    def checkpoints(self, name: str) -> Path:
        return self.folder / "checkpoints" / name

    def status(self, name: str) -> dict[str, Any]:
        path = self.checkpoints(name) / "status.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def step(self, name: str) -> int:
        """Steps so far, as logged."""
        return max(self.losses(name), default=0)

    def wait_for_step(self, name: str, step: int) -> None:
        self.cluster.wait_for(lambda: self.step(name) >= step, f"step {step} of {name}\n{self.log(name)}", seconds=90)

    def wait_for_state(self, job: str, *states: str, seconds: float = 90) -> str:
        """Wait until SLURM has a job in one of the states."""
        ends = {*states, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL"}
        self.cluster.wait_for(lambda: self.job_state(job) in ends, f"job {job} to be {states}", seconds=seconds)
        state = self.job_state(job)
        assert state in states, f"job {job} is {state}, wanted {states}\n{self.printed(job)}"
        return state

    def job_state(self, job: str) -> str:
        words = ["squeue", "--noheader", "--array", "--states=all", "--format=%T", "--jobs", job]
        return self.cluster.run(words, check=False).stdout.strip()

    def release(self, job: str) -> None:
        """Spare a requeued job the two minutes that SLURM has it wait."""
        self.cluster.wait_for(lambda: self.job_state(job) == "PENDING", f"job {job} to wait", seconds=60)
        time.sleep(2)  # a node refuses a job that it was told to forget within the same second, and the job fails
        self.cluster.run(["scontrol", "update", f"JobId={job}", "StartTime=now"])

    def log(self, name: str) -> str:
        """What the jobs of a run have printed."""
        job = (
            json.loads(path.read_text())["job"]
            if (path := self.checkpoints(name) / "submission.json").is_file()
            else "*"
        )
        return self.printed(job)

    def printed(self, job: str) -> str:
        """What a job, or all, have printed."""
        files = sorted((self.folder / "logs" / job).glob("*_log.*"))
        return "\n".join(f"== {file.name}\n{file.read_text()[-3000:]}" for file in files)

    def assert_undisturbed(self, name: str, reference: str) -> None:
        """Losses of every step and of every validation are those of another run, to the bit."""
        assert self.job_is_finished(name), f"{self.status(name)}\n{self.log(name)}"
        for split in ("train", "val"):
            assert self.losses(name, split) == self.losses(reference, split)
        assert self.losses(name)

    def job_is_finished(self, name: str) -> bool:
        return self.status(name).get("state") == "finished"


def rank_process(cluster: Cluster, job: str, rank: int) -> int:
    """The process of a job that has a rank, without its children."""
    array, _, index = job.partition("_")
    own = [f"SLURM_ARRAY_JOB_ID={array}", f"SLURM_ARRAY_TASK_ID={index}"] if index else [f"SLURM_JOB_ID={job}"]
    own += [f"SLURM_PROCID={rank}", f"SLURM_CONF={cluster.environment['SLURM_CONF']}"]
    wanted = {b"SUBMITIT_EXECUTOR=slurm", *(entry.encode() for entry in own)}
    found = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and wanted <= set(_environment(entry)) and _is_python(entry)
    ]
    assert found, f"job {job} has no process {rank}"
    return min(found)


def _is_python(entry: Path) -> bool:
    """Whether a process runs submitit's part of a job, and is not srun, whose command line names that as well."""
    words = _read(entry / "cmdline").split(b"\0")
    return words[0].endswith(b"python") and b"submitit.core._submit" in words


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


def with_references(folder: Path, cluster: Cluster) -> Runs:
    """A folder with two undisturbed trainings: ``one`` on one process, ``two`` on two."""
    found = Runs(folder, cluster)
    found.train_here("one")
    found.train_here("two", "--num-gpus=2")
    assert max(found.losses("one")) == LAST
    assert max(found.losses("two")) == LAST // 2
    return found
