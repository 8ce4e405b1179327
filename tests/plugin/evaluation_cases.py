"""A model whose predictions are known, and data sets with labels made for it."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import escaip_fairchem  # noqa: F401 # isort: skip -- before fairchem's modules

import lmdb
import torch
from torch import nn
from torch_geometric.data import Data

from escaip_fairchem.plugin.checkpoints import save_atomically

Atom = tuple[list[float], bool]


class KnownModel(nn.Module):
    """Energy 0.5 eV per atom, every force (0.1, 0, 0) eV/Å, stress 0; but for what `weight` adds, which is 0."""

    def __init__(self, otf_graph: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        forces = torch.tensor([0.1, 0.0, 0.0]).repeat(data.pos.shape[0], 1)
        return {
            "energy": 0.5 * data.natoms.float() + self.weight,
            "forces": forces + self.weight,
            "stress": torch.zeros(data.natoms.numel(), 9) + self.weight,
        }


def known_checkpoint(path: Path, **changes: Any) -> Path:
    """A checkpoint of that model; ``changes`` replace sections of its configuration."""
    config = {
        "trainer": "escaip_fairchem.EScAIPForcesTrainer",
        "model": {"name": "evaluation_cases.KnownModel"},
        "outputs": {"energy": {"level": "system"}, "forces": {"level": "atom"}},
        "dataset": {"format": "lmdb", "src": "nowhere"},
        "loss_functions": [{"energy": {"fn": "mae", "coefficient": 1}}],
        "evaluation_metrics": {},
        "optim": {"lr_initial": 0.1, "max_epochs": 1},
        "task": {},
        **changes,
    }
    content = {
        "state_dict": KnownModel().state_dict(), "config": config, "normalizers": {}, "elementrefs": {}, "amp": None,
    }  # fmt: skip
    save_atomically(content, path)
    return path


def structure(sid: str, energy: float | None, atoms: Sequence[Atom], **more: Any) -> Data:
    """A sample with the forces of its atoms, and whether each is fixed."""
    count = len(atoms)
    sample = Data(
        pos=torch.arange(3.0 * count).reshape(count, 3),
        cell=torch.eye(3)[None] * 20.0,
        pbc=torch.tensor([[True, True, True]]),
        atomic_numbers=torch.ones(count),
        tags=torch.zeros(count),
        natoms=count,
        fixed=torch.tensor([float(fixed) for _, fixed in atoms]),
        forces=torch.tensor([force for force, _ in atoms]),
        sid=sid,
        fid=0,
    )
    if energy is not None:
        sample.energy = energy
    for key, value in more.items():
        sample[key] = value
    return sample


def known_set(**more: Any) -> list[Data]:
    """Three structures, of which the last one has a fixed atom with a wild label.

    Errors of the energy: 0.01, 1 and 0.3 eV. Errors of the forces of free atoms: 0.02, 0.2 and twice 0.1 eV/Å, all in
    one component each. Cosines: 1, 0.1 / √0.0104, -1, 0, 1.
    """
    kinds = {key: list(values) for key, values in more.items()}
    rows = [
        ("a", 1.01, [([0.1, 0.0, 0.0], False), ([0.1, 0.02, 0.0], False)]),
        ("b", 1.5, [([-0.1, 0.0, 0.0], False)]),
        ("c", 1.2, [([0.0, 0.1, 0.0], False), ([0.1, 0.0, 0.0], False), ([9.0, 9.0, 9.0], True)]),
    ]
    return [
        structure(sid, energy, atoms, **{key: values[row] for key, values in kinds.items()})
        for row, (sid, energy, atoms) in enumerate(rows)
    ]


def write_samples(path: Path, samples: Sequence[Data]) -> Path:
    """Write the classic format."""
    database = lmdb.open(str(path), map_size=2**24, subdir=False, lock=False)
    with database.begin(write=True) as transaction:
        for row, sample in enumerate(samples):
            transaction.put(str(row).encode(), pickle.dumps(sample, protocol=-1))
        transaction.put(b"length", pickle.dumps(len(samples), protocol=-1))
    database.close()
    return path
