"""Trainings that have ended, kept in a file, so that a comparison of hours can be made in several pieces."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from escaip_fairchem.bench.cases import Case, Outcome, outcome_from
from escaip_fairchem.errors import ConfigError


class KeptTrainings:
    """Outcomes of trainings, those of earlier commands included.

    Args:
        path: File with a line of JSON per training, made when it is needed; None keeps nothing.
        conditions: What must be the same for all trainings in a file: machine, versions, trainings at a time.

    Raises:
        ConfigError: The file holds trainings under other conditions, or is none of this kind.
    """

    def __init__(self, path: Path | None, conditions: Mapping[str, str | int]) -> None:
        self._path = path
        self._conditions = dict(conditions)
        self.outcomes: list[Outcome] = [] if path is None or not path.is_file() else self._read(path)

    def has(self, case: Case) -> bool:
        """Whether a training was measured; the place of its files does not matter."""
        return any(kept.case == _anywhere(case) for kept in self.outcomes if kept.is_measured)

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome; only what was measured goes into the file."""
        outcome = replace(outcome, case=_anywhere(outcome.case))
        self.outcomes.append(outcome)
        if self._path is None or not outcome.is_measured:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"conditions": self._conditions, "outcome": outcome.as_dict()}) + "\n")

    def _read(self, path: Path) -> list[Outcome]:
        outcomes = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                content = json.loads(line)
                conditions, outcome = content["conditions"], outcome_from(content["outcome"])
            except (ValueError, KeyError, TypeError):
                raise ConfigError(f"{path}, line {number}: is no training that was kept; remove the line") from None
            differing = sorted(
                name
                for name in conditions.keys() | self._conditions.keys()
                if conditions.get(name) != self._conditions.get(name)
            )
            if differing:
                told = ", ".join(f"{it}: {conditions.get(it)}, now {self._conditions.get(it)}" for it in differing)
                raise ConfigError(
                    f"{path}: holds trainings that cannot be compared with new ones ({told}); "
                    "ask for the same again, or give another folder by --out"
                )
            outcomes.append(outcome)
        return outcomes


def _anywhere(case: Case) -> Case:
    return replace(case, frames=None)
