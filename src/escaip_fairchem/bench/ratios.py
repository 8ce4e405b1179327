"""All ratios that must be reached, from one run on one machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from escaip_fairchem.bench.cases import (
    FAILED,
    OUT_OF_MEMORY,
    CompareCase,
    GrowthCase,
    NeighborCase,
    Outcome,
    PassCase,
)
from escaip_fairchem.bench.comparison import (
    best_variant,
    comparison_table,
    deviation_note,
    largest_deviation,
    medians,
    times_behind,
)
from escaip_fairchem.bench.models import ESCAIP, parse_name
from escaip_fairchem.bench.options import Options, Session
from escaip_fairchem.bench.requirements import Finding, Requirement, ratio, requirements_table
from escaip_fairchem.bench.searches import mixed_batches
from escaip_fairchem.bench.tables import MakeTables, Table
from escaip_fairchem.bench.timing import Spread
from escaip_fairchem.bench.trainer import trainer_case

LARGEST_DEVIATION = 1e-5
"""Of fast outputs from plain ones, in units of the plain ones' root mean square."""
PEER = "equiformer-v2-83m"
FLAT_SIZES, QUICK_FLAT_SIZES = (100, 1000, 5000, 20000), (40, 80)
MEMORY_BATCH = 16
GPU_BATCH = 32
PAIRS, SEVERAL, QUICK_REPEATS = 15, 7, 3
"""Rounds of a comparison in which each model has its turn: of two fast ones, of slow or many ones, of a quick run."""
WARM_ROUNDS_OF_PEER = 3
"""Its first passes take longest: EquiformerV2 of 83M was seen to take 38, 23, 16 and 12 s in four rounds."""
PATIENCE = {"cpu": 6.0, "cuda": 1.0}
"""How many of a case's usual budgets each model of a comparison has. A ratio of few passes on a processor that others
share says little."""
Part = Callable[[], list[Finding]]
TRAINER_SHARE = "trainer time outside forward, backward and optimizer"


