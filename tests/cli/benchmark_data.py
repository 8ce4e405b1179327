"""Every benchmark's data in little: the published files in ``raw/<benchmark>``, and the commands that convert them.

Folders are those of docs/benchmarks.md, so that the conversions put data where the configurations expect them.
"""

from __future__ import annotations

import io
import json
import lzma
import pickle
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import ase.io
import ase.units
import h5py
import lmdb
import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.calculators.emt import EMT
from torch_geometric.data import Data

from escaip_fairchem.cli.main import main

OC20_SETS = ("id", "ood_ads", "ood_cat", "ood_both")
OC20_ARCHIVES = ("s2ef_train_2M", "s2ef_train_all", "s2ef_md", *(f"s2ef_val_{name}" for name in OC20_SETS))
OC20_TEST_ARCHIVE = "s2ef_test_lmdbs/test_data/s2ef/all"
OC22_FOLDERS = ("train", "val_id", "val_ood", "test_id", "test_ood")
OC22_ARCHIVE = "s2ef_total_train_val_test_lmdbs/data/oc22/s2ef-total"
MD22 = ("ac_ala3_nhme", "dha", "stachyose", "at_at", "at_at_cg_cg", "buckyball_catcher", "double_walled_nanotube")
FRAMES, TEST_FRAMES = 8, 2


def rattled(atoms: Atoms, generator: np.random.Generator) -> Atoms:
    """The atoms with small displacements and EMT's labels."""
    atoms = atoms.copy()
    atoms.positions += generator.normal(0.0, 0.08, atoms.positions.shape)
    atoms.calc = EMT()
    return atoms


def adsorbates(count: int, seed: int) -> list[Atoms]:
    """Slabs with an oxygen atom, the lowest layer fixed, tagged as in OC20."""
    generator = np.random.default_rng(seed)
    found = []
    for index in range(count):
        atoms = fcc111(["Cu", "Pt", "Ni"][index % 3], (2, 1, 3), vacuum=5.0)
        atoms.set_tags([0 if tag == 3 else 1 for tag in atoms.get_tags()])
        add_adsorbate(atoms, Atoms("O", tags=[2]), 1.4, "ontop")
        atoms.pbc = True
        found.append(rattled(atoms, generator))
    return found


def write_oc20(raw: Path) -> None:
    """Raw S2EF files, in archives that hold a folder of their own name; the test sets are LMDB files."""
    for seed, archive in enumerate(OC20_ARCHIVES):
        folder = raw / archive / archive
        folder.mkdir(parents=True)
        write_s2ef(folder, adsorbates(FRAMES, seed))
    for seed, name in enumerate(OC20_SETS):
        folder = raw / OC20_TEST_ARCHIVE / f"test_{name}"
        folder.mkdir(parents=True)
        write_graphs(folder / "data.0000.lmdb", adsorbates(TEST_FRAMES, 50 + seed), labelled=False)


def write_s2ef(folder: Path, structures: Sequence[Atoms]) -> None:
    """One file of frames and one of their ids and reference energies, compressed."""
    frames, lines = [], []
    for index, atoms in enumerate(structures):
        columns = zip(atoms.get_chemical_symbols(), atoms.positions, atoms.get_tags(), atoms.get_forces(), strict=True)
        rows = [
            f"{symbol} {numbers(position)} {'T' if tag > 0 else 'F'} {tag} {numbers(force)}"
            for symbol, position, tag, force in columns
        ]
        energy = atoms.get_potential_energy()
        cell = numbers(atoms.cell.array.reshape(-1))
        frames.append(
            f'{len(atoms)}\nLattice="{cell}" Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 '
            f'energy={energy:.8f} free_energy={energy:.8f} pbc="T T T"\n' + "\n".join(rows) + "\n"
        )
        lines.append(f"random{100 + index // 2},frame{index % 2},{energy - 0.5 * index:.8f}\n")
    (folder / "0.extxyz.xz").write_bytes(lzma.compress("".join(frames).encode()))
    (folder / "0.txt.xz").write_bytes(lzma.compress("".join(lines).encode()))


def numbers(values: Iterable[float]) -> str:
    """As extended XYZ has them."""
    return " ".join(f"{value:.8f}" for value in values)


