"""From the command line into the queue of a real SLURM: single runs, arrays, refusals, and looking at them."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from cluster import Cluster
from slurm_cases import LAST, Runs, command, configuration

pytestmark = [pytest.mark.slow, pytest.mark.end_to_end]
QUICK = configuration(model__seconds=0.05)


@pytest.fixture(scope="module")
def runs(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), cluster)


def submitted(text: str) -> list[str]:
    """SLURM's names of jobs."""
    found = re.search(r"submitted as (.*); log:", text)
    assert found, text
    return found[1].split(", ")


def test_a_sweep_becomes_an_array_with_a_limit(runs: Runs) -> None:
    """Two rates, one job at a time; the table before, the table meanwhile, the best at the end."""
    (runs.folder / "sweep.yml").write_text(yaml.safe_dump({"optim": {"lr_initial": [0.01, 0.001]}}))
    (runs.folder / "base.yml").write_text(yaml.safe_dump({**QUICK, "slurm": {"concurrent_jobs": 1, "time": "10"}}))
    words = ["fairchem", "main", "--config-yml=base.yml", "--sweep-yml=sweep.yml", "--identifier=rates", "--cpu"]
    names = ["rates-sweep-lr_initial=0.01", "rates-sweep-lr_initial=0.001"]

    planned = command([*words, "--dry-run"], runs.folder, runs.cluster).stdout
    assert all(name in planned for name in names)
    assert runs.cluster.run(["squeue", "--noheader", "--name=rates"]).stdout == ""

    found = command([*words, "--submit", "--slurm-mem=2", "--print-every=1"], runs.folder, runs.cluster)
    first, second = submitted(found.stdout + found.stderr)
    assert first.partition("_")[::2] == (second.partition("_")[0], "0")
    runs.wait_for_step(names[0], 2)
    assert runs.job_state(second) == "PENDING"
    said = command(["escaip", "runs", "."], runs.folder, runs.cluster).stdout
    assert re.search(rf"{re.escape(names[0])}\s+running\s+\S*{first}", said), said
    assert re.search(rf"{re.escape(names[1])}\s+queued .*JobArrayTaskLimit", said), said

    for job in (first, second):
        runs.wait_for_state(job, "COMPLETED")
    said = command(["escaip", "runs", ".", "--best=forces_mae", "--csv=runs.csv"], runs.folder, runs.cluster).stdout
    assert all(re.search(rf"{re.escape(name)}\s+finished .*30/30", said) for name in names), said
    with (runs.folder / "runs.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    errors = [float(row["metrics.forces_mae"]) for row in rows]
    assert errors == sorted(errors)
    assert {row["run"] for row in rows} == set(names)
    refused = command([*words, "--submit"], runs.folder, runs.cluster, status=2).stderr
    assert refused.count("escaip resubmit") == 2
    nothing = command(["escaip", "resubmit", "."], runs.folder, runs.cluster).stdout
    assert nothing.count("finished, left alone") == 2


def test_what_slurm_refuses_is_one_message(runs: Runs) -> None:
    (runs.folder / "refused.yml").write_text(yaml.safe_dump(QUICK))
    words = ["fairchem", "main", "--config-yml=refused.yml", "--submit", "--timestamp-id=refused"]
    said = command([*words, "--cpu", "--slurm-partition=nosuch"], runs.folder, runs.cluster, status=2).stderr
    assert re.search(r"error: SLURM refuses the job: invalid partition specified: nosuch; .*nvalid partition", said), (
        said
    )
    assert "Traceback" not in said
    said = command(words, runs.folder, runs.cluster, status=2).stderr  # without --cpu it asks for a GPU
    assert re.search(r"error: SLURM refuses the job: .*(GRES|gres|node configuration)", said), said
    assert not runs.checkpoints("refused").exists()
    assert runs.cluster.run(["squeue", "--noheader", "--states=all", "--name=escaip"]).stdout.count("refused") == 0


def test_a_failing_run_says_why(runs: Runs) -> None:
    """A label that is not a number, which a message for the user names."""
    config = configuration(dataset__train__transforms={"normalizer": {"energy": {"mean": float("nan"), "stdev": 1.0}}})
    job = runs.submit("failing", config=config)
    assert runs.wait_for_state(job, "FAILED", "COMPLETED") == "FAILED"
    status = runs.status("failing")
    assert status["state"] == "failed"
    assert "not finite" in status["why"]
    said = command(["escaip", "runs", "."], runs.folder, runs.cluster).stdout
    assert re.search(r"failing\s+failed .*not finite", said), said


def test_data_that_may_only_be_read(runs: Runs, tmp_path: Path) -> None:
    """As data sets of a group are: on a file system that is mounted read-only."""
    (runs.folder / "read_only").mkdir()
    (tmp_path / "train.lmdb").write_bytes((runs.folder / "train.lmdb").read_bytes())
    mounted = runs.folder / "read_only"
    subprocess.run(["mount", "--bind", tmp_path, mounted], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", mounted], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (mounted / "new").touch()
        for workers in (0, 2):
            config = configuration(
                model__seconds=0.0, dataset__train__src="read_only/train.lmdb", optim__num_workers=workers
            )
            name = f"read_only_{workers}"
            job = runs.submit(name, "--slurm-mem=8", config=config)  # loader processes count
            runs.wait_for_state(job, "COMPLETED")
            assert max(runs.losses(name)) == LAST
    finally:
        subprocess.run(["umount", mounted], check=True)
    assert runs.losses("read_only_0") == runs.losses("read_only_2")
