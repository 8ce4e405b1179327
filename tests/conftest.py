"""What every test may rely on: fixed seeds, one thread, the reference data where they are kept."""

from __future__ import annotations

import os
import random
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and numpy start their pools

import numpy as np
import pytest
import torch

import escaip_fairchem  # noqa: F401 -- before any test imports fairchem, which cannot be imported everywhere without it

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other, and several tests run side by side

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Let every test draw the same random numbers, alone or after others."""
    random.seed(0)
    np.random.seed(0)  # the generator that libraries draw from
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference structures and outputs beside the project; tests that need it are skipped without."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data at {SHARED}")
    return SHARED
