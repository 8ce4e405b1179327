"""Small structures with every peculiarity that a data set has to keep."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms


def labelled(atoms: Atoms, energy: float = -1.0, seed: int = 0, *, stress: bool = False) -> Atoms:
    """Attach random forces, and a stress where asked for."""
    random = np.random.default_rng(seed)
    results = {"energy": energy, "forces": random.normal(0.0, 0.5, (len(atoms), 3))}
    if stress:
        results["stress"] = random.normal(0.0, 0.01, 6)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def slab(seed: int = 0, **info: object) -> Atoms:
    """Six atoms, periodic along two vectors of a skewed cell, tagged, two of them fixed."""
    random = np.random.default_rng(seed)
    positions = np.array([[0, 0, 0], [2, 0, 0], [0, 2, 0], [2, 2, 0], [0, 0, 2], [1, 1, 3.5]], dtype=float)
    atoms = Atoms(
        "Cu5O",
        positions=positions + random.normal(0, 0.05, (6, 3)),
        cell=[[4, 0, 0], [1, 4.2, 0], [0, 0.5, 15]],
        pbc=[True, True, False],
        tags=[0, 0, 1, 1, 1, 2],
    )
    atoms.set_constraint(FixAtoms(indices=[0, 1]))
    atoms.info.update(info)
    return labelled(atoms, energy=-3.25 - 0.001 * seed, seed=seed, stress=True)


def molecule(seed: int = 0, **info: object) -> Atoms:
    """Water in no cell at all."""
    atoms = Atoms("OH2", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0.01 * seed]])
    atoms.info.update(info)
    return labelled(atoms, energy=-14.0 - 0.01 * seed, seed=seed)


def vasprun(energies: list[float]) -> str:
    """The parts of a vasprun.xml that carry a relaxation of two silicon atoms, the first one held in place."""
    cell = "<crystal><varray name='basis'><v>5 0 0</v><v>0 5 0</v><v>0 0 5</v></varray></crystal>"
    positions = "<varray name='positions'><v>0 0 0</v><v>0.3 0.3 0.3</v></varray>"
    steps = "".join(
        f"<calculation><scstep><energy><i name='e_fr_energy'>{energy}</i><i name='e_0_energy'>{energy}</i></energy>"
        f"</scstep><structure>{cell}{positions}</structure>"
        "<varray name='forces'><v>0.1 0 0</v><v>-0.1 0 0</v></varray>"
        "<varray name='stress'><v>10 0 0</v><v>0 20 0</v><v>0 0 30</v></varray>"
        f"<energy><i name='e_fr_energy'>{energy}</i></energy></calculation>"
        for energy in energies
    )
    return (
        "<modeling><kpoints><varray name='kpointlist'><v>0 0 0</v></varray><varray name='weights'><v>1</v></varray>"
        "</kpoints><parameters/><atominfo><array name='atoms'><set><rc><c>Si</c><c>1</c></rc><rc><c>Si</c><c>1</c></rc>"
        f"</set></array></atominfo><structure name='initialpos'>{cell}{positions}"
        "<varray name='selective'><v>F F F</v><v>T T T</v></varray></structure>"
        f"{steps}</modeling>"
    )
