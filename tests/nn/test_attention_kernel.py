"""The attention kernel: where it is used, and in processes of their own, that it computes what plain attention does."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import escaip_fairchem
from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn.fast import mixing
from escaip_fairchem.nn.fast.mixing import wants_kernel
from escaip_fairchem.testing import batch, structures, tiny_predictor
from escaip_fairchem.testing.predictors import tiny_config

CASES = [Path(__file__).with_name(f"attention_kernel_{name}.py") for name in ("cases", "dropout_cases")]
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")


def run_cases(**variables: str) -> None:
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "PYTEST_ADDOPTS")
    }
    inherited["PYTHONPATH"] = str(Path(escaip_fairchem.__file__).parents[1])
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *map(str, CASES)],
        capture_output=True,
        text=True,
        env={**inherited, **variables},
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr


@needs_triton
@pytest.mark.slow
def test_the_kernel_in_the_interpreter():
    run_cases(TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_kernel_on_a_gpu():
    run_cases()


@pytest.fixture
def installed(monkeypatch):
    """Triton is found and does not interpret, whatever this environment has."""
    monkeypatch.setattr(mixing, "HAS_TRITON", True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


CUDA, CPU = torch.device("cuda"), torch.device("cpu")
OBSTACLES = [
    ({}, CPU, torch.float32, "it is for CUDA devices and the batch is on 'cpu': use a GPU"),
    ({}, CUDA, torch.float64, "it does not compute in torch.float64: use float32"),
    ({"max_neighbors": 65}, CUDA, torch.float32, "max_neighbors is 65 and it takes 64 at most: lower it"),
    ({"hidden_size": 258}, CUDA, torch.float32, "heads are 129 wide and it takes 128 at most: raise atten_num_heads"),
]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gpus_use_it_where_it_is_asked_for(dtype):
    assert wants_kernel(tiny_config(attention_kernel="auto"), CUDA, dtype)
    assert wants_kernel(tiny_config(attention_kernel="triton"), CUDA, dtype)
    assert not wants_kernel(tiny_config(), CUDA, dtype)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("changes", "device", "dtype", "problem"), OBSTACLES)
def test_where_it_cannot_run(changes, device, dtype, problem):
    """``auto`` avoids it there; who demands it is told why not, and what to do."""
    assert not wants_kernel(tiny_config(**changes, attention_kernel="auto"), device, dtype)
    with pytest.raises(ConfigError) as raised:
        wants_kernel(tiny_config(**changes, attention_kernel="triton"), device, dtype)
    assert str(raised.value) == f"attention_kernel: 'triton' cannot run, {problem}, or set attention_kernel: auto"


def test_without_triton(monkeypatch):
    monkeypatch.setattr(mixing, "HAS_TRITON", False)
    assert not wants_kernel(tiny_config(attention_kernel="auto"), CUDA, torch.float32)
    with pytest.raises(ConfigError, match="triton is not installed: pip install triton"):
        wants_kernel(tiny_config(attention_kernel="triton"), CUDA, torch.float32)


@pytest.mark.usefixtures("installed")
def test_only_fast_execution_uses_it():
    systems = batch([structures.copper()], torch.float32)
    tiny_predictor("direct", dtype=torch.float32, execution="plain", attention_kernel="triton")(systems)
    with pytest.raises(ConfigError, match="attention_kernel: 'triton' cannot run"):
        tiny_predictor("direct", dtype=torch.float32, attention_kernel="triton")(systems)


def test_an_unknown_kernel_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"attention_kernel: 'tritron' is unknown \(did you mean 'triton'\?\)"):
        tiny_config(attention_kernel="tritron")
