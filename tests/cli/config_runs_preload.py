"""What the process imports that runs are copies of."""

from __future__ import annotations

import escaip_fairchem  # noqa: F401 # isort: skip -- first: fairchem cannot be imported everywhere without it

import fairchem.core.models.equiformer_v2.equiformer_v2
import fairchem.core.trainers
import torch

import escaip_fairchem.plugin.launch  # noqa: F401

torch.set_num_threads(1)
