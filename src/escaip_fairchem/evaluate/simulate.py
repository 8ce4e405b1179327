"""Relaxations and molecular dynamics with any ASE calculator, and what they show about it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE

from escaip_fairchem.evaluate.labels import FloatArray


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """A relaxation with FIRE.

    Attributes:
        path: The structures that it went through, without calculator; the last one is the result.
        energies: Their energies by the calculator, eV.
        largest_forces: Their largest |F| of any free atom, eV/Å.
        wanted_force: Where it was to end, eV/Å.
        seconds: Duration.
    """

    path: list[Atoms]
    energies: FloatArray
    largest_forces: FloatArray
    wanted_force: float
    seconds: float

    @property
    def steps(self) -> int:
        """Steps that the optimiser took."""
        return len(self.path) - 1

    @property
    def converged(self) -> bool:
        """Whether it ended by its forces."""
        return bool(self.largest_forces[-1] <= self.wanted_force)


def relax(start: Atoms, calculator: BaseCalculator, *, fmax: float, max_steps: int) -> Relaxation:
    """Relax a structure with FIRE.

    Args:
        start: Where to start; not changed.
        calculator: Gives energies and forces.
        fmax: Largest |F| of any free atom to end at, eV/Å.
        max_steps: Steps to end at in any case.
    """
    atoms = start.copy()
    atoms.calc = calculator
    path, energies, forces = [], [], []
    begin = time.perf_counter()
    for _ in FIRE(atoms, logfile=None).irun(fmax=fmax, steps=max_steps):
        path.append(atoms.copy())
        energies.append(atoms.get_potential_energy())
        forces.append(np.linalg.norm(atoms.get_forces(), axis=1).max())
    return Relaxation(
        path=path,
        energies=np.array(energies),
        largest_forces=np.array(forces),
        wanted_force=fmax,
        seconds=time.perf_counter() - begin,
    )


@dataclass(frozen=True, kw_only=True)
class Dynamics:
    """A molecular dynamics run of n steps, sampled at every one.

    Attributes:
        times: Shape (n + 1,), fs.
        total_energies: Potential and kinetic, shape (n + 1,), eV.
        temperatures: Shape (n + 1,), K.
        free_atoms: Atoms that move.
        seconds: Duration.
    """

    times: FloatArray
    total_energies: FloatArray
    temperatures: FloatArray
    free_atoms: int
    seconds: float

    @property
    def drift(self) -> float:
        """Slope of the total energy, eV per free atom and ps; zero for exact dynamics at constant energy."""
        return float(np.polyfit(self.times / 1000.0, self.total_energies, 1)[0]) / self.free_atoms

    @property
    def mean_temperature(self) -> float:
        """Mean over the second half, K."""
        return float(self.temperatures[len(self.temperatures) // 2 :].mean())

    @property
    def steps_per_second(self) -> float:
        """Speed."""
        return (len(self.times) - 1) / self.seconds


@dataclass(frozen=True, kw_only=True)
class DynamicsOptions:
    """Settings of a short run.

    Attributes:
        steps: Number of steps.
        timestep: fs.
        temperature: Of the velocities drawn at the start and, with friction, of the bath; K.
        friction: Of the Langevin bath, 1/fs; 0 keeps the energy constant (velocity Verlet).
        seed: Decides velocities and noise.
    """

    steps: int
    timestep: float = 1.0
    temperature: float = 300.0
    friction: float = 0.0
    seed: int = 0


def run_dynamics(start: Atoms, calculator: BaseCalculator, options: DynamicsOptions) -> Dynamics:
    """Run molecular dynamics from a structure, which is not changed."""
    atoms = start.copy()
    atoms.calc = calculator
    random = np.random.RandomState(options.seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=options.temperature, rng=random)
    energies, temperatures = [], []

    def sample() -> None:
        energies.append(atoms.get_total_energy())
        temperatures.append(atoms.get_temperature())

    dynamics = _integrator(atoms, options, random)
    dynamics.attach(sample)
    begin = time.perf_counter()
    dynamics.run(options.steps)
    return Dynamics(
        times=np.arange(len(energies)) * options.timestep,
        total_energies=np.array(energies),
        temperatures=np.array(temperatures),
        free_atoms=atoms.get_number_of_degrees_of_freedom() // 3,
        seconds=time.perf_counter() - begin,
    )


def _integrator(atoms: Atoms, options: DynamicsOptions, random: np.random.RandomState) -> MolecularDynamics:
    timestep = options.timestep * units.fs
    if options.friction == 0.0:
        return VelocityVerlet(atoms, timestep)
    return Langevin(
        atoms,
        timestep,
        temperature_K=options.temperature,
        friction=options.friction / units.fs,
        fixcm=False,  # fixed atoms hold the slab in place
        rng=random,
    )
