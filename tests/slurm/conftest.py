"""Clusters for the tests of this folder; without SLURM they fail in CI, and are skipped elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "plugin")]

from cluster import Cluster, missing_programs  # noqa: E402


@contextmanager
def running_cluster(first_job: int, **settings: int) -> Iterator[Cluster]:
    """A cluster within this block; one for each process that runs tests, with job numbers of its own."""
    missing = missing_programs()
    is_root = os.geteuid() == 0
    if missing or not is_root:
        remedy = "python tests/slurm/cluster.py install"
        reason = f"not installed: {', '.join(missing)} ({remedy})" if missing else "only root can start its daemons"
        if os.environ.get("CI"):
            pytest.fail(f"SLURM cannot be started: {reason}")
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short, for a socket's name
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    running = Cluster(folder, first_job=first_job + 1000 * worker, **settings)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A SLURM of one node, this machine."""
    with running_cluster(1) as found:
        yield found


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[Cluster]:
    """A SLURM of two nodes with names and addresses of their own, and two GPUs each, which do not exist."""
    with running_cluster(501, size=2, gpus=2) as found:
        yield found
