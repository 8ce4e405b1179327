"""Structures to measure on: real catalyst surfaces where they are kept beside the project, else generated ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from escaip_fairchem.errors import DataError
from escaip_fairchem.nn import Systems
from escaip_fairchem.testing.structures import Structure, batch

REAL_FILES = {"oc20_3frames.extxyz": 1, "atoms_34.extxyz": 1, "aumgo_50.extxyz": 10}
"""Adsorbates on surfaces, and that each how-many-th frame is used: neighbours in a trajectory are nearly the same."""

THREE_FRAMES = "oc20_3frames.extxyz"
BESIDE_PROJECT = Path(__file__).parents[4] / "shared" / "data"
"""Where real frames are looked for if no folder is named."""

MEAN_ATOMS, FEWEST_ATOMS, MOST_ATOMS = 73, 20, 220
"""Atoms per structure in OC20."""

# Of a normal distribution of log(atoms) that, cut off at both ends, has OC20's mean.
_LOG_MEAN, _LOG_STD = math.log(66.4), 0.44

METALS = (13, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 40, 41, 42, 44, 45, 46, 47, 73, 74, 75, 76, 77, 78, 79)
ADSORBATE_ELEMENTS = (1, 6, 7, 8)
LATTICE_ANGSTROM = 3.9
GENERATED = 128


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A structure with fairchem's tags.

    Attributes:
        structure: The structure.
        tags: 0 below the surface, 1 at the surface, 2 adsorbate; shape (n,), int64.
    """

    structure: Structure
    tags: Tensor

    def __len__(self) -> int:
        return len(self.structure)


@dataclass(frozen=True, kw_only=True)
class FramePool:
    """Frames to draw batches from.

    Attributes:
        frames: The frames.
        source: What they are, for the table.
        three: The three frames of the forward comparison.
        three_source: What those are.
    """

    frames: tuple[Frame, ...]
    source: str
    three: tuple[Frame, ...]
    three_source: str


@dataclass(frozen=True, kw_only=True)
class FrameBatch:
    """A batch.

    Attributes:
        systems: Structures in float32.
        tags_N: fairchem's tags, shape (N,), int64.
        energy_B: Random labels, shape (B,).
        forces_N3: Random labels, shape (N, 3).
    """

    systems: Systems
    tags_N: Tensor
    energy_B: Tensor
    forces_N3: Tensor

    @property
    def atoms(self) -> int:
        """Number of atoms."""
        return len(self.tags_N)

    def to(self, device: str | torch.device) -> FrameBatch:
        """The batch on a device."""
        systems = self.systems
        return FrameBatch(
            systems=Systems(
                positions_N3=systems.positions_N3.to(device),
                cell_B33=systems.cell_B33.to(device),
                pbc_B3=systems.pbc_B3.to(device),
                numbers_N=systems.numbers_N.to(device),
                structure_N=systems.structure_N.to(device),
            ),
            tags_N=self.tags_N.to(device),
            energy_B=self.energy_B.to(device),
            forces_N3=self.forces_N3.to(device),
        )


def join(frames: Sequence[Frame], *, seed: int = 0) -> FrameBatch:
    """Put frames into a batch with random labels."""
    systems = batch([frame.structure for frame in frames], torch.float32)
    generator = torch.Generator().manual_seed(seed)
    return FrameBatch(
        systems=systems,
        tags_N=torch.cat([frame.tags for frame in frames]),
        energy_B=torch.randn(len(frames), generator=generator),
        forces_N3=torch.randn(len(systems.numbers_N), 3, generator=generator),
    )


