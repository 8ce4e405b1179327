"""What the ratios of any device need: the model, its peer, and cases that are measured at most once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from escaip_fairchem.bench.cases import CompareCase, Outcome, PassCase
from escaip_fairchem.bench.models import ESCAIP, parse_name
from escaip_fairchem.bench.options import Options, Session
from escaip_fairchem.bench.requirements import Finding, Requirement
from escaip_fairchem.bench.timing import Spread
from escaip_fairchem.bench.trainer import trainer_case

PEER = "equiformer-v2-83m"
PAIRS, SEVERAL, QUICK_REPEATS = 15, 7, 3
"""Rounds of a comparison in which each model has its turn: of two fast ones, of slow or many ones, of a quick run."""
PATIENCE = {"cpu": 6.0, "cuda": 1.0}
"""How many of a case's usual budgets each model of a comparison has. A ratio of few passes on a processor that others
share says little."""
Part = Callable[[], list[Finding]]
TRAINER_SHARE = "trainer time outside forward, backward and optimizer"


class DeviceRatios(ABC):
    """Measures what the ratios of a device need.

    Args:
        session: The run.

    Attributes:
        compared: Comparisons so far.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.options: Options = session.options
        chosen = [name.model for name in self.options.names((), ()) if name.model in ESCAIP]
        self.model = chosen[0] if chosen else "escaip-tiny" if self.options.quick else "escaip-small"
        wants_peer = self.options.models is None or any(name == PEER for name in self.options.models)
        self.peer = PEER if wants_peer and not (self.options.quick and self.options.models is None) else None
        self.device = self.options.device
        self.compared: list[Outcome] = []

    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """What is measured, in the order of the table."""

    def findings(self) -> list[Finding]:
        """Measure everything."""
        return [finding for part in self.parts() for finding in part()]

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
                how=why(outcome) or f"{self.model}, batch {case.batch_size}, {len(outcome.seconds)} steps",
            )
        ]

    def compare(
        self, names: list[str], mode: str, *, repeats: int = SEVERAL, warm_rounds: int = 1, singly: bool = False
    ) -> Outcome:
        """Passes of several models in turn, in one process."""
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
        self.compared.append(outcome)
        return outcome

    def passes(self, name: str, mode: str, size: int) -> Outcome:
        """Passes of one model in a process of its own."""
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


def why(*outcomes: Outcome) -> str:
    """Why outcomes hold no figures; empty if all do."""
    return "; ".join(f"{outcome.case.title}: {outcome.remark}" for outcome in outcomes if not outcome.is_measured)


def median(outcome: Outcome) -> float:
    """Seconds of a pass."""
    return Spread.of(outcome.seconds).median
