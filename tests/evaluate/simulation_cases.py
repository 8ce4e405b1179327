"""Structures, potentials and the commands for the tests of evaluations by simulation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE

from escaip_fairchem.cli.evaluate_simulations import add_parsers
from escaip_fairchem.cli.main import main
from escaip_fairchem.cli.reporting import run_reporting
from escaip_fairchem.evaluate.langevin import LangevinOptions, run_langevin
from escaip_fairchem.evaluate.potentials import CalculatorPotential, Potential
from escaip_fairchem.evaluate.relaxation_pool import RelaxationOptions, RelaxationPool, Relaxed
from escaip_fairchem.evaluate.stability import StabilityCheck, StabilityLimits

STEPS = 30


def crystals(count: int, *, seed: int = 0) -> list[Atoms]:
    """Rattled and strained crystals of different sizes and elements, with ids, some with fixed atoms."""
    random = np.random.default_rng(seed)
    found = []
    for index in range(count):
        element = ("Cu", "Ag", "Au", "Pd")[index % 4]
        size = ((1, 1, 1), (2, 1, 1))[index // 2 % 2]
        atoms = bulk(element, cubic=index % 2 == 0) * size
        strain = random.normal(scale=0.04, size=(3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        atoms.positions += random.normal(scale=0.08, size=atoms.positions.shape)
        if index % 4 == 3:
            atoms.set_constraint(FixAtoms([0]))
        atoms.info["material_id"] = f"m-{index}"
        found.append(atoms)
    return found


def slab() -> Atoms:
    atoms = fcc111("Cu", (2, 2, 2), vacuum=6.0, periodic=True)
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 2))
    atoms.positions[-4:, 2] += 0.3
    return atoms


def emt(*, has_stress: bool = True) -> CalculatorPotential:
    return CalculatorPotential(EMT, has_stress=has_stress)


class Springs(Calculator):
    """Harmonic springs between all atoms; what it says depends on the positions alone, to the last bit."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, reference: Atoms, stiffness: float = 5.0, limit: float = np.inf) -> None:
        super().__init__()
        self.first, self.second = np.triu_indices(len(reference), k=1)
        self.lengths = self._vectors(reference.positions)[1]
        self.stiffness, self.limit, self.calls = stiffness, limit, 0

    def _vectors(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        vectors = positions[self.second] - positions[self.first]
        return vectors, np.sqrt((vectors**2).sum(axis=1))

    def calculate(
        self, atoms: Atoms | None = None, properties: Sequence[str] = ("energy",), system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        if self.calls > self.limit:
            raise ValueError("the springs are worn out")
        vectors, lengths = self._vectors(self.atoms.positions)
        stretch = lengths - self.lengths
        pull = (self.stiffness * stretch / lengths)[:, None] * vectors
        forces = np.zeros_like(self.atoms.positions)
        np.add.at(forces, self.first, pull)
        np.add.at(forces, self.second, -pull)
        self.results = {"energy": 0.5 * self.stiffness * float((stretch**2).sum()), "forces": forces}
        self.results["free_energy"] = self.results["energy"]


def molecule() -> Atoms:
    return Atoms(
        "CH4", [[0, 0, 0], [0.63, 0.63, 0.63], [-0.63, -0.63, 0.63], [-0.63, 0.63, -0.63], [0.63, -0.63, -0.63]]
    )


def without_seconds(frames: Any) -> dict[str, bytes]:
    return {name: frames[name].tobytes() for name in frames.dtype.names if name != "seconds"}


def frames_of(path: Path, options: LangevinOptions, **changes: Any) -> Any:
    atoms = molecule()
    calculator = changes.pop("calculator", None) or Springs(atoms)
    return run_langevin(atoms, calculator, options, path, StabilityCheck(atoms, StabilityLimits())).frames


def ase_path(atoms: Atoms, *, cell: bool, fmax: float, calculator: object = None, steps: int = STEPS) -> list[Atoms]:
    moving = atoms.copy()
    moving.calc = calculator or EMT()
    path = []
    for _ in FIRE(FrechetCellFilter(moving) if cell else moving, logfile=None).irun(fmax=fmax, steps=steps):
        path.append(moving.copy())
    return path


def pool_paths(
    structures: list[Atoms], potential: Potential, *, cell: bool, fmax: float, steps: int = STEPS
) -> tuple[list[list[Atoms]], list[Relaxed]]:
    pool = RelaxationPool(potential, RelaxationOptions(fmax=fmax, max_steps=steps, relax_cell=cell))
    for number, atoms in enumerate(structures):
        assert pool.add(number, str(number), atoms) is None
    paths: list[list[Atoms]] = [[] for _ in structures]
    ended = []
    while len(pool):
        for member, atoms in zip(pool.members, pool.structures(), strict=True):
            paths[member.number].append(atoms)
        ended += pool.step()
    return paths, sorted(ended, key=lambda relaxed: relaxed.number)


def converted(structures: Sequence[Atoms], out: Path) -> Path:
    """Label structures and convert them, as ``escaip data convert`` does; returns the folder of the training set."""
    labelled = []
    for atoms in structures:
        one = atoms.copy()
        one.set_constraint()
        one.calc = EMT()
        one.get_forces()
        labelled.append(one)
    ase.io.write(out.with_suffix(".traj"), labelled)
    assert main(["data", "convert", str(out.with_suffix(".traj")), str(out)]) == 0
    return out / "train"


def evaluate(*words: str | Path) -> int:
    """Run ``escaip evaluate`` with these words; returns the exit status."""
    parser = argparse.ArgumentParser()
    add_parsers(parser.add_subparsers(dest="evaluate_command", required=True))
    arguments = parser.parse_args([str(word) for word in words])
    return run_reporting(f"escaip evaluate {arguments.evaluate_command}", lambda: arguments.run(arguments), debug=False)
