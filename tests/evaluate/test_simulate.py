"""Relaxation and dynamics with a potential whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

from escaip_fairchem.evaluate.simulate import DynamicsOptions, relax, run_dynamics


@pytest.fixture
def slab() -> Atoms:
    atoms = fcc111("Cu", (2, 2, 3), vacuum=6.0, periodic=True)
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 3))
    atoms.positions[-4:, 2] += 0.3
    return atoms


def test_a_relaxation_ends_by_its_forces(slab):
    before = slab.positions.copy()
    relaxation = relax(slab, EMT(), fmax=0.05, max_steps=100)
    assert relaxation.converged
    assert 0 < relaxation.steps < 100
    assert relaxation.largest_forces[-1] <= 0.05 < relaxation.largest_forces[0]
    assert relaxation.energies[-1] < relaxation.energies[0]
    assert len(relaxation.path) == len(relaxation.energies) == relaxation.steps + 1
    np.testing.assert_array_equal(relaxation.path[0].positions, before)
    np.testing.assert_array_equal(slab.positions, before)


def test_a_relaxation_that_is_cut_short_says_so(slab):
    relaxation = relax(slab, EMT(), fmax=0.01, max_steps=2)
    assert relaxation.steps == 2
    assert not relaxation.converged


def test_dynamics_conserve_the_energy_of_a_conservative_potential(slab):
    dynamics = run_dynamics(slab, EMT(), DynamicsOptions(steps=60, timestep=2.0))
    assert dynamics.free_atoms == 8
    np.testing.assert_array_equal(dynamics.times, 2.0 * np.arange(61))
    assert abs(dynamics.drift) < 0.01  # eV per atom and ps
    assert dynamics.steps_per_second > 0


def test_drift_is_the_slope_per_atom_and_picosecond(slab):
    from dataclasses import replace

    dynamics = run_dynamics(slab, EMT(), DynamicsOptions(steps=2))
    heating = replace(dynamics, times=np.array([0.0, 500.0, 1000.0]), total_energies=np.array([0.0, 4.0, 8.0]))
    assert heating.drift == pytest.approx(1.0)  # 8 eV in 1 ps by 8 atoms


def test_a_bath_keeps_its_temperature_and_seeds_decide(slab):
    options = DynamicsOptions(steps=300, timestep=4.0, temperature=400.0, friction=0.05, seed=3)
    first, second = (run_dynamics(slab, EMT(), options) for _ in range(2))
    np.testing.assert_array_equal(first.temperatures, second.temperatures)
    assert first.mean_temperature == pytest.approx(400.0, rel=0.35)
