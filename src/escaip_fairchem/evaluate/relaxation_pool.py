"""A pool of relaxations that share every evaluation of the potential."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.constraints import FixAtoms

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.evaluate.deformation import Coordinates
from escaip_fairchem.evaluate.fire import BatchedFire
from escaip_fairchem.evaluate.labels import FloatArray
from escaip_fairchem.evaluate.potentials import Evaluation, Potential, evaluate_each

Status = Literal["converged", "not converged", "failed"]


@dataclass(frozen=True, kw_only=True)
class RelaxationOptions:
    """When relaxations end.

    Attributes:
        fmax: Every row of forces is to be shorter than this, eV/Å: those of the atoms and, with ``relax_cell``, the
            three of the cell, as in ``ase.filters.FrechetCellFilter``.
        max_steps: Steps to end at in any case.
        relax_cell: Whether the cell is relaxed too.
        max_force: A force on an atom above this ends a relaxation as failed, eV/Å.
        max_volume_change: So does a volume that has changed by more than this factor, up or down.

    Raises:
        ConfigError: A value is out of range.
    """

    fmax: float = 0.02
    max_steps: int = 500
    relax_cell: bool = True
    max_force: float = 1000.0
    max_volume_change: float = 5.0

    def __post_init__(self) -> None:
        for name, lowest in (("fmax", 0.0), ("max_force", 0.0), ("max_volume_change", 1.0)):
            if not getattr(self, name) > lowest:
                raise ConfigError(f"{name}: {getattr(self, name)} must be a number above {lowest:g}")
        if self.max_steps < 0:
            raise ConfigError(f"max_steps: {self.max_steps} must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class Relaxed:
    """How a relaxation ended.

    Attributes:
        number: Position of the structure in the input.
        identifier: Its id.
        status: How it ended.
        reason: Why it did not converge; empty if it did.
        atoms: The structure at the end; None if it failed.
        energy: Of it, eV; None if it failed.
        fmax: Longest row of forces at the last evaluation, eV/Å; None where there was none.
        first_energy: Where it started, eV; None where even that could not be evaluated.
        first_fmax: Longest row of forces where it started, eV/Å.
        steps: Steps that the optimiser took.
        path_length: Length of its path: root mean square displacement of its atoms, summed over the steps, Å.
        volume_ratio: Volume at the end over volume at the start; None without a cell or if it failed.
    """

    number: int
    identifier: str
    status: Status
    reason: str = ""
    atoms: Atoms | None = None
    energy: float | None = None
    fmax: float | None = None
    first_energy: float | None = None
    first_fmax: float | None = None
    steps: int = 0
    path_length: float = 0.0
    volume_ratio: float | None = None


@dataclass(kw_only=True)
class _Member:
    """What the pool remembers of a structure besides its coordinates."""

    number: int
    identifier: str
    numbers: list[int]
    tags: list[int]
    pbc: list[bool]
    steps: int = 0
    path_length: float = 0.0
    fmax: float | None = None
    first_energy: float | None = None
    first_fmax: float | None = None


class RelaxationPool:
    """Relaxations that take their steps together, each as if it were alone.

    Args:
        potential: Evaluates all structures at once.
        options: When relaxations end.

    Raises:
        ConfigError: Cells are to be relaxed with a potential that has no stress.
    """

    def __init__(self, potential: Potential, options: RelaxationOptions) -> None:
        if options.relax_cell and not potential.has_stress:
            raise ConfigError(
                "the model predicts no stress, which relaxing cells needs; relax positions alone (--no-cell)"
            )
        self.potential, self.options = potential, options
        self.fire = BatchedFire()
        self.coordinates = Coordinates(relax_cell=options.relax_cell)
        self.members: list[_Member] = []

    def __len__(self) -> int:
        return len(self.members)

    @property
    def atoms(self) -> int:
        """Number of atoms of all structures."""
        return int(self.coordinates.natoms_B.sum())

    def add(self, number: int, identifier: str, atoms: Atoms) -> Relaxed | None:
        """Take a structure in.

        Args:
            number: Its position in the input.
            identifier: Its id.
            atoms: The structure; its calculator plays no part, and of its constraints only fixed atoms are allowed.

        Returns:
            None, or how it ended if it cannot be relaxed at all.
        """
        problem = _problem(atoms, relax_cell=self.options.relax_cell)
        if problem:
            return Relaxed(number=number, identifier=identifier, status="failed", reason=problem)
        free = np.ones(len(atoms), dtype=bool)
        for constraint in atoms.constraints:
            free[constraint.index] = False
        self.coordinates.add([atoms], [free])
        self.fire.add([int(self.coordinates.rows_B[-1])])
        self.members.append(
            _Member(
                number=number,
                identifier=identifier,
                numbers=atoms.numbers.tolist(),
                tags=atoms.get_tags().tolist(),
                pbc=atoms.pbc.tolist(),
            )
        )
        return None

    def structures(self) -> list[Atoms]:
        """The structures as they are now."""
        positions = np.split(self.coordinates.positions(), np.cumsum(self.coordinates.natoms_B)[:-1])
        return [
            Atoms(member.numbers, positions=own, cell=cell, pbc=member.pbc, tags=member.tags)
            for member, own, cell in zip(self.members, positions, self.coordinates.cells(), strict=True)
        ]

    def step(self) -> list[Relaxed]:
        """Evaluate all structures, and move those that have not ended.

        Returns:
            How those ended that did, in the order in which they came; they are no longer in the pool.
        """
        structures = self.structures()
        found = evaluate_each(self.potential, structures)
        going: list[tuple[Atoms, Evaluation]] = []
        ended = []
        # What failed is dropped before anything is computed from its predictions.
        for row, (structure, evaluation) in enumerate(zip(structures, found, strict=True)):
            reason = evaluation if isinstance(evaluation, str) else self._failure(row, structure, evaluation)
            if reason or isinstance(evaluation, str):
                ended.append(Relaxed(status="failed", reason=reason, **self._history(row)))
            else:
                going.append((structure, evaluation))
        failed = {relaxed.number for relaxed in ended}
        self._keep(np.array([member.number not in failed for member in self.members], dtype=bool))
        if going:
            ended += self._move([structure for structure, _ in going], [evaluation for _, evaluation in going])
        return sorted(ended, key=lambda relaxed: relaxed.number)

    def _move(self, structures: Sequence[Atoms], found: Sequence[Evaluation]) -> list[Relaxed]:
        """Let go what has ended by its forces or its steps, and move the rest."""
        forces_R3 = self._row_forces(found)
        bounds = np.cumsum(self.coordinates.rows_B)[:-1]
        ended, going = [], np.ones(len(self.members), dtype=bool)
        for row, own in enumerate(np.split(forces_R3, bounds)):
            member, energy = self.members[row], float(found[row].energy)
            member.fmax = float(np.linalg.norm(own, axis=1).max())
            if member.first_fmax is None:
                member.first_fmax, member.first_energy = member.fmax, energy
            if member.fmax < self.options.fmax or member.steps >= self.options.max_steps:
                going[row] = False
                ended.append(self._ended(row, structures[row], energy))
        forces_R3 = forces_R3[np.repeat(going, self.coordinates.rows_B)]
        self._keep(going)
        if len(self.members):
            before = self.coordinates.positions()
            self.coordinates.move(self.fire.step(forces_R3))
            moved = np.split(self.coordinates.positions() - before, np.cumsum(self.coordinates.natoms_B)[:-1])
            for member, own in zip(self.members, moved, strict=True):
                member.steps += 1
                member.path_length += float(np.sqrt((own**2).sum() / len(own)))
        return ended

    def _row_forces(self, found: Sequence[Evaluation]) -> FloatArray:
        forces_N3 = np.concatenate([np.asarray(one.forces, dtype=np.float64) for one in found])
        stress_B6 = None
        if self.options.relax_cell:
            stress_B6 = np.stack([np.asarray(one.stress, dtype=np.float64) for one in found])
        return self.coordinates.row_forces(forces_N3, stress_B6)

    def _failure(self, row: int, structure: Atoms, evaluation: Evaluation) -> str:
        """Why a relaxation cannot go on; empty if it can."""
        largest = float(np.linalg.norm(evaluation.forces, axis=1).max())
        if largest > self.options.max_force:
            return f"force of {largest:.4g} eV/Å, above the limit of {self.options.max_force:g}"
        if self.options.relax_cell:
            ratio = self._volume_ratio(row, structure)
            limit = self.options.max_volume_change
            if ratio is not None and not 1.0 / limit <= ratio <= limit:
                return f"volume changed by a factor of {ratio:.4g}, beyond the limit of {limit:g}"
        return ""

    def _volume_ratio(self, row: int, structure: Atoms) -> float | None:
        first = abs(float(np.linalg.det(self.coordinates.first_cell_B33[row])))
        return float(structure.cell.volume) / first if first > 0.0 else None

    def _ended(self, row: int, structure: Atoms, energy: float) -> Relaxed:
        member = self.members[row]
        converged = member.fmax is not None and member.fmax < self.options.fmax
        return Relaxed(
            status="converged" if converged else "not converged",
            reason="" if converged else f"forces of {member.fmax:.4g} eV/Å after {member.steps} steps",
            atoms=structure,
            energy=energy,
            volume_ratio=self._volume_ratio(row, structure),
            **self._history(row),
        )

    def _history(self, row: int) -> dict[str, Any]:
        member = self.members[row]
        names = ("number", "identifier", "steps", "path_length", "fmax", "first_energy", "first_fmax")
        return {name: getattr(member, name) for name in names}

    def _keep(self, keep_B: npt.NDArray[np.bool_]) -> None:
        if keep_B.all():
            return
        self.fire.keep(keep_B)
        self.coordinates.keep(keep_B)
        self.members = [member for member, kept in zip(self.members, keep_B, strict=True) if kept]

    def state(self) -> tuple[list[dict[str, Any]], dict[str, npt.NDArray[Any]]]:
        """What is in the pool: its members as JSON holds them, and arrays by name."""
        arrays = {f"fire_{name}": array for name, array in self.fire.state().items()}
        arrays |= {f"coordinates_{name}": array for name, array in self.coordinates.state().items()}
        return [asdict(member) for member in self.members], arrays

    def restore(self, members: Sequence[Mapping[str, Any]], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what :meth:`state` gave; the steps that follow are the same to the last bit."""
        self.members = [_Member(**member) for member in members]
        for name, part in (("fire_", self.fire), ("coordinates_", self.coordinates)):
            assert isinstance(part, BatchedFire | Coordinates)
            part.restore({key.removeprefix(name): array for key, array in arrays.items() if key.startswith(name)})


def _problem(atoms: Atoms, *, relax_cell: bool) -> str:
    """Why a structure cannot be relaxed, whatever the potential says; empty if it can."""
    if len(atoms) == 0:
        return "no atoms"
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        return "positions or cell not finite"
    if relax_cell and not (atoms.pbc.all() and atoms.cell.rank == 3):
        return "not periodic in three directions, so that there is no cell to relax; --no-cell relaxes positions alone"
    others = {type(one).__name__ for one in atoms.constraints if not isinstance(one, FixAtoms)}
    return f"constraint {', '.join(sorted(others))}: only fixed atoms are supported" if others else ""
