"""Files in exactly the formats in which OC20 and OC22 are published, small enough to work out by hand."""

from __future__ import annotations

import lzma
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from fairchem_side import data_set_content
from torch_geometric.data import Data

LATTICE = "6.0 0.0 0.0 0.0 6.0 0.0 0.0 0.0 20.0"
PROPERTIES = "species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3"


def frame(energy: float | str, *, number: int = 0, atoms: Sequence[str] | None = None) -> str:
    """One frame: two copper atoms, the lower one held in place, and an oxygen atom above."""
    lines = atoms or [
        f"Cu 0.0 0.0 {5 + number / 1000:.8f} F 0 0.5 0.25 -1.0",
        "Cu 0.0 0.0 7.5 T 1 0.0 0.0 3.0",
        "O 1.0 1.0 9.0 T 2 0.0 -4.0 0.0",
    ]
    head = f'Lattice="{LATTICE}" Properties={PROPERTIES} energy={energy} free_energy={energy} pbc="T T T"'
    return "\n".join([str(len(lines)), head, *lines, ""])


def unlabelled(number: int = 0) -> str:
    """A frame of a test set."""
    head = f'Lattice="{LATTICE}" Properties={PROPERTIES.removesuffix(":forces:R:3")} pbc="T T T"'
    return f"2\n{head}\nCu 0.0 0.0 {5 + number / 1000:.8f} F 0\nO 1.0 1.0 9.0 T 2\n"


def write_raw(folder: Path, name: str, frames: Iterable[str], lines: Iterable[str]) -> None:
    """Write a pair of raw files."""
    folder.mkdir(parents=True, exist_ok=True)
    with lzma.open(folder / f"{name}.extxyz.xz", "wt") as file:
        file.writelines(frames)
    with lzma.open(folder / f"{name}.txt.xz", "wt") as file:
        file.writelines(f"{line}\n" for line in lines)


def write_simple(folder: Path, name: str, sid: int, count: int = 3) -> None:
    """Write a pair of raw files with frames of one system: energies −10, −11, …, reference −8.5."""
    frames = [frame(-10.0 - number, number=number) for number in range(count)]
    write_raw(folder, name, frames, [f"random{sid},frame{number},-8.5" for number in range(count)])


def graph(sid: int, fid: int, numbers: Sequence[int], energy: float | None, **more: Any) -> Data:
    """A record as OC20's own preprocessing makes it, without periodicity."""
    count = len(numbers)
    data = Data(
        pos=torch.arange(3.0 * count).view(count, 3) % 7,
        cell=torch.eye(3).view(1, 3, 3) * 9,
        atomic_numbers=torch.tensor(numbers, dtype=torch.float32),
        natoms=count,
        tags=torch.tensor([0] * (count - 1) + [2]),
        fixed=torch.tensor([1.0] * (count - 1) + [0.0]),
        sid=sid,
        fid=fid,
    )
    if energy is not None:
        data.y = energy
        data.force = torch.full((count, 3), 0.5)
    for name, value in more.items():
        setattr(data, name, value)
    return data


def preprocessed(sid: int, fid: int, energy: float) -> Data:
    """A record as fairchem-core 1.10's own preprocessing makes it: copper below, held in place, and oxygen above."""
    from fairchem.core.preprocessing import AtomsToGraphs

    atoms = Atoms("CuO", [[0.0, 0.0, 1.0], [0.0, 0.5, 3.0 + fid / 8]], cell=[6.0, 6.0, 20.0], pbc=True, tags=[0, 2])
    atoms.set_constraint(FixAtoms([0]))
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=[[0.5, 0.25, -1.0], [0.0, -4.0, 3.0]])
    data = AtomsToGraphs(r_energy=True, r_forces=True, r_fixed=True, r_edges=False).convert(atoms)
    data.tags = torch.tensor(atoms.get_tags())
    data.sid, data.fid = sid, fid
    return data


def oc22_graph(sid: int, fid: int, numbers: Sequence[int], energy: float | None, **more: Any) -> Data:
    """A record of OC22."""
    return graph(sid, fid, numbers, energy, **{"oc22": 1, "nads": 1, **more})


def as_version_1(data: Data) -> Data:
    """The same graph as version 1 of torch_geometric pickled it: fields in the object itself, None among them."""
    old = Data.__new__(Data)
    old.__dict__.update(data.to_dict(), edge_attr=None, x=None)
    return old


def write_lmdb(path: Path, records: Sequence[Any], *, length: int | None = -1) -> None:
    """Write prebuilt records; ``length=None`` leaves that key out, -1 is the right one, bytes are stored as such."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        lmdb.open(str(path), map_size=1 << 24, subdir=False, lock=False) as environment,
        environment.begin(write=True) as writing,
    ):
        for key, record in enumerate(records):
            if record is not None:
                value = record if isinstance(record, bytes) else pickle.dumps(record, protocol=-1)
                writing.put(str(key).encode(), value)
        if length is not None:
            writing.put(b"length", pickle.dumps(len(records) if length == -1 else length, protocol=-1))


def decoded_content(folder: Path) -> dict[str, Any]:
    """Everything a command wrote, comparable; rows are decoded, because torch pickles addresses in memory with them."""
    content = data_set_content(folder)
    for name in [name for name in content if name.endswith(".lmdb")]:
        for key, value in content[name].items():
            record = pickle.loads(value)
            plain = record.to_dict() if isinstance(record, Data) else {"": record}
            content[name][key] = {field: np.asarray(item).tolist() for field, item in plain.items()}
    return content


def natoms_of(folder: Path) -> list[int]:
    with np.load(folder / "metadata.npz") as saved:
        return [int(count) for count in saved["natoms"]]
