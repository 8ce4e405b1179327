"""FIRE, the fast inertial relaxation engine, for many systems at once.

Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006), in the variant and with the settings of ``ase.optimize.FIRE``, step
by step. Every system has a state of its own, and no number of one depends on the others. Legend: B systems, R rows of
three degrees of freedom, the rows of a system one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from escaip_fairchem.evaluate.labels import FloatArray


@dataclass(frozen=True, kw_only=True)
class FireSettings:
    """Settings of FIRE; the defaults are ASE's.

    Attributes:
        time_step: First time step.
        longest_time_step: Largest time step.
        longest_move: Longest displacement of a system in one step: the norm over all of its rows, Å.
        patience: Steps downhill before the time step grows.
        growth: Factor by which it grows.
        shrinkage: Factor by which it shrinks after a step uphill.
        mixing: First share of the velocity that is turned into the direction of the force.
        mixing_decay: Factor by which that share falls.
    """

    time_step: float = 0.1
    longest_time_step: float = 1.0
    longest_move: float = 0.2
    patience: int = 5
    growth: float = 1.1
    shrinkage: float = 0.5
    mixing: float = 0.1
    mixing_decay: float = 0.99


class BatchedFire:
    """The states of several relaxations.

    Args:
        settings: Settings of all of them.
    """

    def __init__(self, settings: FireSettings | None = None) -> None:
        self.settings = settings or FireSettings()
        self.rows_B = np.zeros(0, dtype=np.int64)
        self.velocities_R3: FloatArray = np.zeros((0, 3))
        self.time_step_B: FloatArray = np.zeros(0)
        self.mixing_B: FloatArray = np.zeros(0)
        self.downhill_B = np.zeros(0, dtype=np.int64)
        self.moving_B = np.zeros(0, dtype=bool)

    def __len__(self) -> int:
        return len(self.rows_B)

    def add(self, rows: Sequence[int]) -> None:
        """Append systems that have not moved yet.

        Args:
            rows: Rows of each, at least 1.
        """
        count = len(rows)
        self.rows_B = np.append(self.rows_B, np.asarray(rows, dtype=np.int64))
        self.velocities_R3 = np.concatenate([self.velocities_R3, np.zeros((sum(rows), 3))])
        self.time_step_B = np.append(self.time_step_B, np.full(count, self.settings.time_step))
        self.mixing_B = np.append(self.mixing_B, np.full(count, self.settings.mixing))
        self.downhill_B = np.append(self.downhill_B, np.zeros(count, dtype=np.int64))
        self.moving_B = np.append(self.moving_B, np.zeros(count, dtype=bool))

    def keep(self, keep_B: npt.NDArray[np.bool_]) -> None:
        """Drop the systems that are not marked."""
        self.velocities_R3 = self.velocities_R3[np.repeat(keep_B, self.rows_B)]
        for name in ("rows_B", "time_step_B", "mixing_B", "downhill_B", "moving_B"):
            setattr(self, name, getattr(self, name)[keep_B])

    def step(self, forces_R3: FloatArray) -> FloatArray:
        """Take one step of every system.

        Args:
            forces_R3: Forces at the present coordinates, finite.

        Returns:
            How the coordinates move, shape (R, 3).
        """
        settings, velocities_R3 = self.settings, self.velocities_R3
        downhill_B = self.moving_B & (self._dots(forces_R3, velocities_R3) > 0.0)
        uphill_B = self.moving_B & ~downhill_B
        speed_B, force_B = (np.sqrt(self._dots(rows, rows)) for rows in (velocities_R3, forces_R3))
        # A force of exactly zero has no direction; the velocity of such a system is never mixed.
        turned_B = np.where(downhill_B, self.mixing_B * speed_B / np.where(force_B > 0.0, force_B, 1.0), 0.0)
        kept_B = np.where(downhill_B, 1.0 - self.mixing_B, 0.0)
        self._adapt(downhill_B, uphill_B)
        self.moving_B = np.ones_like(self.moving_B)
        pushed_B = turned_B + self.time_step_B
        self.velocities_R3 = self._spread(kept_B) * velocities_R3 + self._spread(pushed_B) * forces_R3
        moves_R3 = self._spread(self.time_step_B) * self.velocities_R3
        length_B = np.sqrt(self._dots(moves_R3, moves_R3))
        return self._spread(settings.longest_move / np.maximum(length_B, settings.longest_move)) * moves_R3

    def _adapt(self, downhill_B: npt.NDArray[np.bool_], uphill_B: npt.NDArray[np.bool_]) -> None:
        """Let time steps grow after a while downhill, and begin anew uphill."""
        settings = self.settings
        faster_B = downhill_B & (self.downhill_B > settings.patience)
        grown_B = np.minimum(self.time_step_B * settings.growth, settings.longest_time_step)
        shrunk_B = np.where(uphill_B, self.time_step_B * settings.shrinkage, self.time_step_B)
        self.time_step_B = np.where(faster_B, grown_B, shrunk_B)
        falling_B = np.where(faster_B, self.mixing_B * settings.mixing_decay, self.mixing_B)
        self.mixing_B = np.where(uphill_B, settings.mixing, falling_B)
        self.downhill_B = np.where(uphill_B, 0, self.downhill_B + downhill_B)

    def _dots(self, left_R3: FloatArray, right_R3: FloatArray) -> FloatArray:
        """Scalar products by system. Sums run over the rows of one system only, so they do not depend on the others."""
        products_R = (left_R3 * right_R3).sum(axis=1)
        return np.asarray(np.add.reduceat(products_R, np.cumsum(self.rows_B) - self.rows_B))

    def _spread(self, values_B: FloatArray) -> FloatArray:
        """Repeat a value per system for its rows, shape (R, 1)."""
        return np.repeat(values_B, self.rows_B)[:, None]

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All states as arrays, to be saved."""
        return {
            "rows": self.rows_B,
            "velocities": self.velocities_R3,
            "time_step": self.time_step_B,
            "mixing": self.mixing_B,
            "downhill": self.downhill_B,
            "moving": self.moving_B,
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what :meth:`state` gave."""
        self.rows_B, self.velocities_R3 = state["rows"], state["velocities"]
        self.time_step_B, self.mixing_B = state["time_step"], state["mixing"]
        self.downhill_B, self.moving_B = state["downhill"], state["moving"]
