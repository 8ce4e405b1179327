"""Small files laid out exactly as benchmarks publish theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase.db import connect

SPICE_UNITS = {
    "conformations": "bohr",
    "dft_total_energy": "hartree",
    "formation_energy": "hartree",
    "dft_total_gradient": "hartree/bohr",
}


def spice_group(
    smiles: str | None,
    numbers: list[int],
    *,
    frames: int = 1,
    subset: tuple[str, ...] = ("a subset",),
    seed: int = 0,
    **replaced: Any,
) -> dict[str, Any]:
    """The datasets of one molecule; None as a replacement leaves one out."""
    random = np.random.default_rng(seed)
    line = np.arange(len(numbers))[:, None] * [0.0, 0.0, 2.0]
    group = {
        "atomic_numbers": np.array(numbers, dtype=np.int16),
        "conformations": (line + 0.01 * random.normal(size=(frames, len(numbers), 3))).astype(np.float32),
        "dft_total_energy": -40.0 + random.normal(0.0, 0.01, frames),
        "formation_energy": -0.5 + random.normal(0.0, 0.01, frames),
        "dft_total_gradient": random.normal(0.0, 0.01, (frames, len(numbers), 3)).astype(np.float32),
        "smiles": None if smiles is None else [smiles],
        "subset": list(subset),
        "mbis_charges": random.normal(0.0, 0.1, (frames, len(numbers), 1)).astype(np.float32),
    }
    return {name: value for name, value in {**group, **replaced}.items() if value is not None}


def write_spice(
    path: Path, groups: Mapping[str, Mapping[str, Any]], units: Mapping[str, str | None] = SPICE_UNITS
) -> Path:
    with h5py.File(path, "w") as file:
        for name, datasets in groups.items():
            group = file.create_group(name)
            for key, value in datasets.items():
                dataset = group.create_dataset(key, data=value)
                if units.get(key) is not None:
                    dataset.attrs["units"] = units[key]
    return path


def write_spice_2(path: Path) -> Path:
    """Version 2 of SPICE in little: more elements, molecules beside each other, and further sets and properties."""
    further = {"mayer_indices": np.zeros((2, 3, 3)), "scf_dipole": np.zeros((2, 3))}
    water = "[O:1]([H:2])[H:3]"
    groups = {
        "103914790": spice_group(
            "[C:1]([H:2])[H:3]",
            [6, 1, 1],
            frames=2,
            subset=("SPICE PubChem Set 10 Single Points Dataset v1.0",),
            seed=1,
        )
        | further,
        "boron": spice_group(
            "[B:1]([H:2])[H:3]", [5, 1, 1], frames=2, subset=("SPICE PubChem Boron Silicon v1.0",), seed=2
        ),
        "silicon": spice_group("[Si:1]([H:2])[H:3]", [14, 1, 1], subset=("SPICE PubChem Boron Silicon v1.0",), seed=3),
        "solvated": spice_group(
            f"[C:4]#[C:5].{water}", [8, 1, 1, 6, 6], subset=("SPICE Solvated PubChem Set 1 v1.0",), seed=4
        ),
        "water dimer": spice_group(
            f"{water}.[O:4]([H:5])[H:6]", [8, 1, 1, 8, 1, 1], frames=3, subset=("SPICE Water Clusters v1.0",), seed=5
        ),
        "qmugs": spice_group("[N:1]#[N:2]", [7, 7], subset=("QMugs",), seed=6),
        "ALA ligand": spice_group("[N:1].[O:2]", [7, 8], subset=("SPICE Amino Acid Ligand v1.0",), seed=7),
        "salt": spice_group("[Cl-:1].[K+:2]", [17, 19], subset=("SPICE Ion Pairs Single Points Dataset v1.2",), seed=8),
        "charged": spice_group("[N+:1].[O:2]", [7, 8], frames=2, subset=("SPICE Amino Acid Ligand v1.0",), seed=9),
    }
    return write_spice(path, groups)


def mptrj_entry(material: str, *, energy: float = -10.0, **replaced: Any) -> dict[str, Any]:
    """One calculation: sodium chloride's primitive cell."""
    matrix = [[0.0, 2.8, 2.8], [2.8, 0.0, 2.8], [2.8, 2.8, 0.0]]
    sites = [
        {"species": [{"element": "Na", "occu": 1}], "abc": [0.0, 0.0, 0.0], "xyz": [0.0, 0.0, 0.0], "label": "Na"},
        {"species": [{"element": "Cl", "occu": 1}], "abc": [0.5, 0.5, 0.5], "xyz": [2.8, 2.8, 2.8], "label": "Cl"},
    ]
    entry = {
        "structure": {
            "@module": "pymatgen.core.structure",
            "@class": "Structure",
            "charge": 0,
            "lattice": {"matrix": matrix, "a": 3.96, "alpha": 60.0},
            "sites": sites,
        },
        "uncorrected_total_energy": energy,
        "corrected_total_energy": energy - 0.5,
        "energy_per_atom": (energy - 0.5) / 2,
        "ef_per_atom": -1.0,
        "e_per_atom_relaxed": energy / 2,
        "ef_per_atom_relaxed": -1.0,
        "force": [[0.1, 0.0, 0.0], [-0.1, 0.0, 0.0]],
        "stress": [[10.0, 1.0, 2.0], [1.0, -20.0, 3.0], [2.0, 3.0, 30.0]],
        "magmom": [0.25, -0.5],
        "bandgap": 5.0,
        "mp_id": material,
    }
    return {**entry, **replaced}


def sgdml_arrays(frames: int = 6, **replaced: Any) -> dict[str, Any]:
    """Carbon monoxide in sGDML's layout, kcal/mol."""
    random = np.random.default_rng(1)
    arrays = {
        "z": np.array([6, 8], dtype=np.uint8),
        "R": np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.2]]) + random.normal(0.0, 0.02, (frames, 2, 3)),
        "E": -70000.0 + random.normal(0.0, 2.0, (frames, 1)),
        "F": random.normal(0.0, 20.0, (frames, 2, 3)),
        "name": np.array(b"co"),
        "theory": np.array("PBE+MBD"),
        "type": np.array(b"d"),
        "md5": np.array(b"00"),
    }
    return {name: value for name, value in {**arrays, **replaced}.items() if value is not None}


def rmd17_arrays(frames: int = 6) -> dict[str, Any]:
    """The same in rMD17's layout."""
    arrays = sgdml_arrays(frames)
    return {
        "nuclear_charges": arrays["z"],
        "coords": arrays["R"],
        "energies": arrays["E"].reshape(-1),
        "forces": arrays["F"],
        "old_indices": 50 * np.arange(frames)[::-1] + 3,
        "old_energies": np.zeros(frames),
        "old_forces": np.zeros_like(arrays["F"]),
    }


def stored(folder: Path) -> dict[tuple[str, int], Any]:
    """Everything stored in a data set or a split of it, as ASE's database gives it, by identifier."""
    found = {}
    for path in sorted(folder.rglob("*.aselmdb")):
        with connect(path, readonly=True, use_lock_file=False) as database:
            for number in database.ids:
                atoms = database.get(id=number).toatoms(add_additional_information=True)
                data = atoms.info.pop("data")
                found[data["sid"], data["fid"]] = (atoms, data)
    return found
