"""A tiny data set, a configuration of a stock model, and the real command in a process of its own."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
import yaml
from ase.build import add_adsorbate, fcc111
from ase.calculators.emt import EMT
from torch_geometric.data import Data

import escaip_fairchem

SOURCE = Path(escaip_fairchem.__file__).parents[1]
OURS = ["-m", "escaip_fairchem.cli.fairchem"]
UPSTREAM = ["-c", "import escaip_fairchem; from fairchem.core._cli import main; main()"]


def structures(number: int, seed: int) -> list[Data]:
    """Small rattled slabs with an oxygen atom, labelled by ASE's EMT."""
    generator = np.random.default_rng(seed)
    found = []
    for index in range(number):
        atoms = fcc111(["Cu", "Pt", "Ni"][index % 3], (2, 2, 2), vacuum=6.0)
        add_adsorbate(atoms, "O", 1.5, "ontop")
        atoms.pbc = True
        atoms.positions += generator.normal(0, 0.1, atoms.positions.shape)
        atoms.calc = EMT()
        found.append(
            Data(
                pos=torch.tensor(atoms.positions, dtype=torch.float32),
                cell=torch.tensor(np.array(atoms.cell), dtype=torch.float32)[None],
                atomic_numbers=torch.tensor(atoms.numbers, dtype=torch.float32),
                pbc=torch.tensor(atoms.pbc),
                natoms=len(atoms),
                tags=torch.tensor(atoms.get_tags()),
                fixed=torch.zeros(len(atoms)),
                energy=float(atoms.get_potential_energy()),
                forces=torch.tensor(atoms.get_forces(), dtype=torch.float32),
                sid=index,
                fid=index,
            )
        )
    return found


def write_lmdb(path: Path, data: Sequence[Data]) -> None:
    """Write structures in the format of OC20's files."""
    environment = lmdb.open(str(path), map_size=2**26, subdir=False, lock=False)
    with environment.begin(write=True) as transaction:
        for index, item in enumerate(data):
            transaction.put(str(index).encode(), pickle.dumps(item, protocol=-1))
        transaction.put(b"length", pickle.dumps(len(data), protocol=-1))
    environment.close()


def schnet_config() -> dict[str, Any]:
    """A complete configuration of fairchem's SchNet on `train.lmdb` and `val.lmdb` in the working folder."""
    return {
        "trainer": "ocp",
        "logger": "tensorboard",
        "dataset": {
            "train": {
                "format": "lmdb",
                "src": "train.lmdb",
                "transforms": {
                    "normalizer": {"energy": {"mean": 1.0, "stdev": 2.0}, "forces": {"mean": 0.0, "stdev": 2.0}}
                },
            },
            "val": {"src": "val.lmdb"},
            "test": {"src": "val.lmdb"},
            "relax": {"src": "val.lmdb"},
        },
        "task": {
            "prediction_dtype": "float32",
            "relaxation_steps": 2,
            "relaxation_fmax": 0.01,
            "relax_opt": {"maxstep": 0.04, "memory": 10, "damping": 1.0, "alpha": 70.0, "traj_dir": None},
        },
        "outputs": {
            "energy": {"shape": 1, "level": "system"},
            "forces": {"irrep_dim": 1, "level": "atom", "train_on_free_atoms": True, "eval_on_free_atoms": True},
        },
        "loss_functions": [{"energy": {"fn": "mae", "coefficient": 1}}, {"forces": {"fn": "l2mae", "coefficient": 10}}],
        "evaluation_metrics": {"metrics": {"energy": ["mae"], "forces": ["mae"]}, "primary_metric": "forces_mae"},
        "model": {
            "name": "schnet",
            "hidden_channels": 16,
            "num_filters": 16,
            "num_interactions": 2,
            "num_gaussians": 10,
            "cutoff": 5.0,
            "use_pbc": True,
            "regress_forces": True,
        },
        "optim": {
            "batch_size": 2,
            "eval_batch_size": 2,
            "num_workers": 0,
            "lr_initial": 0.001,
            "optimizer": "AdamW",
            "optimizer_params": {"amsgrad": True},
            "scheduler": "ReduceLROnPlateau",
            "mode": "min",
            "factor": 0.8,
            "patience": 3,
            "max_epochs": 1,
            "ema_decay": 0.99,
            "clip_grad_norm": 10,
        },
    }


def prepare(folder: Path, config: dict[str, Any] | None = None) -> Path:
    """Put data sets and a configuration into a folder.

    Returns:
        The folder.
    """
    write_lmdb(folder / "train.lmdb", structures(6, seed=0))
    write_lmdb(folder / "val.lmdb", structures(3, seed=1))
    (folder / "config.yml").write_text(yaml.safe_dump(config or schnet_config()))
    return folder


def run(command: Sequence[str], *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, without GPUs."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "COLUMNS": "200",
    }
    return subprocess.run(
        [sys.executable, "-W", "ignore", *command, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=500,
    )