def write_oc22(raw: Path) -> None:
    """OC22's LMDB files, with the marks ``oc22`` and ``nads``."""
    for seed, split in enumerate(OC22_FOLDERS):
        (raw / OC22_ARCHIVE / split).mkdir(parents=True)
        is_test = split.startswith("test")
        structures = adsorbates(TEST_FRAMES if is_test else FRAMES, 10 + seed)
        file = raw / OC22_ARCHIVE / split / "data.0000.lmdb"
        write_graphs(file, structures, labelled=not is_test, oc22=1, nads=1)


def write_graphs(path: Path, structures: Sequence[Atoms], *, labelled: bool, **marks: int) -> None:
    """Graphs as Open Catalyst publishes them: total energies in ``y``, forces in ``force``, neither in test sets."""
    environment = lmdb.open(str(path), map_size=2**26, subdir=False, lock=False)
    with environment.begin(write=True) as transaction:
        for index, atoms in enumerate(structures):
            sample = Data(
                pos=torch.tensor(atoms.positions, dtype=torch.float32),
                cell=torch.tensor(np.array(atoms.cell), dtype=torch.float32)[None],
                atomic_numbers=torch.tensor(atoms.numbers, dtype=torch.float32),
                natoms=len(atoms),
                tags=torch.tensor(atoms.get_tags()),
                fixed=torch.tensor(atoms.get_tags() == 0, dtype=torch.float32),
                sid=index,
                fid=0,
                **marks,
            )
            if labelled:
                sample.y = float(atoms.get_potential_energy()) - 30.0 * len(atoms)
                sample.force = torch.tensor(atoms.get_forces(), dtype=torch.float32)
            transaction.put(str(index).encode(), pickle.dumps(sample, protocol=-1))
        transaction.put(b"length", pickle.dumps(len(structures), protocol=-1))
    environment.close()


def molecules(names: Sequence[str], count: int, seed: int) -> dict[str, list[Atoms]]:
    """Conformations of molecules with EMT's labels."""
    generator = np.random.default_rng(seed)
    return {name: [rattled(molecule(name), generator) for _ in range(count)] for name in names}


def write_spice(raw: Path) -> None:
    """SPICE's HDF5 file."""
    raw.mkdir(parents=True)
    smiles = {"CH4": "[C:1]([H:2])([H:3])([H:4])[H:5]", "NH3": "[N:1]([H:2])([H:3])[H:4]", "H2O": "[O:1]([H:2])[H:3]"}
    smiles |= {"C2H2": "[C:1]#[C:2]", "CH3OH": "[C:1][O:2]", "CO2": "[O:1]=[C:2]=[O:3]"}
    with h5py.File(raw / "SPICE.hdf5", "w") as file:
        for number, (name, conformers) in enumerate(molecules(list(smiles), 6, 20).items()):
            group = file.create_group(name)
            group["atomic_numbers"] = conformers[0].numbers.astype(np.int16)
            group["smiles"] = np.array([smiles[name].encode()], dtype=object)
            group["subset"] = np.array([[b"SPICE PubChem Set 1", b"SPICE Dipeptides"][number % 2]], dtype=object)
            energies = np.array([atoms.get_potential_energy() for atoms in conformers]) / ase.units.Hartree
            per_bohr = ase.units.Bohr / ase.units.Hartree
            positions = np.array([atoms.positions for atoms in conformers]) / ase.units.Bohr
            gradients = -np.array([atoms.get_forces() for atoms in conformers]) * per_bohr
            for key, values, units in (
                ("conformations", positions.astype(np.float32), "bohr"),
                ("dft_total_energy", energies - 100.0, "hartree"),
                ("formation_energy", energies, "hartree"),
                ("dft_total_gradient", gradients.astype(np.float32), "hartree/bohr"),
            ):
                group[key] = values
                group[key].attrs["units"] = units


