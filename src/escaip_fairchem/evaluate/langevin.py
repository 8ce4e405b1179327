"""Langevin dynamics that go on from their last saved frame as if they had never stopped.

Every saved frame holds all that the next step depends on: positions, momenta, and the random number generator's state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import Stationary

from escaip_fairchem.errors import ConfigError, nearest
from escaip_fairchem.evaluate.potentials import REFUSALS, is_of_device, refusal
from escaip_fairchem.evaluate.stability import StabilityCheck

FRICTION_UNITS = {"1/ps": 1.0 / (1000.0 * units.fs), "1/fs": 1.0 / units.fs, "ase": 1.0}
"""By name, what one of it is in ASE's own unit, one over Å·√(u/eV) = one over 10.18 fs."""

_LOW = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class LangevinOptions:
    """Dynamics in a bath; the defaults are the paper's for MD22, which does not say the unit of the friction.

    Attributes:
        temperature: Of the bath and of the first velocities, K.
        timestep: fs.
        friction: In ``friction_unit``.
        friction_unit: A name of :data:`FRICTION_UNITS`.
        steps: Number of steps.
        every: Steps between two saved frames.
        seed: Decides velocities and noise.

    Raises:
        ConfigError: A value is out of range or a name unknown.
    """

    temperature: float = 500.0
    timestep: float = 0.5
    friction: float = 0.5
    friction_unit: str = "1/ps"
    steps: int = 200_000
    every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "timestep", "friction"):
            if not 0.0 < getattr(self, name) < np.inf:
                raise ConfigError(f"{name}: {getattr(self, name)} must be a positive number")
        if self.friction_unit not in FRICTION_UNITS:
            raise ConfigError(
                f"friction unit {self.friction_unit!r} is unknown{nearest(self.friction_unit, FRICTION_UNITS)}"
            )
        if self.every < 1 or self.steps < self.every:
            raise ConfigError(f"steps: {self.steps} must be at least every: {self.every}, and that at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed: {self.seed} must be 0 or above")

    @property
    def ase_friction(self) -> float:
        """The friction in ASE's unit."""
        return float(self.friction * FRICTION_UNITS[self.friction_unit])

    @property
    def frames(self) -> int:
        """Frames that a run saves, the first and the last included."""
        return self.steps // self.every + 1


def frame_type(atoms: int) -> np.dtype[Any]:
    """What a frame of so many atoms consists of."""
    return np.dtype(
        [
            ("step", "<i8"),
            ("seconds", "<f8"),  # since the start, over all attempts
            ("potential_energy", "<f8"),  # eV
            ("kinetic_energy", "<f8"),  # eV
            ("temperature", "<f8"),  # K
            ("generator", "<u8", (6,)),
            ("positions", "<f8", (atoms, 3)),  # Å
            ("momenta", "<f8", (atoms, 3)),  # ASE's unit, √(u·eV)
        ]
    )


