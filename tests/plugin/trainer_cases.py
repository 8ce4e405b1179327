"""A tiny data set, a tiny model with dropout, and trainers for them, shared by the tests of the trainer."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import escaip_fairchem  # isort: skip -- first: processes that tests start import fairchem by this module

import lmdb
import numpy as np
import torch
from ase import Atoms
from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from fairchem.core.common import distutils
from fairchem.core.preprocessing import AtomsToGraphs
from torch import nn

from escaip_fairchem.plugin.trainer import EScAIPForcesTrainer

SOURCE = Path(escaip_fairchem.__file__).parents[1]
HERE = Path(__file__).parent
SIZES = ((1, 2), (2, 2), (1, 3), (2, 3))


def rattled_slabs(count: int, seed: int) -> list[Atoms]:
    """Small copper slabs of different sizes with displaced atoms, EMT energies and forces, fixed bottom layers."""
    generator = np.random.default_rng(seed)
    slabs = []
    for index in range(count):
        width, layers = SIZES[index % len(SIZES)]
        slab = fcc111("Cu", (width, 2, layers), vacuum=5.0, orthogonal=True)
        slab.set_tags((slab.get_tags() < layers).astype(int))
        slab.set_constraint(FixAtoms(mask=slab.get_tags() == 0) if layers > 2 else [])
        slab.positions += generator.normal(scale=0.1, size=slab.positions.shape)
        slab.calc = EMT()
        slabs.append(slab)
    return slabs


def write_lmdb(path: Path, structures: list[Atoms], *, first_sid: int = 0) -> Path:
    """Write the classic OC20 format: pickled graphs without edges."""
    convert = AtomsToGraphs(r_energy=True, r_forces=True, r_distances=False, r_pbc=True, r_edges=False)
    database = lmdb.open(str(path), map_size=2**26, subdir=False, meminit=False, map_async=True)
    with database.begin(write=True) as transaction:
        for index, atoms in enumerate(structures):
            forces = atoms.get_forces(apply_constraint=False)
            graph = convert.convert(atoms)
            graph.forces = torch.tensor(forces, dtype=torch.float32)
            graph.sid = f"cu{first_sid + index}"
            graph.fid = index % 3
            transaction.put(f"{index}".encode("ascii"), pickle.dumps(graph, protocol=-1))
        transaction.put(b"length", pickle.dumps(len(structures), protocol=-1))
    database.close()
    return path


class TinyModel(nn.Module):
    """Energies and forces from elements and positions through dropout; no graph, nothing waits for the device."""

    def __init__(self, width: int = 8, dropout: float = 0.2, otf_graph: bool = True, poison: str = "") -> None:
        super().__init__()
        self.elements = nn.Embedding(100, width)
        self.mix = nn.Sequential(nn.Linear(width + 3, width), nn.SiLU(), nn.LayerNorm(width), nn.Dropout(dropout))
        self.energy = nn.Linear(width, 1, bias=False)
        self.push = nn.Linear(width, 3, bias=False)
        self.norm_like = nn.Parameter(torch.ones(1, width))
        self.weight = nn.Linear(width, width)  # 'weight' is the end of many other names.
        self.poison = poison

    def no_weight_decay(self) -> list[str]:
        return ["norm_like", "weight"]

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        features = torch.cat([self.elements(data.atomic_numbers.long()), torch.sin(data.pos)], dim=-1)
        hidden = self.weight(self.mix(features) * self.norm_like)
        energy = torch.zeros(data.natoms.numel(), dtype=hidden.dtype, device=hidden.device)
        energy = energy.index_add(0, data.batch, self.energy(hidden).squeeze(-1))
        return {"energy": energy, "forces": self.push(hidden)}


class EnergyModel(TinyModel):
    """Has no forces, nor parameters for them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        del self.push

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        self.push = torch.zeros_like  # what the parent computes and nobody wants
        return {"energy": super().forward(data)["energy"]}


class CountingModel(TinyModel):
    """Counts its passes in buffers, which it changes or exchanges, and moves the atoms of its batch in place."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        self.count += 1
        self.mean = 0.9 * self.mean + 0.1
        data.pos += 1.0
        data.pos.requires_grad_(True)
        return super().forward(data)


def config(train: Path, val: Path | None = None, test: Path | None = None, **changes: Any) -> dict[str, Any]:
    """Keyword arguments of a trainer. ``changes`` name keys with ``__`` between the levels."""
    settings: dict[str, Any] = {
        "task": {},
        "model": {"name": "trainer_cases.TinyModel"},
        "outputs": {"energy": {"level": "system"}, "forces": {"level": "atom"}},
        "dataset": {
            "train": {
                "src": str(train),
                "format": "lmdb",
                "transforms": {
                    "normalizer": {"energy": {"mean": 3.0, "stdev": 2.0}, "forces": {"mean": 0, "stdev": 0.5}}
                },
            },
            "val": {"src": str(val)} if val else {},
            "test": {"src": str(test)} if test else {},
        },
        "optimizer": {
            "batch_size": 4,
            "lr_initial": 0.01,
            "max_epochs": 2,
            "clip_grad_norm": 10,
            "ema_decay": 0.9,
            "optimizer_params": {"weight_decay": 0.01},
            "scheduler": "LambdaLR",
            "scheduler_params": {
                "lambda_type": "cosine", "warmup_factor": 0.2, "warmup_epochs": 0.5, "lr_min_factor": 0.1,
            },
        },
        "loss_functions": [
            {"energy": {"fn": "mae", "coefficient": 4}},
            {"forces": {"fn": "l2mae", "coefficient": 100}},
        ],
        "evaluation_metrics": {},
        "identifier": "case",
        "local_rank": 0,
        "print_every": 1,
        "seed": 1,
        "logger": "trainer_cases.RecordingLogger",
        "cpu": True,
    }  # fmt: skip
    for key, value in changes.items():
        place = settings
        *path, last = key.split("__")
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return settings


class RecordingLogger:
    """Keeps what a trainer logs; stops the run at a given step, as a killed process would."""

    stop_at: int | None = None

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.values: dict[tuple[str, int], dict[str, float]] = {}

    def log(self, update_dict: dict[str, Any], step: int, split: str = "") -> None:
        self.values[(split, step)] = dict(update_dict)
        if split == "train" and step == RecordingLogger.stop_at:
            raise KeyboardInterrupt

    def log_summary(self, summary_dict: dict[str, Any]) -> None:
        pass

    def mark_preempting(self) -> None:
        pass

    def losses(self, split: str = "train") -> dict[int, float]:
        return {step: values["loss"] for (name, step), values in self.values.items() if name == split}


def build(settings: dict[str, Any], folder: Path, kind: type = EScAIPForcesTrainer, **changes: Any) -> Any:
    """Build a trainer that writes below a folder."""
    return kind(**{**copy.deepcopy(settings), "run_dir": str(folder), **changes})


def single_process_group(folder: Path) -> None:
    """Start the process group that fairchem's command starts even for one process."""
    if not distutils.initialized():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)


def run_python(code: str, *arguments: Any, folder: Path, environment: dict[str, str] | None = None) -> Any:
    """Start Python with a program whose first argument is the folder of the tests."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, str(HERE), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: Any) -> str:
    """Wait for a program to succeed, and return what it printed."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-4000:]
    return str(output)