def draw_batches(pool: FramePool, *, size: int, count: int, seed: int) -> list[FrameBatch]:
    """Draw batches at random, with replacement; the same for the same seed.

    Args:
        pool: Frames.
        size: Structures per batch.
        count: Number of batches.
        seed: Decides which.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + size)
    rows = torch.randint(len(pool.frames), (count, size), generator=generator).tolist()
    return [join([pool.frames[row] for row in chosen], seed=number) for number, chosen in enumerate(rows)]


def load_pool(folder: Path | None, *, seed: int, count: int = GENERATED) -> FramePool:
    """Read the real frames, or generate some where there are none.

    Args:
        folder: Where the real frames are. None looks beside the project, and is content with finding nothing.
        seed: Of generated frames.
        count: Number of generated frames.

    Raises:
        DataError: A folder that was named lacks the frames.
    """
    place = BESIDE_PROJECT if folder is None else folder
    if folder is not None and not (folder / THREE_FRAMES).is_file():
        raise DataError(f"--frames {folder}: holds no {THREE_FRAMES}; leave the option out to generate slabs")
    missing = _why_unreadable(place)
    if missing:
        frames = generate_frames(count, seed=seed)
        source = f"{count} generated slabs with OC20's atom counts, seed {seed} ({missing})"
        return FramePool(frames=frames, source=source, three=frames[:3], three_source="3 generated slabs")
    three = read_frames(place / THREE_FRAMES)
    others = [
        frame
        for name, step in REAL_FILES.items()
        if name != THREE_FRAMES and (place / name).is_file()
        for frame in read_frames(place / name, step)
    ]
    frames = (*three, *others)
    source = f"{len(frames)} real frames of adsorbates on surfaces, 3 of them OC20's"
    return FramePool(frames=frames, source=source, three=three, three_source="3 OC20 frames")


def _why_unreadable(folder: Path) -> str:
    """Why real frames cannot be used; empty if they can."""
    if not (folder / THREE_FRAMES).is_file():
        return "no real frames beside the project"
    try:
        import ase.io  # noqa: F401 -- reads the frames
    except ImportError:
        return "ASE, which reads the real frames, is not installed"
    return ""


@cache
def read_frames(path: Path, step: int = 1) -> tuple[Frame, ...]:
    """Read every ``step``-th frame of a file as a periodic structure."""
    import ase.io

    frames = []
    for atoms in ase.io.read(path, f"::{step}"):
        structure = Structure(
            positions=torch.as_tensor(atoms.get_positions()),
            cell=torch.as_tensor(atoms.cell.array.copy()),
            pbc=torch.ones(3, dtype=torch.bool),
            numbers=torch.as_tensor(atoms.get_atomic_numbers()).long(),
        )
        # Data without tags: what matters is that some atoms count as surface, for models that read tags.
        tags = atoms.arrays.get("tags")
        frames.append(
            Frame(structure=structure, tags=torch.ones(len(atoms)).long() if tags is None else torch.as_tensor(tags))
        )
    return tuple(replace(frame, tags=frame.tags.long()) for frame in frames)


@cache
def generate_frames(count: int, *, seed: int) -> tuple[Frame, ...]:
    """Generate slabs with adsorbates whose atom counts follow OC20's; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(make_slab(atoms, generator) for atoms in draw_atom_counts(count, generator))


def draw_atom_counts(count: int, generator: torch.Generator) -> list[int]:
    """Draw numbers of atoms with OC20's mean and range; what falls outside is drawn again."""
    counts: list[int] = []
    while len(counts) < count:
        drawn = torch.randn(count, generator=generator, dtype=torch.float64) * _LOG_STD + _LOG_MEAN
        atoms = drawn.exp().round().long()
        counts += atoms[(atoms >= FEWEST_ATOMS) & (atoms <= MOST_ATOMS)].tolist()
    return counts[:count]