def read_frames(path: Path, atoms: int) -> npt.NDArray[Any]:
    """Read all whole frames of a file; see :func:`frame_type`."""
    kind = frame_type(atoms)
    if not path.is_file():
        return np.zeros(0, dtype=kind)
    return np.fromfile(path, dtype=kind, count=path.stat().st_size // kind.itemsize)


@dataclass(frozen=True, kw_only=True)
class Run:
    """How dynamics ended.

    Attributes:
        frames: All frames; see :func:`frame_type`.
        problem: Why they ended before the last step; empty if they did not.
        broken_at: Step of the first frame that was not stable, or that could not be computed; None if there is none.
    """

    frames: npt.NDArray[Any]
    problem: str
    broken_at: int | None


def run_langevin(
    start: Atoms,
    calculator: BaseCalculator,
    options: LangevinOptions,
    path: Path,
    check: StabilityCheck,
    *,
    report: Callable[[int], None] = lambda step: None,
) -> Run:
    """Run dynamics, or what is left of them.

    Args:
        start: Where to start; not changed. Its velocities play no part.
        calculator: Gives energies and forces.
        options: Bath, steps and seed.
        path: File of frames. What it holds is continued; a frame that was not written to its end, and those after the
            last step that is wanted, are cut off.
        check: Dynamics end when this finds a problem.
        report: Called with the step of every new frame.

    Returns:
        The frames, and why they end.
    """
    kind = frame_type(len(start))
    frames = read_frames(path, len(start))[: options.frames]
    state = _State(start, calculator, options)
    with path.open("ab") as file:
        file.truncate(len(frames) * kind.itemsize)
        try:
            if len(frames):
                state.restore(frames[-1])
            else:
                state.begin()
                state.frame().tofile(file)
                file.flush()
            problem = _problem(state.atoms, check)
            while not problem and state.step < options.steps - options.steps % options.every:
                state.advance()
                problem = _problem(state.atoms, check)
                state.frame().tofile(file)
                file.flush()
                report(state.step)
            broken_at = state.step if problem else None
        except REFUSALS as error:
            if is_of_device(error):
                raise
            # The step after this one has failed, unless not even the start could be evaluated.
            problem, broken_at = refusal(error), state.step + 1 if path.stat().st_size else 0
    return Run(frames=read_frames(path, len(start)), problem=problem, broken_at=broken_at)


def _problem(atoms: Atoms, check: StabilityCheck) -> str:
    return check.problem(atoms.positions) if np.isfinite(atoms.get_potential_energy()) else "the energy is not finite"


class _State:
    """Dynamics between two frames."""

    def __init__(self, start: Atoms, calculator: BaseCalculator, options: LangevinOptions) -> None:
        self.options = options
        self.atoms = start.copy()
        self.atoms.calc = calculator
        self.random = np.random.Generator(np.random.PCG64(options.seed))
        self.step, self.seconds = 0, 0.0
        self.langevin = Langevin(
            self.atoms,
            options.timestep * units.fs,
            temperature_K=options.temperature,
            friction=options.ase_friction,
            fixcm=False,  # the centre of mass takes part in the bath, so that the temperature is right
            rng=self.random,
        )

    def begin(self) -> None:
        """Draw velocities without a drift of the whole."""
        # Not by ASE's functions, whose names and draws change between its versions.
        widths = np.sqrt(self.atoms.get_masses() * units.kB * self.options.temperature)
        self.atoms.set_momenta(widths[:, None] * self.random.standard_normal((len(self.atoms), 3)))
        if not self.atoms.constraints and len(self.atoms) > 1:
            Stationary(self.atoms)

    def advance(self) -> None:
        """Go on to the next frame."""
        begin = time.perf_counter()
        for _ in range(self.options.every):
            self.langevin.step()
            self.step += 1
        self.seconds += time.perf_counter() - begin

    def frame(self) -> npt.NDArray[Any]:
        """The present state as a frame."""
        frame = np.zeros((), dtype=frame_type(len(self.atoms)))
        frame["step"], frame["seconds"] = self.step, self.seconds
        frame["potential_energy"] = self.atoms.get_potential_energy()
        frame["kinetic_energy"] = self.atoms.get_kinetic_energy()
        frame["temperature"] = self.atoms.get_temperature()
        frame["generator"] = _pack(self.random.bit_generator.state)
        frame["positions"], frame["momenta"] = self.atoms.positions, self.atoms.get_momenta()
        return frame

    def restore(self, frame: npt.NDArray[Any]) -> None:
        """Go back to the state of a frame."""
        self.step, self.seconds = int(frame["step"]), float(frame["seconds"])
        # Past the constraints, which would undo what they have done already.
        self.atoms.set_positions(frame["positions"], apply_constraint=False)
        self.atoms.set_momenta(frame["momenta"], apply_constraint=False)
        self.random.bit_generator.state = _unpack(frame["generator"])


def _pack(state: Any) -> list[int]:
    """The state of PCG64: two numbers of 128 bits, and half a draw that may be left."""
    numbers = (state["state"]["state"], state["state"]["inc"])
    halves = [half for number in numbers for half in (number >> 64, number & _LOW)]
    return [*halves, int(state["has_uint32"]), int(state["uinteger"])]


def _unpack(words: npt.NDArray[np.uint64]) -> dict[str, Any]:
    high, low, inc_high, inc_low, has_half, half = (int(word) for word in words)
    state = {"state": high << 64 | low, "inc": inc_high << 64 | inc_low}
    return {"bit_generator": "PCG64", "state": state, "has_uint32": has_half, "uinteger": half}
