"""An OC20-like set of adsorbates on metal surfaces, labelled by ASE's effective-medium potential.

It exists so that the whole path, from data to relaxation, can be shown and tested on any machine in minutes. The
labels are those of a toy potential: nothing about real catalysts can be learned from them.

As in OC20, a system is one adsorbate on one slab, its frames are snapshots of a relaxation and rattled copies, the
bottom layers are fixed, tags are 0 (below), 1 (surface) and 2 (adsorbate), and the target is an adsorption energy,

    E(frame) − E(relaxed clean slab) − Σ reference energies of the adsorbate's atoms,

with references from H2, H2O, CO and N2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc100, fcc110, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.optimize import FIRE
from numpy.random import Generator, SeedSequence, default_rng

from .schema import IntArray, Structure, fixed_mask

SPLITS = ("train", "val", "test")
METALS = ("Cu", "Ag", "Pd", "Pt")
LATTICE_ANGSTROM = {"Cu": 3.61, "Ag": 4.09, "Pd": 3.89, "Pt": 3.92}
ADSORBATES = {
    "H": Atoms("H"),
    "O": Atoms("O"),
    "C": Atoms("C"),
    "N": Atoms("N"),
    "CO": Atoms("CO", [(0, 0, 0), (0, 0, 1.15)]),
    "OH": Atoms("OH", [(0, 0, 0), (0, 0.3, 1.10)]),
    "CH": Atoms("CH", [(0, 0, 0), (0, 0, 1.15)]),
}
# No split holds it. Its elements are known from other adsorbates, and it lies between CH and OH.
UNSEEN_ADSORBATE = Atoms("NH", [(0, 0, 0), (0, 0, 1.15)])
# These pairs are met in validation and test only.
HELD_OUT = frozenset({("Cu", "CO"), ("Pd", "OH"), ("Pt", "N"), ("Ag", "C")})


@dataclass(frozen=True)
class Facet:
    """ASE's builder of a surface, cell sizes to draw from (third number: layers), and the sites ASE knows on it."""

    build: Callable[..., Atoms]
    sizes: tuple[tuple[int, int, int], ...]
    sites: tuple[str, ...]


FACETS = (
    Facet(fcc111, ((2, 2, 5), (3, 2, 4), (3, 3, 3), (3, 3, 4)), ("fcc", "hcp", "bridge", "ontop")),
    Facet(fcc100, ((2, 2, 5), (3, 2, 4), (3, 3, 3), (3, 3, 4)), ("hollow", "bridge", "ontop")),
    Facet(fcc110, ((2, 2, 5), (3, 2, 4), (3, 2, 5)), ("hollow", "longbridge", "shortbridge", "ontop")),
)
VACUUM_ANGSTROM = 7.0

FRAMES_PER_SYSTEM = 10
SYSTEMS_PER_SLAB = 4
LARGEST_FORCE = 12.0  # eV/Å; a rattled frame above it is drawn again with smaller displacements


@dataclass(frozen=True, kw_only=True)
class SlabTask:
    """One slab to cover with adsorbates: the unit of parallel work, whose result depends on nothing else.

    Attributes:
        seed: Seed of the whole set.
        split: ``train``, ``val`` or ``test``.
        number: Number of the slab within the split.
    """

    seed: int
    split: str
    number: int

    def generator(self) -> Generator:
        """Random numbers that belong to this slab alone, whoever computes it and when."""
        return default_rng(SeedSequence(self.seed, spawn_key=(SPLITS.index(self.split), self.number)))

    def first_sid(self) -> int:
        """Number of the slab's first system; different for all slabs of all splits."""
        return (SPLITS.index(self.split) + 1) * 1_000_000 + self.number * SYSTEMS_PER_SLAB


@dataclass(frozen=True, kw_only=True)
class Slab:
    """A relaxed clean slab and what is needed to put adsorbates on it."""

    atoms: Atoms
    metal: str
    name: str
    sites: tuple[str, ...]
    energy: float


