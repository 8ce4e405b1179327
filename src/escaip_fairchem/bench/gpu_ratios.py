"""Ratios on a GPU: speed and memory beside the peer's, and the share of the rate of its matrix units."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from escaip_fairchem.bench.cases import Outcome
from escaip_fairchem.bench.device_ratios import PEER, TRAINER_SHARE, DeviceRatios, Part, median, why
from escaip_fairchem.bench.requirements import Finding, Requirement, ratio
from escaip_fairchem.bench.timing import Spread

GPU_BATCH = 32


def gpu_requirements(model: str) -> list[Requirement]:
    """What is asked of a GPU, in the order of the table."""
    return [
        Requirement(what=what, device="cuda", bound=bound, unit=unit, at_most=at_most)
        for what, bound, unit, at_most in (
            (f"inference samples/s against {PEER}, each at its best precision", 10.0, "×", False),
            (f"peak memory of inference against {PEER}", 5.0, "×", False),
            (f"training samples/s against {PEER}, each at its best precision", 10.0, "×", False),
            (f"share of the measured bf16 matrix rate, {model}, FLOPs of the plain model", 50.0, "%", False),
            (TRAINER_SHARE, 5.0, "%", True),
        )
    ]


class GpuRatios(DeviceRatios):
    """The ratios of a GPU."""

    def parts(self) -> Sequence[Part]:
        """What is measured, in the order of the table."""
        return (self.beside_peer, self.trainer)

    def beside_peer(self) -> list[Finding]:
        """Speed and memory beside the peer's at equal batch size, and the share of the measured bf16 rate."""
        ours = [f"{self.model}:{variant}" for variant in ("fast", "tf32", "bf16", "bf16-triton")]
        peers = [f"{self.peer}:{variant}" for variant in ("published", "tf32")] if self.peer else []
        frozen = [f"{self.peer}:{variant}" for variant in ("frozen", "frozen-tf32")] if self.peer else []
        speed, memory, training, rate, _ = gpu_requirements(self.model)
        # How far their outputs agree; by itself what may fail where the kernel cannot be compiled.
        for variants in (("plain", "fast", "tf32", "bf16"), ("plain", "triton", "bf16-triton")):
            self.compare([f"{self.model}:{variant}" for variant in variants], "inference")
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
        outcomes = [self.passes(name, mode, self._gpu_batch) for name in names]
        measured = [outcome for outcome in outcomes if outcome.is_measured]
        return min(measured, key=median) if measured else next(iter(outcomes), None)

    @property
    def _gpu_batch(self) -> int:
        return 2 if self.options.quick else GPU_BATCH

    def _share_of_rate(self, requirement: Requirement) -> Finding:
        outcome = self.passes(f"{self.model}:bf16", "inference", self._gpu_batch)
        rate = self.session.machine.rate("bf16")
        atoms = Spread.of([float(count) for count in outcome.atoms]).median
        share = 100.0 * outcome.flops * atoms / median(outcome) / rate if outcome.is_measured else math.nan
        how = why(outcome) or f"batch {self._gpu_batch}, rate {rate / 1e12:.0f} TFLOP/s"
        return Finding(requirement=requirement, value=share, how=how)


def _samples(requirement: Requirement, theirs: Outcome | None, ours: Outcome | None) -> Finding:
    """Ratio of samples per second, from median times at equal batch size."""
    return _between(requirement, theirs, ours, median, lambda outcome: f"{median(outcome):.4g} s")


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
        return Finding(requirement=requirement, how=why(theirs, ours))
    how = " / ".join(f"{outcome.case.title} {text(outcome)}" for outcome in (theirs, ours))
    return Finding(requirement=requirement, value=ratio(size(theirs), size(ours)), how=how)


def _peak(outcome: Outcome) -> float:
    return Spread.of([float(peak) for peak in outcome.peak_bytes]).median
