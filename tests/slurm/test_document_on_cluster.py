"""The commands of docs/slurm.md, one after the other, as somebody who has never used the cluster types them."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cluster import Cluster
from slurm_cases import command

pytestmark = [pytest.mark.slow, pytest.mark.end_to_end]
ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "slurm.md"
INSTALLS = ("python3.11 ", ". .venv/bin/activate")
LESS_DATA = ["--n-train=24", "--n-val=4", "--n-test=4", "--formats=lmdb"]
NAME = r"\S+-first-\w+"
THIS_CLUSTER = ["--cpu", "optim.max_epochs=1"]
"""Its only partition has no GPUs."""


def commands(section: str) -> list[str]:
    """Those below a heading, broken lines joined, comments cut off."""
    (text,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.replace("\\\n", "").splitlines()]
    found = [line for line in lines if line and not line.startswith(INSTALLS)]
    assert found, section
    return found


@pytest.fixture(scope="module")
def folder(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the commands run: what a clone of the project has, and nothing else."""
    place = tmp_path_factory.mktemp("document")
    shutil.copytree(ROOT / "configs", place / "configs")
    yield place


def test_the_first_job(cluster: Cluster, folder: Path) -> None:
    make_data, copy, look, submit, watch = commands("The first job in five minutes")

    command([*shlex.split(make_data), *LESS_DATA], folder, None)

    _, example, own = shlex.split(copy)
    shutil.copy(folder / example, folder / own)
    site = yaml.safe_load((folder / own).read_text())["slurm"]
    assert {"partition", "account"} <= set(site)  # which the text tells to change
    (folder / own).write_text(yaml.safe_dump({"slurm": {"partition": "cpu", "time": "10", "mem": "4G"}}))

    said = command([*shlex.split(look), *THIS_CLUSTER], folder, cluster).stdout
    assert re.search(rf"^{NAME} +384,770 ", said, re.MULTILINE), said
    assert not (folder / "checkpoints").exists()

    found = command([*shlex.split(submit), *THIS_CLUSTER], folder, cluster)
    job = re.search(r"submitted as (\d+); log: (\S+)", found.stdout + found.stderr)
    assert job, found.stdout + found.stderr

    said = command(shlex.split(watch), folder, cluster).stdout  # ends with the training
    assert re.search(rf"^{NAME} +finished +{job[1]} .* 3/3", said, re.MULTILINE), said
    assert len(list(folder.glob("checkpoints/*-first-*/checkpoint.pt"))) == 1


def test_watching(cluster: Cluster, folder: Path) -> None:
    """After the first job."""
    for line in commands("Watching"):
        said = command(shlex.split(line), folder, cluster).stdout
        assert re.search(rf"^{NAME} +finished", said, re.MULTILINE), f"{line}\n{said}"
    assert (folder / "runs.csv").read_text().count("\n") == 2


def test_ready_sweeps(cluster: Cluster, folder: Path) -> None:
    """Up to their data, which nobody has here: everything else is right, and nothing is queued."""
    before = cluster.run(["squeue", "--noheader", "--states=all"]).stdout
    for line in commands("Sweeps"):
        said = command(shlex.split(line), folder, cluster, status=2).stderr
        complaints = [text for text in said.splitlines() if "error" in text.lower()]
        assert complaints, said
        assert all("data/oc20" in text for text in complaints), said
    assert cluster.run(["squeue", "--noheader", "--states=all"]).stdout == before
