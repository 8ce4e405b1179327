"""The neighbour search beside fairchem's and other libraries': time and peak memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from escaip_fairchem.bench.cases import NeighborCase, Outcome, why_not_larger
from escaip_fairchem.bench.floors import Floor
from escaip_fairchem.bench.frames import FrameBatch, join, make_bulk
from escaip_fairchem.bench.libraries import PACKAGES, library_search
from escaip_fairchem.bench.memory import MemoryProbe
from escaip_fairchem.bench.models import import_baselines
from escaip_fairchem.bench.options import Session
from escaip_fairchem.bench.passes import warm_libraries
from escaip_fairchem.bench.tables import MakeTables, Table
from escaip_fairchem.bench.timing import Spread, Timer
from escaip_fairchem.nn import find_neighbors
from escaip_fairchem.nn.neighbors_skin import SkinSearch

SIZES, QUICK_SIZES = (100, 1000, 5000, 20000), (40, 80)
CUTOFFS = (12.0, 6.0)
"""Å. The second is nearer to what libraries that list all pairs are made for."""
METHODS = ("escaip", "escaip-skin", "fairchem", *PACKAGES)
POWERS = {"fairchem": 2}
"""Power of the number of atoms with which a search's time grows, where it is not 1."""
SKIN_ANGSTROM = 1.0
BYTES_PER_EDGE = 8 + 3 * 8 + 1
"""Sender, periodic image and mask of a slot, each written once."""
LONGEST_SEARCH = 60.0
"""Seconds. What would take longer is given up."""


def mixed_batches(*, quick: bool) -> tuple[list[list[int]], list[int]]:
    """Batches whose memory is compared: systems of very different cells, each kind by itself and all together."""
    small, large = ([1] * 4, [40] * 2) if quick else ([1] * 16, [400] * 4)
    return [small, large], [*small, *large]


def measure_search(case: NeighborCase) -> Outcome:
    """Time a search, and watch its memory.

    Raises:
        NotAvailableError: fairchem cannot be imported.
    """
    batch = join([make_bulk(atoms, seed=case.seed + number) for number, atoms in enumerate(case.atoms)])
    batch = batch.to(case.device)
    small = join([make_bulk(8, seed=case.seed)]).to(case.device)
    search = _searcher(case)
    warm_libraries(case.device)
    search(small)()
    probe, timer = MemoryProbe(case.device), Timer(case.device)
    function = search(batch)
    seconds: list[float] = []
    peaks: list[int] = []
    while len(seconds) < case.repeats and sum(seconds) < case.budget:
        probe.start()
        seconds.append(timer.measure(function))
        peaks.append(probe.peak_bytes())
    return Outcome(
        case=case,
        seconds=seconds,
        atoms=[batch.atoms],
        peak_bytes=peaks,
        flops=0.0,
        bytes=float(batch.atoms * case.max_neighbors * BYTES_PER_EDGE),
    )


def _searcher(case: NeighborCase) -> Callable[[FrameBatch], Callable[[], Any]]:
    limits: dict[str, Any] = {"cutoff": case.cutoff, "max_neighbors": case.max_neighbors}
    if case.method in ("escaip", "escaip-skin"):
        return partial(_ours, remembers=case.method == "escaip-skin", **limits)
    if case.method in PACKAGES:
        return lambda batch: library_search(case.method, batch.systems, **limits)
    baselines = import_baselines()

    def theirs(batch: FrameBatch) -> Callable[[], Any]:
        data = baselines.to_fairchem(batch.systems, batch.tags_N)
        return lambda: baselines.search(data, **limits)

    return theirs


def _ours(batch: FrameBatch, *, remembers: bool, **limits: Any) -> Callable[[], Any]:
    systems = batch.systems
    search = SkinSearch(SKIN_ANGSTROM) if remembers else find_neighbors

    def function() -> Any:
        return search(systems.positions_N3, systems.cell_B33, systems.pbc_B3, systems.structure_N, **limits)

    for _ in range(2 if remembers else 0):  # after which it has gathered its candidates
        function()
    return function


def run_neighbors(session: Session) -> MakeTables:
    """Measure all searches over growing systems, ours and fairchem's over mixed cells, for ``neighbors.csv``."""
    alone, together = mixed_batches(quick=session.options.quick)
    outcomes: list[Outcome] = []
    for method in METHODS:
        for cutoff in CUTOFFS:
            outcomes += _growing(session, method, cutoff)
        if method in ("escaip", "fairchem"):
            outcomes += session.runner.run(
                [
                    NeighborCase(**session.options.common, method=method, atoms=list(atoms))
                    for atoms in (*alone, together)
                ]
            )
    return lambda: [session.save(neighbors_table(outcomes, session), "neighbors")]


def _growing(session: Session, method: str, cutoff: float) -> list[Outcome]:
    outcomes: list[Outcome] = []
    last: Outcome | None = None
    before = 1
    for atoms in QUICK_SIZES if session.options.quick else SIZES:
        case = NeighborCase(**session.options.common, method=method, atoms=[atoms], cutoff=cutoff)
        growth = (atoms / before) ** POWERS.get(method, 1)
        reason = why_not_larger(last, growth=growth, longest=LONGEST_SEARCH)
        last = session.runner.drop(case, reason) if reason else session.runner.one(case)
        outcomes.append(last)
        before = atoms
    return outcomes


def neighbors_table(outcomes: Sequence[Outcome], session: Session) -> Table:
    """A row per search."""
    columns = (
        "method", "cutoff (Å)", "structures", "atoms", "time median (s)", "time mean (s)", "time std (s)", "µs/atom",
        "floor (s)", "floor share", "peak memory (MB)", "remark",
    )  # fmt: skip
    notes = [
        "rattled close-packed metal, 20 neighbours; structures of 1 atom have a cell much smaller than the cutoff",
        f"escaip-skin: choosing again among candidates that were gathered before, skin {SKIN_ANGSTROM:g} Å; "
        f"{', '.join(PACKAGES)}: all pairs within the cutoff from that library, and the nearest of them picked by this "
        "package",
        "floor: the bytes of the result over the measured bandwidth; a search has no matrix products to speak of",
        "peak memory: growth while searching",
    ]
    rows = [_row(outcome, session) for outcome in outcomes]
    return Table(title="Neighbour search", columns=columns, rows=rows, notes=notes)


def _row(outcome: Outcome, session: Session) -> dict[str, Any]:
    case = outcome.case
    assert isinstance(case, NeighborCase)
    row: dict[str, Any] = {
        "method": case.method,
        "cutoff (Å)": case.cutoff,
        "structures": len(case.atoms),
        "atoms": sum(case.atoms),
    }
    if not outcome.is_measured:
        return row | {"remark": outcome.remark}
    spread = Spread.of(outcome.seconds)
    floor = Floor(flops=0.0, bytes=outcome.bytes).seconds(session.machine)
    return row | {
        "time median (s)": spread.median,
        "time mean (s)": spread.mean,
        "time std (s)": spread.std,
        "µs/atom": 1e6 * spread.median / sum(case.atoms),
        "floor (s)": floor,
        "floor share": floor / spread.median,
        "peak memory (MB)": max(outcome.peak_bytes) / 1e6,
    }
