"""What is asked of a measuring process, and what it answers; both travel as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from escaip_fairchem.bench.models import ModelName

MEASURED, NOT_AVAILABLE, FAILED, DROPPED = "measured", "not available", "failed", "dropped"
"""How a case can end."""
OUT_OF_MEMORY = "out of memory"
"""Reason of a case that failed for want of memory."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to measure. Further fields belong to the kind.

    Attributes:
        device: ``cpu`` or ``cuda``.
        seed: Decides parameters and data.
        frames: Folder of real frames; None: beside the project.
        budget: Seconds after which no further repetition is begun.
    """

    kind: ClassVar[str]

    device: str = "cpu"
    seed: int = 0
    frames: str | None = None
    budget: float = 60.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"kind": self.kind, **asdict(self)}

    @property
    def folder(self) -> Path | None:
        """Folder of real frames."""
        return None if self.frames is None else Path(self.frames)

    @property
    def title(self) -> str:
        """What is measured, for messages."""
        return self.kind


@dataclass(frozen=True, kw_only=True)
class PassCase(Case):
    """Forward passes or training steps of one model over batches that are drawn at random.

    Attributes:
        model: Name of the model.
        variant: Way to run it.
        mode: ``inference`` or ``training``.
        batch_size: Structures per batch.
        batches: Number of batches.
    """

    kind: ClassVar[str] = "passes"

    model: str
    variant: str
    mode: str = "inference"
    batch_size: int = 1
    batches: int = 16

    @property
    def name(self) -> ModelName:
        """Model and variant."""
        return ModelName(model=self.model, variant=self.variant)

    @property
    def title(self) -> str:
        """What is measured, for messages."""
        return f"{self.name} {self.mode}, batch {self.batch_size}"


@dataclass(frozen=True, kw_only=True)
class CompareCase(Case):
    """Models beside each other on one batch, in turn, so that a slow moment of the machine hits all of them.

    Attributes:
        names: ``model:variant`` each; the first is what the others are compared with.
        mode: ``inference`` or ``training``.
        repeats: Most repetitions of each.
        warm_rounds: Repetitions of each before those that count.
        singly: Whether fairchem's models take one structure after the other, where they need too much memory for all.
    """

    kind: ClassVar[str] = "compare"

    names: list[str]
    mode: str = "inference"
    repeats: int = 5
    warm_rounds: int = 0
    singly: bool = False

    @property
    def title(self) -> str:
        """What is measured, for messages."""
        singly = ", fairchem's structures one by one" if self.singly else ""
        return f"{' / '.join(self.names)} {self.mode}, in turn{singly}"


@dataclass(frozen=True, kw_only=True)
class NeighborCase(Case):
    """A neighbour search.

    Attributes:
        method: One of ``bench.searches.METHODS``.
        atoms: Atoms of every structure of the batch.
        cutoff: Å.
        max_neighbors: Most neighbours of an atom.
        repeats: Most repetitions.
    """

    kind: ClassVar[str] = "neighbors"

    method: str
    atoms: list[int]
    cutoff: float = 12.0
    max_neighbors: int = 20
    repeats: int = 5

    @property
    def title(self) -> str:
        """What is measured, for messages."""
        return f"neighbour search by {self.method}, {'+'.join(map(str, self.atoms))} atoms"


@dataclass(frozen=True, kw_only=True)
class DynamicsCase(Case):
    """Molecular dynamics of one system.

    Attributes:
        model: Name of one of this package's models.
        variant: Way to run it.
        driver: ``bare`` (a loop over tensors) or ``ase`` (``OCPCalculator`` and ASE's integrator).
        atoms: Number of atoms.
        steps: Most steps.
    """

    kind: ClassVar[str] = "dynamics"

    model: str
    variant: str
    driver: str
    atoms: int
    steps: int = 10

    @property
    def name(self) -> ModelName:
        """Model and variant."""
        return ModelName(model=self.model, variant=self.variant)

    @property
    def title(self) -> str:
        """What is measured, for messages."""
        return f"{self.name} dynamics ({self.driver}), {self.atoms} atoms"


@dataclass(frozen=True, kw_only=True)
class GrowthCase(Case):
    """Forward passes of growing systems, each between passes of the smallest, which say how fast the machine was then.

    Attributes:
        model: Name of one of this package's models.
        variant: Way to run it.
        atoms: Sizes, ascending.
        repeats: Most repetitions of each.
    """

    kind: ClassVar[str] = "growth"

    model: str
    variant: str
    atoms: list[int]
    repeats: int = 5

    @property
    def name(self) -> ModelName:
        """Model and variant."""
        return ModelName(model=self.model, variant=self.variant)

    @property
    def title(self) -> str:
        """What is measured, for messages."""
        return f"{self.name} inference, {self.atoms[0]} to {self.atoms[-1]} atoms"


@dataclass(frozen=True, kw_only=True)
class TrainerCase(Case):
    """Training steps through the trainer ``escaip_forces`` and its loaders.

    Attributes:
        model: Name of one of this package's models.
        variant: Way to run it.
        batch_size: Structures per batch.
        steps: Steps that count, after the warm-up.
        workers: Processes that load data.
    """

    kind: ClassVar[str] = "trainer"

    model: str
    variant: str
    batch_size: int = 8
    steps: int = 16
    workers: int = 0

    @property
    def name(self) -> ModelName:
        """Model and variant."""
        return ModelName(model=self.model, variant=self.variant)

    @property
    def title(self) -> str:
        """What is measured, for messages."""
        return f"{self.name} through the trainer, batch {self.batch_size}"


@dataclass(frozen=True, kw_only=True)
class AccuracyCase(Case):
    """Training of one model on a small set for ``budget`` seconds.

    Attributes:
        model: One of ``bench.accuracy_models.MODELS``.
        data: One of ``bench.accuracy_sets.SETS``.
        draw: Seed of split, parameters and order.
    """

    kind: ClassVar[str] = "accuracy"

    model: str
    data: str
    draw: int = 0

    @property
    def title(self) -> str:
        """What is measured, for messages."""
        return f"{self.model} on {self.data}, {self.budget:g} s, seed {self.draw}"


KINDS: dict[str, type[Case]] = {
    case.kind: case
    for case in (PassCase, CompareCase, NeighborCase, DynamicsCase, GrowthCase, TrainerCase, AccuracyCase)
}


def case_from(content: Mapping[str, Any]) -> Case:
    """The case that ``as_dict`` wrote."""
    values = dict(content)
    return KINDS[values.pop("kind")](**values)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a case ended.

    Attributes:
        case: The case.
        status: One of :data:`MEASURED`, :data:`NOT_AVAILABLE`, :data:`FAILED`, :data:`DROPPED`.
        reason: Why nothing was measured; empty otherwise.
        seconds: Each repetition's time.
        atoms: Atoms in each repetition's batch.
        peak_bytes: Each repetition's peak memory; empty where it was not watched.
        flops: Operations of the plain model per atom.
        bytes: Fewest bytes to move per repetition.
        parameters: Number of parameters.
        weight_bytes: Their size.
        extra: What else the kind measures, by name.
    """

    case: Case
    status: str = MEASURED
    reason: str = ""
    seconds: Sequence[float] = ()
    atoms: Sequence[int] = ()
    peak_bytes: Sequence[int] = ()
    flops: float = float("nan")
    bytes: float = 0.0
    parameters: int = 0
    weight_bytes: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_measured(self) -> bool:
        """Whether there are figures."""
        return self.status == MEASURED

    @property
    def remark(self) -> str:
        """Status and reason as tables show them; empty where there are figures."""
        return "" if self.is_measured else f"{self.status}: {self.reason}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        content = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "case"}
        return {"case": self.case.as_dict(), **content}


def why_not_larger(last: Outcome | None, *, growth: float, longest: float) -> str:
    """Why a case is not worth trying after a smaller one of its kind; empty if it is.

    Args:
        last: How the smaller one ended; None if there was none.
        growth: How many times longer this one is expected to take.
        longest: Seconds that one repetition may take.
    """
    if last is None:
        return ""
    if not last.is_measured:
        return last.reason if last.status in (NOT_AVAILABLE, DROPPED) else "smaller ones did not work"
    expected = statistics.median(last.seconds) * growth
    return f"would take about {expected:.0f} s" if expected > longest else ""


def outcome_from(content: Mapping[str, Any]) -> Outcome:
    """The outcome that ``as_dict`` wrote."""
    return Outcome(**{**content, "case": case_from(content["case"])})
