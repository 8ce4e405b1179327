"""What the process imports that runs are copies of."""

from __future__ import annotations

import escaip_fairchem  # isort: skip -- first: fairchem cannot be imported everywhere without it

import importlib

import torch

for name in ("fairchem.core.models.equiformer_v2.equiformer_v2", "fairchem.core.trainers"):
    importlib.import_module(name)
importlib.import_module(f"{escaip_fairchem.__name__}.plugin.launch")
torch.set_num_threads(1)
# e3nn's scripts would be optimised anew in every process, which takes longer than the run itself.
torch._C._jit_set_profiling_mode(False)