def make_slab(atoms: int, generator: torch.Generator) -> Frame:
    """A rattled close-packed slab of one to three metals with an adsorbate on it, in a cell with vacuum.

    Args:
        atoms: Atoms altogether, at least 20.
        generator: Decides the rest.
    """
    adsorbate = int(torch.randint(1, 7, (1,), generator=generator))
    metal = atoms - adsorbate
    layers = 3 if metal < 45 else 4
    per_layer = -(-metal // layers)
    width = max(round(math.sqrt(per_layer)), 1)
    depth = -(-per_layer // width)
    positions, cell = _slab_sites(width, depth, layers, metal)
    top = float(positions[:, 2].max())
    above = torch.rand(adsorbate, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 1.0, 0.4])
    spread = torch.arange(adsorbate, dtype=torch.float64).unsqueeze(1) * torch.tensor([0.3, 0.2, 1.1])
    positions = torch.cat((positions, above + spread + torch.tensor([0.0, 0.0, top + 1.6])))
    positions = positions + 0.08 * torch.randn(positions.shape, generator=generator, dtype=torch.float64)
    kinds = torch.tensor(METALS)[torch.randint(len(METALS), (3,), generator=generator)]
    metals = kinds[torch.randint(3, (metal,), generator=generator)]
    others = torch.tensor(ADSORBATE_ELEMENTS)[torch.randint(4, (adsorbate,), generator=generator)]
    tags = torch.cat(((positions[:metal, 2] > top - 1.0).long(), torch.full((adsorbate,), 2)))
    structure = Structure(
        positions=positions, cell=cell, pbc=torch.ones(3, dtype=torch.bool), numbers=torch.cat((metals, others))
    )
    return Frame(structure=structure, tags=tags)


def _slab_sites(width: int, depth: int, layers: int, count: int) -> tuple[Tensor, Tensor]:
    """The lowest sites of a close-packed slab and its cell: shapes (count, 3) and (3, 3), Å."""
    side = LATTICE_ANGSTROM / math.sqrt(2)
    first = torch.tensor([side, 0.0, 0.0], dtype=torch.float64)
    second = torch.tensor([side / 2, side * math.sqrt(3) / 2, 0.0], dtype=torch.float64)
    up = torch.tensor([side / 2, side / (2 * math.sqrt(3)), side * math.sqrt(2 / 3)], dtype=torch.float64)
    grid = torch.cartesian_prod(torch.arange(layers), torch.arange(depth), torch.arange(width)).double()
    sites = grid[:, 2:] * first + grid[:, 1:2] * second + grid[:, :1] * up
    height = layers * float(up[2]) + 20.0
    cell = torch.stack((width * first, depth * second, torch.tensor([0.0, 0.0, height], dtype=torch.float64)))
    return sites[:count], cell


def make_bulk(atoms: int, *, seed: int) -> Frame:
    """A rattled block of close-packed metal, periodic in all directions, with exactly that many atoms.

    The density hardly depends on the number of atoms: surplus sites, less than a layer's worth, stay vacant.

    Args:
        atoms: Number of atoms.
        seed: Decides displacements and vacancies.
    """
    generator = torch.Generator().manual_seed(seed)
    cells = _box(atoms)
    fcc = torch.tensor([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]], dtype=torch.float64)
    corners = torch.cartesian_prod(*(torch.arange(count) for count in cells)).double()
    sites = LATTICE_ANGSTROM * (corners.unsqueeze(1) + fcc).reshape(-1, 3)
    kept = torch.randperm(len(sites), generator=generator)[:atoms].sort().values
    positions = sites[kept] + 0.1 * torch.randn(atoms, 3, generator=generator, dtype=torch.float64)
    numbers = torch.tensor(METALS)[torch.randint(len(METALS), (atoms,), generator=generator)]
    structure = Structure(
        positions=positions,
        cell=LATTICE_ANGSTROM * torch.diag(torch.tensor(cells, dtype=torch.float64)),
        pbc=torch.ones(3, dtype=torch.bool),
        numbers=numbers,
    )
    return Frame(structure=structure, tags=torch.ones(atoms, dtype=torch.int64))


def _box(atoms: int) -> tuple[int, int, int]:
    """Numbers of cubic cells along three axes, as near to a cube as fits the atoms with few vacancies."""
    needed = -(-atoms // 4)
    edge = max(math.ceil(needed ** (1 / 3) - 1e-9), 1)
    candidates = [
        (x, y, z)
        for x in range(max(edge - 2, 1), edge + 2)
        for y in range(x, edge + 3)
        for z in (-(-needed // (x * y)),)
        if z >= y
    ] or [(edge, edge, edge)]
    return min(candidates, key=lambda box: (box[0] * box[1] * box[2] - needed) / needed + 0.1 * (box[2] / box[0] - 1))
