"""Time per atom of growing systems, in units of the smallest one's."""

from __future__ import annotations

import statistics

from escaip_fairchem.bench.cases import GrowthCase, Outcome
from escaip_fairchem.bench.frames import join, make_bulk
from escaip_fairchem.bench.models import build
from escaip_fairchem.bench.passes import Pass, warm_libraries
from escaip_fairchem.bench.timing import Timer

PASSES_AT_ONCE = 5
"""Of the smallest system; their median counts."""
BUDGETS = 5.0
"""How many of a case's usual budgets each size gets: a pass takes up to minutes, and a single one says little."""


def measure_growth(case: GrowthCase) -> Outcome:
    """Time forward passes, neighbour search included, of rattled metals of growing size.

    A large system takes minutes, in which a shared machine's speed drifts. So each pass of a larger system is set
    against passes of the smallest right before and right after it.

    Returns:
        Times per atom over the smallest system's under ``relative``, by size and repetition, and seconds under
        ``seconds``.
    """
    warm_libraries(case.device)
    run = Pass(build(case.name, seed=case.seed, device=case.device), "inference")
    smallest, *larger = case.atoms
    functions = {atoms: run.on(join([make_bulk(atoms, seed=case.seed)]).to(case.device)) for atoms in case.atoms}
    timer = Timer(case.device)

    def reference() -> float:
        return statistics.median(timer.measure(functions[smallest]) for _ in range(PASSES_AT_ONCE))

    reference()  # whose first pass takes longest
    seconds: dict[int, list[float]] = {atoms: [] for atoms in case.atoms}
    relative: dict[int, list[float]] = {atoms: [] for atoms in larger}
    for atoms in larger:
        before = reference()
        while not seconds[atoms] or (
            len(seconds[atoms]) < case.repeats and sum(seconds[atoms]) < BUDGETS * case.budget
        ):
            taken, after = timer.measure(functions[atoms]), reference()
            seconds[atoms].append(taken)
            relative[atoms].append(taken / atoms / (0.5 * (before + after) / smallest))
            seconds[smallest].append(after)
            before = after
    return Outcome(
        case=case,
        seconds=seconds[smallest],
        atoms=case.atoms,
        extra={
            "seconds": {str(atoms): values for atoms, values in seconds.items()},
            "relative": {str(atoms): values for atoms, values in relative.items()},
        },
    )
