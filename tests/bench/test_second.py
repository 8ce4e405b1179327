"""fairchem v2's EScAIP, measured by another interpreter: here by scripts that only pretend to be one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from escaip_fairchem.bench.options import Options, Session
from escaip_fairchem.bench.second import SCRIPT, measure_elsewhere

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


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system cannot forget a peak")
def test_memory_is_counted_from_what_is_in_use_and_not_from_an_earlier_peak():
    """Importing fairchem v2 needs more for a moment than its model; the model's weights must count all the same."""
    code = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("script", {str(SCRIPT)!r})
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
block = bytearray(b"x") * 200_000_000
del block
base = script._resident_bytes("VmRSS")
script._forget_peak()
block = bytearray(b"x") * 50_000_000
print(script._resident_bytes("VmHWM") - base)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 50_000_000 <= int(process.stdout) < 60_000_000
