"""The network runs where nothing but torch and e3nn is to be had."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import escaip_fairchem

PROGRAM = """
import sys
for name in ("fairchem", "torch_geometric", "torch_scatter", "torch_sparse", "ase", "lmdb", "yaml", "matplotlib",
             "triton"):
    sys.modules[name] = None
import torch
from escaip_fairchem.testing import KINDS, batch, structures, tiny_predictor
for kind in KINDS:
    outputs = tiny_predictor(kind)(batch([structures.copper(), structures.molecule()]))
    assert all(value.isfinite().all() for value in outputs.values())
others = {name.split(".")[1] for name in sys.modules if name.startswith("escaip_fairchem.")}
assert others <= {"nn", "testing", "errors", "_imports"}, others
"""


def test_the_network_runs_without_fairchem_torch_geometric_and_ase():
    environment = {**os.environ, "PYTHONPATH": str(Path(escaip_fairchem.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, check=False
    )
    assert process.returncode == 0, process.stderr
