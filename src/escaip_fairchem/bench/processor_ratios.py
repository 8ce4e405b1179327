"""Ratios on a processor: fast against plain, beside the peer, and how the neighbour search grows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from escaip_fairchem.bench.cases import FAILED, OUT_OF_MEMORY, GrowthCase, NeighborCase, Outcome
from escaip_fairchem.bench.comparison import best_variant, deviation_note, largest_deviation, medians, times_behind
from escaip_fairchem.bench.device_ratios import PAIRS, PEER, DeviceRatios, Part, why
from escaip_fairchem.bench.requirements import Finding, Requirement, ratio
from escaip_fairchem.bench.searches import mixed_batches
from escaip_fairchem.bench.timing import Spread

LARGEST_DEVIATION = 1e-5
"""Of fast outputs from plain ones, in units of the plain ones' root mean square."""
FLAT_SIZES, QUICK_FLAT_SIZES = (100, 1000, 5000, 20000), (40, 80)
MEMORY_BATCH = 16
WARM_ROUNDS_OF_PEER = 3
"""Its first passes take longest: EquiformerV2 of 83M was seen to take 38, 23, 16 and 12 s in four rounds."""


class ProcessorRatios(DeviceRatios):
    """The ratios of a processor."""

    def parts(self) -> Sequence[Part]:
        """What is measured, in the order of the table."""
        return (
            self.forward, self.beside_peer, self.training, self.memory, self.neighbors, self.flatness, self.trainer,
        )  # fmt: skip

    def findings(self) -> list[Finding]:
        """Measure everything; the peer, which takes longest, last, so that a time limit leaves the others."""
        found = {part: part() for part in sorted(self.parts(), key=lambda part: part == self.beside_peer)}
        return [finding for part in self.parts() for finding in found[part]]

    def forward(self) -> list[Finding]:
        """Forward passes beside the plain path."""
        names = [f"{self.model}:{variant}" for variant in ("plain", "fast", "fast-no-table", "bf16", "plain-bf16")]
        plain, fast = names[0], names[1]
        outcome = self.compare([plain, fast], "inference", repeats=PAIRS)
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
        outcome = self.compare(names, "inference")
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
        outcome = self.compare([peer, ours], "inference", warm_rounds=WARM_ROUNDS_OF_PEER)
        if outcome.status == FAILED and outcome.reason == OUT_OF_MEMORY:
            outcome = self.compare([peer, ours], "inference", warm_rounds=WARM_ROUNDS_OF_PEER, singly=True)
        return outcome

    def training(self) -> list[Finding]:
        """Training steps beside the plain path's."""
        plain, fast = f"{self.model}:plain", f"{self.model}:fast"
        outcome = self.compare([plain, fast], "training")
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
        plain, fast = (self.passes(f"{self.model}:{variant}", "inference", size) for variant in ("plain", "fast"))
        values = [Spread.of([float(peak) for peak in outcome.peak_bytes]).median for outcome in (plain, fast)]
        return [
            Finding(
                requirement=Requirement(
                    what=f"peak memory of inference, batch {size}, against the plain path", device="cpu", bound=4.0
                ),
                value=ratio(*values),
                how=why(plain, fast) or f"{values[0] / 1e9:.3g} GB / {values[1] / 1e9:.3g} GB, weights included",
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
                how=why(theirs, ours)
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
                how=why(big),
            ),
            self._mixed_cells(),
        ]

    def _mixed_cells(self) -> Finding:
        alone, together = mixed_batches(quick=self.options.quick)
        parts = [self._search("escaip", atoms) for atoms in alone]
        mixed = self._search("escaip", together)
        failed = why(*parts, mixed)
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

    def _search(self, method: str, atoms: Sequence[int]) -> Outcome:
        return self.session.runner.one(NeighborCase(**self.options.common, method=method, atoms=list(atoms)))