def write_mptrj(raw: Path) -> None:
    """MPtrj's JSON file."""
    raw.mkdir(parents=True)
    generator = np.random.default_rng(30)
    content: dict[str, dict[str, dict[str, object]]] = {}
    for number in range(6):
        for frame in range(3):
            atoms = rattled(bulk(["Cu", "Ag", "Al"][number % 3], cubic=number % 2 == 0), generator)
            energy, kilobar = atoms.get_potential_energy(), 0.1 * ase.units.GPa
            xx, yy, zz, yz, xz, xy = -atoms.get_stress() / kilobar
            content.setdefault(f"mp-{number}", {})[f"mp-{number}-0-{frame}"] = {
                "structure": pymatgen_structure(atoms),
                "uncorrected_total_energy": energy,
                "corrected_total_energy": energy + 0.1,
                "energy_per_atom": energy / len(atoms),
                "ef_per_atom": 0.0,
                "e_per_atom_relaxed": 0.0,
                "ef_per_atom_relaxed": 0.0,
                "force": atoms.get_forces().tolist(),
                "stress": [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]],
                "magmom": None,
                "bandgap": 0.0,
                "mp_id": f"mp-{number}",
            }
    (raw / "MPtrj.json").write_text(json.dumps(content))


def pymatgen_structure(atoms: Atoms) -> dict[str, object]:
    """A structure as pymatgen writes it."""
    sites = [
        {"species": [{"element": symbol, "occu": 1}], "abc": abc.tolist(), "xyz": xyz.tolist(), "label": symbol}
        for symbol, abc, xyz in zip(
            atoms.get_chemical_symbols(), atoms.get_scaled_positions(wrap=False), atoms.positions, strict=True
        )
    ]
    return {
        "@module": "pymatgen.core.structure",
        "@class": "Structure",
        "charge": 0,
        "lattice": {"matrix": atoms.cell.array.tolist()},
        "sites": sites,
    }


def write_md22(raw: Path) -> None:
    """MD22's npz files: one small molecule stands in for all seven."""
    raw.mkdir(parents=True)
    per_kcal = ase.units.mol / ase.units.kcal
    conformers = molecules(["CH3OH"], 12, 40)["CH3OH"]
    for name in MD22:
        np.savez(
            raw / f"{name}.npz",
            z=conformers[0].numbers,
            R=np.array([atoms.positions for atoms in conformers]),
            E=np.array([[atoms.get_potential_energy()] for atoms in conformers]) * per_kcal,
            F=np.array([atoms.get_forces() for atoms in conformers]) * per_kcal,
            name=np.array(name),
        )


def write_wbm(raw: Path) -> None:
    """Crystals to be relaxed, with the ids of Matbench-Discovery, each in a file of its archive."""
    raw.mkdir(parents=True)
    with zipfile.ZipFile(raw / "wbm-initial-atoms.extxyz.zip", "w") as archive:
        for number, atoms in enumerate((bulk("Cu", cubic=True), bulk("Al")), start=1):
            atoms.info["material_id"] = f"wbm-1-{number}"
            text = io.StringIO()
            ase.io.write(text, atoms, format="extxyz")
            archive.writestr(f"wbm-1-{number}.extxyz", text.getvalue())


WRITERS = {
    "oc20": write_oc20,
    "oc22": write_oc22,
    "spice": write_spice,
    "mptrj": write_mptrj,
    "md22": write_md22,
    "wbm": write_wbm,
}
"""What puts the published files of a benchmark into a folder."""

CONVERSIONS = [
    "data oc20 raw/oc20/s2ef_train_2M data/oc20/s2ef/2M/train",
    "data oc20 raw/oc20/s2ef_train_all raw/oc20/s2ef_md data/oc20/s2ef/all_md/train",
    "data oc20 raw/oc20/s2ef_val_id data/oc20/s2ef/all/val_id",
    "data oc22 raw/oc22 data/oc22/s2ef-total",
    "data spice raw/spice/SPICE.hdf5 data/spice",
    "data mptrj raw/mptrj/MPtrj.json data/mptrj",
    *(f"data md22 raw/md22/{name}.npz data/md22 --split 8 2 2" for name in MD22),
    "data demo data/demo --n-train 8 --n-val 2 --n-test 2 --formats lmdb",
]
"""Words after ``escaip``, with paths relative to the folder of all benchmarks."""


def convert_everything(folder: Path) -> None:
    """Write all published files below a folder, the working folder, and convert them."""
    for name, write in WRITERS.items():
        write(folder / "raw" / name)
    for words in CONVERSIONS:
        assert main(words.split()) == 0, words
