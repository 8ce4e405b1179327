"""fairchem v2's EScAIP, measured by another interpreter: here by scripts that only pretend to be one."""

from __future__ import annotations

from pathlib import Path

import pytest

from escaip_fairchem.bench.options import Options, Session
from escaip_fairchem.bench.second import measure_elsewhere

TRACEBACK = 'Traceback (most recent call last):\n  File "/a/folder/of/mine.py", line 1\nIndexError: index 30 is out'


def interpreter(folder: Path, script: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "status", "reason"),
    [
        (f"echo '{TRACEBACK}' >&2; exit 3", "failed", "status 3: IndexError: index 30 is out"),
        ("exit 4", "failed", "status 4: it said nothing"),
        ('echo \'{"missing": "no fairchem here"}\' > "$2"', "not available", "no fairchem here"),
    ],
)
def test_how_it_ended_is_told_without_folders_of_the_machine(
    tmp_path: Path, script: str, status: str, reason: str
) -> None:
    options = Options(quick=True, fairchem2=interpreter(tmp_path, script))
    (outcome,) = measure_elsewhere(Session(options, show=lambda line: None), batches=1)
    assert (outcome.status, outcome.reason) == (status, reason)
