"""Tiny structures: crystals, molecules, slabs, oddities. Lengths in Å, everything float64 until it is batched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from escaip_fairchem.nn import Systems

COPPER, SODIUM, CHLORINE, SILICON = 29, 11, 17, 14


@dataclass(frozen=True, kw_only=True)
class Structure:
    """One structure.

    Attributes:
        positions: Shape (n, 3).
        cell: Lattice vectors as rows, shape (3, 3).
        pbc: Which of them repeat, shape (3,), bool.
        numbers: Atomic numbers, shape (n,).
    """

    positions: Tensor
    cell: Tensor
    pbc: Tensor
    numbers: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    def replaced(self, **changes: Tensor) -> Structure:
        """The structure with other positions, cell, pbc or numbers."""
        return replace(self, **changes)

    def permuted(self, order: Tensor) -> Structure:
        """The structure with its atoms in another order."""
        return self.replaced(positions=self.positions[order], numbers=self.numbers[order])

    def rotated(self, rotation: Tensor) -> Structure:
        """Positions and cell rotated: every vector v becomes ``rotation @ v``."""
        return self.replaced(positions=self.positions @ rotation.T, cell=self.cell @ rotation.T)

    def strained(self, strain: Tensor) -> Structure:
        """Positions and cell multiplied by ``1 + strain`` from the right."""
        deformation = torch.eye(3, dtype=torch.float64) + strain
        return self.replaced(positions=self.positions @ deformation, cell=self.cell @ deformation)


def batch(structures: Sequence[Structure], dtype: torch.dtype = torch.float64) -> Systems:
    """Put structures into one batch."""
    counts = torch.tensor([len(structure) for structure in structures])
    return Systems(
        positions_N3=torch.cat([structure.positions for structure in structures]).to(dtype),
        cell_B33=torch.stack([structure.cell for structure in structures]).to(dtype),
        pbc_B3=torch.stack([structure.pbc for structure in structures]),
        numbers_N=torch.cat([structure.numbers for structure in structures]),
        structure_N=torch.arange(len(structures)).repeat_interleave(counts),
    )


def make(
    numbers: Sequence[int],
    positions: Sequence[Sequence[float]] | Tensor,
    cell: Sequence[Sequence[float]] | Tensor | None = None,
    pbc: Sequence[bool] | bool | None = None,
) -> Structure:
    """A structure from plain lists; without a cell it is a molecule, with one it is periodic unless pbc says else."""
    if pbc is None:
        pbc = cell is not None
    periodic = [pbc] * 3 if isinstance(pbc, bool) else list(pbc)
    return Structure(
        positions=torch.as_tensor(positions, dtype=torch.float64).reshape(-1, 3),
        cell=torch.zeros(3, 3, dtype=torch.float64) if cell is None else torch.as_tensor(cell, dtype=torch.float64),
        pbc=torch.tensor(periodic),
        numbers=torch.tensor(list(numbers)),
    )


_FCC = torch.tensor([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]], dtype=torch.float64)


def copper(*, cubic: bool = False) -> Structure:
    """Perfect fcc copper: the one-atom primitive cell, or the cubic cell of four."""
    if not cubic:
        return make([COPPER], [[0.0, 0.0, 0.0]], 3.61 * _FCC)
    sites = torch.cat((torch.zeros(1, 3, dtype=torch.float64), _FCC))
    return make([COPPER] * 4, 3.61 * sites, 3.61 * torch.eye(3, dtype=torch.float64))


def rock_salt() -> Structure:
    """Perfect NaCl in its cubic cell of eight atoms."""
    sites = torch.cat((torch.zeros(1, 3, dtype=torch.float64), _FCC))
    positions = 5.64 * torch.cat((sites, sites + torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64)))
    return make([SODIUM] * 4 + [CHLORINE] * 4, positions, 5.64 * torch.eye(3, dtype=torch.float64))


def silicon() -> Structure:
    """Perfect diamond silicon in its primitive cell of two atoms."""
    return make([SILICON] * 2, [[0.0, 0.0, 0.0], [1.3575, 1.3575, 1.3575]], 5.43 * _FCC)


def disordered(
    seed: int, atoms: int = 6, pbc: Sequence[bool] | bool = True, *, length: float = 5.5, apart: float = 1.3
) -> Structure:
    """Random elements at random places of a skewed cell, no two closer than ``apart``: nothing is symmetric.

    Args:
        seed: Decides everything.
        atoms: Number of atoms.
        pbc: Periodic axes.
        length: Length of the lattice vectors before skewing.
        apart: Smallest distance, periodic images included.

    Raises:
        ValueError: The atoms do not fit.
    """
    generator = torch.Generator().manual_seed(seed)
    skew = 0.2 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
    cell = length * (torch.eye(3, dtype=torch.float64) + skew.tril(-1))
    shifts = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)] * 3)
    kept: list[Tensor] = []
    for _ in range(1000 * atoms):
        if len(kept) == atoms:
            break
        trial = torch.rand(3, generator=generator, dtype=torch.float64) @ cell
        gaps = [(trial - other + shifts @ cell).norm(dim=1).min() for other in kept]
        if not gaps or float(min(gaps)) > apart:
            kept.append(trial)
    if len(kept) < atoms:
        raise ValueError(f"{atoms} atoms {apart} Å apart do not fit into a cell of {length} Å")
    numbers = torch.randint(1, 60, (atoms,), generator=generator).tolist()
    return make(numbers, torch.stack(kept), cell, pbc)


def molecule(seed: int = 0, atoms: int = 5) -> Structure:
    """A random cluster without periodicity and with a zero cell."""
    structure = disordered(seed, atoms, pbc=False, length=3.5)
    return structure.replaced(cell=torch.zeros(3, 3, dtype=torch.float64))


def slab() -> Structure:
    """Two layers of fcc copper with an oxygen atom on top, periodic along two axes: many equal distances."""
    side = 2.5527
    layer = side * torch.tensor(
        [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 3**0.5 / 2, 0.0], [1.5, 3**0.5 / 2, 0.0]], dtype=torch.float64
    )
    above = layer + side * torch.tensor([0.5, 3**0.5 / 6, (2 / 3) ** 0.5], dtype=torch.float64)
    adsorbate = above[:1] + torch.tensor([[0.0, 0.0, 1.8]], dtype=torch.float64)
    cell = [[2 * side, 0.0, 0.0], [side, side * 3**0.5, 0.0], [0.0, 0.0, 15.0]]
    return make([COPPER] * 8 + [8], torch.cat((layer, above, adsorbate)), cell, [True, True, False])


def isolated(number: int, *, position: Sequence[float] = (0.3, -0.2, 0.7)) -> Structure:
    """One atom alone in the world."""
    return make([number], [list(position)])


def rotation_matrix(seed: int, *, improper: bool = False) -> Tensor:
    """A random rotation, or one with a reflection, shape (3, 3)."""
    generator = torch.Generator().manual_seed(seed)
    orthogonal, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    sign = -1.0 if improper else 1.0
    proper: Tensor = orthogonal * torch.linalg.det(orthogonal) * sign
    return proper