class Ratios:
    """Measures what the ratios need, and works them out.

    Args:
        session: The run.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.options: Options = session.options
        chosen = [name.model for name in self.options.names((), ()) if name.model in ESCAIP]
        self.model = chosen[0] if chosen else "escaip-tiny" if self.options.quick else "escaip-small"
        wants_peer = self.options.models is None or any(name == PEER for name in self.options.models)
        self.peer = PEER if wants_peer and not (self.options.quick and self.options.models is None) else None
        self.device = self.options.device
        self._compared: list[Outcome] = []

    def measure(self) -> MakeTables:
        """Measure everything.

        Returns:
            Makes the table of ratios, and those of the times that it is made from.
        """
        parts: Sequence[Part] = (self.gpu, self.trainer) if self.device == "cuda" else self._cpu_parts()
        # The peer takes longest: last, so that a time limit leaves the others.
        found = {part: part() for part in sorted(parts, key=lambda part: part == self.beside_peer)}
        findings = [finding for part in parts for finding in found[part]]
        if self.device == "cpu":
            findings += [Finding(requirement=requirement, how="needs a GPU") for requirement in self.gpu_requirements()]
        notes = [
            f"model: {self.model}, direct energy and forces, random weights from seed {self.options.seed}, the same "
            "for all variants; ratios are of medians",
            "outputs are compared with the plain path's, in units of its root mean square",
        ]
        requirements = requirements_table(findings, notes)
        return lambda: [requirements, *(comparison_table(outcome, self.session) for outcome in self._compared)]

    def _cpu_parts(self) -> Sequence[Part]:
        """In the order of the table."""
        return (
            self.forward, self.beside_peer, self.training, self.memory, self.neighbors, self.flatness, self.trainer,
        )  # fmt: skip

    def forward(self) -> list[Finding]:
        """Forward passes beside the plain path."""
        names = [f"{self.model}:{variant}" for variant in ("plain", "fast", "fast-no-table", "bf16", "plain-bf16")]
        plain, fast = names[0], names[1]
        outcome = self._compare([plain, fast], "inference", repeats=PAIRS)
        seconds = medians(outcome)
        deviations = outcome.extra.get("deviations", {})
        where = outcome.extra.get("frames", "")
        faster = Finding(
            requirement=Requirement(
                what=f"forward, {self.model} fp32, {where}, against the plain path",
                device="cpu",
                bound=1.5,
                also=f"outputs equal to {LARGEST_DEVIATION:g}",
            ),
            value=ratio(seconds.get(plain, math.nan), seconds.get(fast, math.nan)),
            holds=largest_deviation(deviations.get(fast)) <= LARGEST_DEVIATION if fast in deviations else None,
            how=times_behind(outcome, plain, fast) + deviation_note(deviations.get(fast)),
        )
        outcome = self._compare(names, "inference")
        seconds = medians(outcome)
        deviations = outcome.extra.get("deviations", {})
        best = best_variant(seconds, deviations, self.model)
        lower = Finding(
            requirement=Requirement(
                what="forward, best precision with forces within 1 % of fp32's RMS, against plain fp32",
                device="cpu",
                bound=4.0,
            ),
            value=ratio(seconds.get(plain, math.nan), seconds.get(best, math.nan)),
            how=times_behind(outcome, plain, best) + deviation_note(deviations.get(best)),
        )
        return [faster, lower]

    def beside_peer(self) -> list[Finding]:
        """Forward passes in turn with the peer's, as published and frozen; the smaller ratio counts."""
        ours = f"{self.model}:fast"
        requirement = Requirement(what=f"forward, fp32, against {PEER}", device="cpu", bound=15.0)
        if self.peer is None:
            return [Finding(requirement=requirement, how=f"{PEER}: not asked for")]
        names = [f"{self.peer}:{variant}" for variant in ("published", "frozen")]
        outcomes = [self._in_turn(name, ours) for name in names]
        ratios = [
            ratio(medians(outcome).get(name, math.nan), medians(outcome).get(ours, math.nan))
            for name, outcome in zip(names, outcomes, strict=True)
        ]
        how = [times_behind(outcome, name, ours) for name, outcome in zip(names, outcomes, strict=True)]
        measured = [value for value in ratios if not math.isnan(value)]
        how_text = "; ".join(dict.fromkeys(how))
        return [Finding(requirement=requirement, value=min(measured, default=math.nan), how=how_text)]

    def _in_turn(self, peer: str, ours: str) -> Outcome:
        """The peer beside one of ours, the peer's frames one by one where memory does not suffice."""
        # Two models alone in a process: the peer's forward pass needs most of an ordinary machine's memory.
        outcome = self._compare([peer, ours], "inference", warm_rounds=WARM_ROUNDS_OF_PEER)
        if outcome.status == FAILED and outcome.reason == OUT_OF_MEMORY:
            outcome = self._compare([peer, ours], "inference", warm_rounds=WARM_ROUNDS_OF_PEER, singly=True)
        return outcome

    def training(self) -> list[Finding]:
        """Training steps beside the plain path's."""
        plain, fast = f"{self.model}:plain", f"{self.model}:fast"
        outcome = self._compare([plain, fast], "training")
        seconds = medians(outcome)
        return [
            Finding(
                requirement=Requirement(what="training step, fp32, against the plain path", device="cpu", bound=1.4),
                value=ratio(seconds.get(plain, math.nan), seconds.get(fast, math.nan)),
                how=times_behind(outcome, plain, fast),
            )
        ]

    def memory(self) -> list[Finding]:
        """Peak memory of inference beside the plain path's."""
        size = 2 if self.options.quick else MEMORY_BATCH
        plain, fast = (self._pass(f"{self.model}:{variant}", "inference", size) for variant in ("plain", "fast"))
        values = [Spread.of([float(peak) for peak in outcome.peak_bytes]).median for outcome in (plain, fast)]
        return [
            Finding(
                requirement=Requirement(
                    what=f"peak memory of inference, batch {size}, against the plain path", device="cpu", bound=4.0
                ),
                value=ratio(*values),
                how=_why(plain, fast) or f"{values[0] / 1e9:.3g} GB / {values[1] / 1e9:.3g} GB, weights included",
            )
        ]

    def neighbors(self) -> list[Finding]:
        """The neighbour search beside fairchem's, its memory for large systems and for mixed cells."""
        atoms, large = (60, 200) if self.options.quick else (1000, 20000)
        ours, theirs = (self._search(method, [atoms]) for method in ("escaip", "fairchem"))
        big = self._search("escaip", [large])
        peak = max(big.peak_bytes, default=0) / 1e9 if big.is_measured else math.nan
        return [
            Finding(
                requirement=Requirement(
                    what=f"neighbour search against fairchem's radius_graph_pbc, {atoms:,} atoms, r = 12 Å",
                    device="cpu",
                    bound=50.0,
                ),
                value=ratio(Spread.of(theirs.seconds).median, Spread.of(ours.seconds).median),
                how=_why(theirs, ours)
                or f"{Spread.of(theirs.seconds).median:.4g} s / {Spread.of(ours.seconds).median:.4g} s",
            ),
            Finding(
                requirement=Requirement(
                    what=f"memory of the neighbour search, {large:,} atoms",
                    device="cpu",
                    bound=4.0,
                    unit="GB",
                    at_most=True,
                ),
                value=peak,
                how=_why(big),
            ),
            self._mixed_cells(),
        ]

    def _mixed_cells(self) -> Finding:
        alone, together = mixed_batches(quick=self.options.quick)
        parts = [self._search("escaip", atoms) for atoms in alone]
        mixed = self._search("escaip", together)
        failed = _why(*parts, mixed)
        peaks = [max(outcome.peak_bytes, default=0) for outcome in (*parts, mixed)]
        growth = ratio(float(peaks[-1]), float(sum(peaks[:-1]))) if not failed else math.nan
        sizes = " + ".join(f"{peak / 1e6:.0f}" for peak in peaks[:-1])
        return Finding(
            requirement=Requirement(
                what="memory of the neighbour search, cells of different sizes in one batch over each by itself",
                device="cpu",
                bound=1.1,
                at_most=True,
            ),
            value=growth,
            how=failed or f"{peaks[-1] / 1e6:.0f} MB / ({sizes}) MB",
        )

    def flatness(self) -> list[Finding]:
        """Time per atom of small and large systems."""
        sizes = QUICK_FLAT_SIZES if self.options.quick else FLAT_SIZES
        case = GrowthCase(**self.options.common, model=self.model, variant="fast", atoms=list(sizes))
        outcome = self.session.runner.one(case)
        how, value = outcome.remark, math.nan
        if outcome.is_measured:
            relative = {atoms: Spread.of(values).median for atoms, values in outcome.extra["relative"].items()}
            value = 100.0 * (max(*relative.values(), 1.0) / min(*relative.values(), 1.0) - 1.0)
            listed = ", ".join(f"{int(atoms):,}: {times:.3f}" for atoms, times in relative.items())
            smallest = 1e6 * Spread.of(outcome.seconds).median / sizes[0]
            how = f"{sizes[0]:,}: {smallest:.4g} µs; in units of that, just before and after each: {listed}"
        return [
            Finding(
                requirement=Requirement(
                    what=f"time per atom, {sizes[0]:,} → {sizes[-1]:,} atoms, {self.model}: largest over smallest",
                    device="cpu",
                    bound=15.0,
                    unit="% more",
                    at_most=True,
                ),
                value=value,
                how=how,
            )
        ]

    def trainer(self) -> list[Finding]:
        """Share of the trainer's time outside the model."""
        case = trainer_case(self.session, self.model, "fast")
        outcome = self.session.runner.one(case)
        share = 100.0 * float(outcome.extra["outside"]) if outcome.is_measured else math.nan
        return [
            Finding(
                requirement=Requirement(
                    what=TRAINER_SHARE,
                    device=self.device,
                    bound=5.0,
                    unit="%",
                    at_most=True,
                ),
                value=share,
                how=_why(outcome) or f"{self.model}, batch {case.batch_size}, {len(outcome.seconds)} steps",
            )
        ]

    def gpu_requirements(self) -> list[Requirement]:
        """What is asked of a GPU, in the order in which :meth:`gpu` finds it."""
        return [
            Requirement(what=what, device="cuda", bound=bound, unit=unit, at_most=at_most)
            for what, bound, unit, at_most in (
                (f"inference samples/s against {PEER}, each at its best precision", 10.0, "×", False),
                (f"peak memory of inference against {PEER}", 5.0, "×", False),
                (f"training samples/s against {PEER}, each at its best precision", 10.0, "×", False),
                (f"share of the measured bf16 matrix rate, {self.model}, FLOPs of the plain model", 50.0, "%", False),
                (TRAINER_SHARE, 5.0, "%", True),
            )
        ]

    def gpu(self) -> list[Finding]:
        """Speed and memory beside the peer's at equal batch size, and the share of the measured bf16 rate."""
        ours = [f"{self.model}:{variant}" for variant in ("fast", "tf32", "bf16", "bf16-triton")]
        peers = [f"{self.peer}:{variant}" for variant in ("published", "tf32")] if self.peer else []
        frozen = [f"{self.peer}:{variant}" for variant in ("frozen", "frozen-tf32")] if self.peer else []
        speed, memory, training, rate, _ = self.gpu_requirements()
        # How far their outputs agree; by itself what may fail where the kernel cannot be compiled.
        for variants in (("plain", "fast", "tf32", "bf16"), ("plain", "triton", "bf16-triton")):
            self._compare([f"{self.model}:{variant}" for variant in variants], "inference")
        theirs, _ = (self._best(names, "inference") for names in ([*peers, *frozen], ours))
        findings = [
            _samples(training, *(self._best(names, "training") for names in (peers, ours))),
            self._share_of_rate(rate),
        ]
        # Last, and not with all the time, which compiling might take; those from above are remembered.
        with self.session.runner.share_of_time(0.5):
            best = self._best([*ours, f"{self.model}:bf16-compiled"], "inference")
        return [_samples(speed, theirs, best), _peaks(memory, theirs, best), *findings]

    def _best(self, names: Sequence[str], mode: str) -> Outcome | None:
        """The fastest of several ways to run a model, or why there is none."""
        outcomes = [self._pass(name, mode, self._gpu_batch) for name in names]
        measured = [outcome for outcome in outcomes if outcome.is_measured]
        return min(measured, key=_median) if measured else next(iter(outcomes), None)

    @property
    def _gpu_batch(self) -> int:
        return 2 if self.options.quick else GPU_BATCH

    def _share_of_rate(self, requirement: Requirement) -> Finding:
        outcome = self._pass(f"{self.model}:bf16", "inference", self._gpu_batch)
        rate = self.session.machine.rate("bf16")
        atoms = Spread.of([float(count) for count in outcome.atoms]).median
        share = 100.0 * outcome.flops * atoms / _median(outcome) / rate if outcome.is_measured else math.nan
        how = _why(outcome) or f"batch {self._gpu_batch}, rate {rate / 1e12:.0f} TFLOP/s"
        return Finding(requirement=requirement, value=share, how=how)

    def _compare(
        self, names: list[str], mode: str, *, repeats: int = SEVERAL, warm_rounds: int = 1, singly: bool = False
    ) -> Outcome:
        common = self.options.common
        case = CompareCase(
            **{**common, "budget": PATIENCE[self.device] * common["budget"]},
            names=names,
            mode=mode,
            repeats=QUICK_REPEATS if self.options.quick else repeats,
            warm_rounds=1 if self.options.quick or self.device == "cuda" else warm_rounds,
            singly=singly,
        )
        outcome = self.session.runner.one(case)
        self._compared.append(outcome)
        return outcome

    def _pass(self, name: str, mode: str, size: int) -> Outcome:
        parsed = parse_name(name)
        batches = 3 if self.options.quick else 16
        case = PassCase(
            **self.options.common,
            model=parsed.model,
            variant=parsed.variant,
            mode=mode,
            batch_size=size,
            batches=batches,
        )
        return self.session.runner.one(case)

    def _search(self, method: str, atoms: Sequence[int]) -> Outcome:
        return self.session.runner.one(NeighborCase(**self.options.common, method=method, atoms=list(atoms)))