def tasks(split: str, frames: int, *, seed: int) -> list[SlabTask]:
    """List the slabs that yield at least ``frames`` frames."""
    per_slab = FRAMES_PER_SYSTEM * SYSTEMS_PER_SLAB
    return [SlabTask(seed=seed, split=split, number=number) for number in range(-(-frames // per_slab))]


def make_frames(task: SlabTask) -> list[Structure]:
    """Build a slab, put adsorbates on it one at a time, and label the frames of every system."""
    random = task.generator()
    slab = make_slab(random)
    structures: list[Structure] = []
    for offset, name in enumerate(_choose_adsorbates(task, slab.metal, random)):
        start = place(slab, ADSORBATES[name], random)
        for fid, atoms in enumerate(_frames(start, random)):
            structures.append(_label(atoms, slab, name, sid=task.first_sid() + offset, fid=fid))
    return structures


def make_slab(random: Generator) -> Slab:
    """Draw metal, facet, size, strain and, for one slab in four, some atoms of a second metal; then relax it."""
    metal = str(random.choice(METALS))
    facet = FACETS[random.integers(len(FACETS))]
    size = facet.sizes[random.integers(len(facet.sizes))]
    guest = None
    if random.random() < 0.25:
        guest = str(random.choice([other for other in METALS if other != metal]))
    return _relaxed_slab(metal, facet, size, guest, random)


def _relaxed_slab(metal: str, facet: Facet, size: tuple[int, int, int], guest: str | None, random: Generator) -> Slab:
    lattice = LATTICE_ANGSTROM[metal] * (1 + random.uniform(-0.02, 0.03))
    atoms = facet.build(metal, size, a=lattice, vacuum=VACUUM_ANGSTROM, periodic=True)
    layer_from_top = atoms.get_tags()
    name = f"{metal} {facet.build.__name__} {'x'.join(map(str, size))}"
    if guest is not None:
        atoms.symbols[random.random(len(atoms)) < 0.25] = guest
        name += f" with {guest}"
    below = layer_from_top > size[2] - size[2] // 2
    atoms.set_tags(np.where(below, 0, 1))
    atoms.set_constraint(FixAtoms(mask=below))
    # At a surface with vacuum on both sides, OC20 is periodic along all three vectors, and so is this.
    atoms.pbc = True
    atoms.calc = EMT()
    FIRE(atoms, logfile=None).run(fmax=0.05, steps=20)
    return Slab(atoms=atoms, metal=metal, name=name, sites=facet.sites, energy=float(atoms.get_potential_energy()))


def place(slab: Slab, adsorbate: Atoms, random: Generator) -> Atoms:
    """Put an adsorbate near a random site of a slab, tilted at random, as low as its forces allow.

    In this potential molecules that do not stand exactly upright lie down, so all tilts have to be in the set.
    """
    guest = adsorbate.copy()
    guest.rotate(random.uniform(0.0, 80.0), "x", center=(0, 0, 0))
    guest.rotate(random.uniform(0.0, 360.0), "z", center=(0, 0, 0))
    site, height = str(random.choice(slab.sites)), random.uniform(1.4, 1.9)
    sideways = (*random.normal(0.0, 0.15, size=2), 0.0)
    calculator = EMT()
    while True:
        atoms = slab.atoms.copy()
        add_adsorbate(atoms, guest, height=height, position=site)
        atoms.positions[-len(guest) :] += sideways
        atoms.set_tags([*slab.atoms.get_tags(), *[2] * len(guest)])
        atoms.info.clear()  # ASE leaves notes for its own use there
        atoms.calc = calculator
        if _largest_force(atoms) < LARGEST_FORCE:
            return atoms
        height += 0.2


def _choose_adsorbates(task: SlabTask, metal: str, random: Generator) -> list[str]:
    """Training sees no held-out pair; every other slab of validation and test carries held-out pairs first."""
    held_out = [name for name in ADSORBATES if (metal, name) in HELD_OUT]
    seen = [name for name in ADSORBATES if (metal, name) not in HELD_OUT]
    chosen = [str(name) for name in random.permutation(seen)]
    if task.split != "train" and task.number % 2 == 0:
        chosen = held_out + chosen
    return chosen[:SYSTEMS_PER_SLAB]


def _frames(start: Atoms, random: Generator) -> Iterator[Atoms]:
    """Yield three snapshots of a short relaxation, the first being the start, and rattled copies of its last step."""
    atoms = start.copy()
    # One calculator per system: while atoms move little it keeps its neighbour list, which is most of the cost.
    calculator = EMT()
    atoms.calc = calculator
    optimizer = FIRE(atoms, logfile=None, maxstep=0.1)
    snapshots = 0
    for step, _ in enumerate(optimizer.irun(fmax=0.02, steps=8)):
        if step in (0, 4, 8):
            snapshots += 1
            yield _with_results(atoms)
    for _ in range(FRAMES_PER_SYSTEM - snapshots):
        yield _rattled(atoms, calculator, random)


def _rattled(atoms: Atoms, calculator: EMT, random: Generator) -> Atoms:
    """Displace the free atoms by normal deviates of a drawn width, smaller where the forces get out of hand."""
    free = ~fixed_mask(atoms)
    width = random.uniform(0.03, 0.14)
    while True:
        copy = atoms.copy()
        copy.positions[free] += random.normal(0.0, width, size=(int(free.sum()), 3))
        copy.calc = calculator
        if _largest_force(copy) < LARGEST_FORCE:
            return _with_results(copy)
        width *= 0.7


def _largest_force(atoms: Atoms) -> float:
    """Return the largest |F| (eV/Å) of any atom."""
    return float(np.linalg.norm(atoms.get_forces(apply_constraint=False), axis=1).max())


def _with_results(atoms: Atoms) -> Atoms:
    """Copy a structure together with its energy and forces, so that the calculator is free for the next one."""
    copy = atoms.copy()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)
    copy.calc = SinglePointCalculator(copy, energy=energy, forces=forces)
    return copy


def _label(atoms: Atoms, slab: Slab, adsorbate: str, *, sid: int, fid: int) -> Structure:
    energy = float(atoms.get_potential_energy()) - slab.energy - reference_energy(atoms.numbers[atoms.get_tags() == 2])
    return Structure(
        sid=str(sid),
        fid=fid,
        numbers=atoms.numbers.astype(np.int64),
        positions=atoms.positions,
        cell=atoms.cell.array,
        pbc=atoms.pbc,
        tags=atoms.get_tags().astype(np.int64),
        fixed=fixed_mask(atoms),
        energy=energy,
        forces=atoms.get_forces(apply_constraint=False),
        info={"slab": slab.name, "adsorbate": adsorbate},
    )


def reference_energy(numbers: IntArray) -> float:
    """Sum the reference energies (eV) of an adsorbate's atoms, given their atomic numbers."""
    references = _gas_references()
    return float(sum(references[int(number)] for number in numbers))


@cache
def _gas_references() -> dict[int, float]:
    """Energy per atom (eV) of H, C, N and O from the relaxed molecules H2, H2O, CO and N2."""
    energies = {}
    for name in ("H2", "H2O", "CO", "N2"):
        atoms = molecule(name)
        atoms.calc = EMT()
        FIRE(atoms, logfile=None).run(fmax=0.01, steps=300)
        energies[name] = float(atoms.get_potential_energy())
    oxygen = energies["H2O"] - energies["H2"]
    return {1: energies["H2"] / 2, 6: energies["CO"] - oxygen, 7: energies["N2"] / 2, 8: oxygen}


def relaxation_start(seed: int) -> tuple[Atoms, Atoms]:
    """Make a system for a relaxation: an adsorbate that no split holds, on a slab of its own.

    Args:
        seed: Seed of the whole set.

    Returns:
        The start and the same system relaxed with the potential that made the labels (largest force 0.02 eV/Å).
        Both carry ``reference_energy`` (eV) in their ``info``: a model's energy compares with the potential's energy
        minus it.
    """
    random = default_rng(SeedSequence(seed, spawn_key=(len(SPLITS), 0)))
    slab = _relaxed_slab("Cu", FACETS[0], (3, 3, 4), None, random)
    start = place(slab, UNSEEN_ADSORBATE, random)
    name = UNSEEN_ADSORBATE.get_chemical_formula()
    references = slab.energy + reference_energy(UNSEEN_ADSORBATE.numbers)
    start.info.update(sid="relax", fid=0, slab=slab.name, adsorbate=name, reference_energy=references)
    relaxed = start.copy()
    relaxed.info["fid"] = 1
    for atoms in (start, relaxed):
        atoms.calc = EMT()
    FIRE(relaxed, logfile=None).run(fmax=0.02, steps=400)
    return _with_results(start), _with_results(relaxed)
