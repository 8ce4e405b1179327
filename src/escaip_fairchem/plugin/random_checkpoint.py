"""A checkpoint of a model that has learned nothing, for what needs a checkpoint but no knowledge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from escaip_fairchem.plugin.checkpoints import save_atomically
from escaip_fairchem.plugin.import_checkpoint import TRAINER
from escaip_fairchem.plugin.models import EScAIP


def save_random_checkpoint(settings: Mapping[str, Any], path: Path, *, seed: int, stress: bool = False) -> Path:
    """Write a checkpoint that ``OCPCalculator`` opens, for energies and direct forces.

    Args:
        settings: Keys of :class:`escaip_fairchem.nn.BackboneConfig`.
        path: File to write. Its folder must exist.
        seed: Decides the parameters.
        stress: Whether forces and stresses are the energy's derivatives instead.
    """
    heads: dict[str, Any] = {}
    if stress:
        settings = {**settings, "direct_force": False}
        heads = {"heads": {"energy_forces": {"regress_stress": True}}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EScAIP(backbone=dict(settings), **heads)
    config = {
        "trainer": TRAINER,
        "model": {"name": "escaip_fairchem.EScAIP", "backbone": dict(settings), **heads},
        "outputs": {
            "energy": {"level": "system"},
            "forces": {"level": "atom"},
            **({"stress": {"level": "system"}} if stress else {}),
        },
        "dataset": {"src": None, "format": "lmdb"},
        "loss_functions": [{"energy": {"fn": "mae"}}, {"forces": {"fn": "l2mae"}}],
        "evaluation_metrics": {"metrics": {"energy": ["mae"], "forces": ["mae"]}, "primary_metric": "forces_mae"},
        "optim": {"batch_size": 1, "eval_batch_size": 1, "num_workers": 0, "lr_initial": 1e-4, "max_epochs": 1},
        "task": {},
        "cmd": {"seed": seed},
        "amp": False,
    }
    content = {
        "epoch": 0,
        "step": 0,
        "state_dict": {f"module.{name}": tensor for name, tensor in model.state_dict().items()},
        "config": config,
        "ema": None,
        "amp": None,
        "normalizers": {},
        "elementrefs": {},
    }
    save_atomically(content, path)
    return path