def run_ratios(session: Session) -> MakeTables:
    """Measure and work out all ratios; their file is ``ratios.csv``, that of times ``ratios_times_0.csv`` and so on."""
    make = Ratios(session).measure()

    def saved() -> list[Table]:
        tables = make()
        names = ["ratios", *(f"ratios_times_{number}" for number in range(len(tables) - 1))]
        return [session.save(table, name) for table, name in zip(tables, names, strict=True)]

    return saved


def _why(*outcomes: Outcome) -> str:
    return "; ".join(f"{outcome.case.title}: {outcome.remark}" for outcome in outcomes if not outcome.is_measured)


def _median(outcome: Outcome) -> float:
    return Spread.of(outcome.seconds).median


def _samples(requirement: Requirement, theirs: Outcome | None, ours: Outcome | None) -> Finding:
    """Ratio of samples per second, from median times at equal batch size."""
    return _between(requirement, theirs, ours, _median, lambda outcome: f"{_median(outcome):.4g} s")


def _peaks(requirement: Requirement, theirs: Outcome | None, ours: Outcome | None) -> Finding:
    """Ratio of peak memory."""
    return _between(requirement, theirs, ours, _peak, lambda outcome: f"{_peak(outcome) / 1e9:.3g} GB")


def _between(
    requirement: Requirement,
    theirs: Outcome | None,
    ours: Outcome | None,
    size: Callable[[Outcome], float],
    text: Callable[[Outcome], str],
) -> Finding:
    if theirs is None or ours is None:
        return Finding(requirement=requirement, how="not asked for")
    if not (theirs.is_measured and ours.is_measured):
        return Finding(requirement=requirement, how=_why(theirs, ours))
    how = " / ".join(f"{outcome.case.title} {text(outcome)}" for outcome in (theirs, ours))
    return Finding(requirement=requirement, value=ratio(size(theirs), size(ours)), how=how)


def _peak(outcome: Outcome) -> float:
    return Spread.of([float(peak) for peak in outcome.peak_bytes]).median
