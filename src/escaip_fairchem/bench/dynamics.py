"""Molecular dynamics, split into the neighbour search, the model and everything else."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from escaip_fairchem.bench.cases import DynamicsCase, Outcome, why_not_larger
from escaip_fairchem.bench.floors import Floor, escaip_flops_per_atom, model_bytes, weightless
from escaip_fairchem.bench.frames import FrameBatch, join, make_bulk
from escaip_fairchem.bench.models import (
    VARIANTS,
    Contender,
    ModelName,
    NotAvailableError,
    backbone_config,
    build,
    import_baselines,
)
from escaip_fairchem.bench.options import Session
from escaip_fairchem.bench.passes import warm_libraries
from escaip_fairchem.bench.tables import MakeTables, Table
from escaip_fairchem.bench.timing import Spread, synchronized_clock
from escaip_fairchem.nn import Neighborhoods, Systems
from escaip_fairchem.nn.neighbors_skin import SkinSearch
from escaip_fairchem.testing.predictors import Predictor

SIZES, QUICK_SIZES = (100, 1000, 5000, 20000, 100000), (40, 80)
USUAL_MODELS, QUICK_MODELS = ("escaip-demo:fast", "escaip-small:fast"), ("escaip-tiny:fast",)
DRIVERS = ("bare", "ase")
LONGEST_STEP = {"cpu": 60.0, "cuda": 10.0}
"""Seconds. Larger systems, whose steps would take longer, are given up."""

TIMESTEP_FS = 1.0
SKIN_ANGSTROM = 1.0
"""``OCPCalculator``'s default."""

_WARM_ATOMS = 32
# Å/fs of one component for an atom of 60 u at 300 K, and what 1 eV/Å does to it in 1 fs.
_SPEED, _ACCELERATION = 2.04e-3, 1.61e-4


@dataclass
class StepTimes:
    """Seconds of every step.

    Attributes:
        whole: Altogether.
        search: In the neighbour search.
        model: In the network.
    """

    whole: list[float] = field(default_factory=list)
    search: list[float] = field(default_factory=list)
    model: list[float] = field(default_factory=list)


def measure_dynamics(case: DynamicsCase) -> Outcome:
    """Run dynamics of a block of metal with a model of random weights.

    Raises:
        NotAvailableError: The model, ASE or fairchem is not available here.
    """
    name = case.name
    batch = join([make_bulk(case.atoms, seed=case.seed)])
    warm_libraries(case.device)
    times = _bare(case, batch.to(case.device)) if case.driver == "bare" else _ase(case, batch)
    predictor = weightless(name)
    return Outcome(
        case=case,
        seconds=times.whole,
        atoms=[case.atoms],
        flops=escaip_flops_per_atom(name.model, "inference"),
        bytes=model_bytes(predictor, "inference"),
        parameters=sum(parameter.numel() for parameter in predictor.parameters()),
        extra={key: value for key, value in asdict(times).items() if key != "whole"},
    )


def _bare(case: DynamicsCase, batch: FrameBatch) -> StepTimes:
    """Velocity Verlet on tensors, with nothing around it."""
    contender = build(case.name, seed=case.seed, device=case.device)
    search = SkinSearch(SKIN_ANGSTROM)
    small = join([make_bulk(min(_WARM_ATOMS, case.atoms), seed=case.seed)]).to(case.device).systems
    for _ in range(2):
        _forces(contender, small, _search(contender, small, search))
    generator = torch.Generator(case.device).manual_seed(case.seed)
    systems = batch.systems
    velocities_N3 = _SPEED * torch.randn(systems.positions_N3.shape, generator=generator, device=case.device)
    acceleration_N3 = torch.zeros_like(velocities_N3)
    times = StepTimes()
    while _goes_on(times, case):
        begin = synchronized_clock(case.device)
        velocities_N3 = velocities_N3 + 0.5 * TIMESTEP_FS * acceleration_N3
        positions_N3 = systems.positions_N3 + TIMESTEP_FS * velocities_N3
        systems = systems.with_geometry(positions_N3, systems.cell_B33)
        moved = synchronized_clock(case.device)
        neighborhoods = _search(contender, systems, search)
        found = synchronized_clock(case.device)
        forces_N3 = _forces(contender, systems, neighborhoods)
        predicted = synchronized_clock(case.device)
        acceleration_N3 = _ACCELERATION * forces_N3
        velocities_N3 = velocities_N3 + 0.5 * TIMESTEP_FS * acceleration_N3
        times.whole.append(synchronized_clock(case.device) - begin)
        times.search.append(found - moved)
        times.model.append(predicted - found)
    return times


def _goes_on(times: StepTimes, case: DynamicsCase) -> bool:
    return len(times.whole) < case.steps and sum(times.whole) < case.budget


def _predictor(contender: Contender) -> Predictor:
    assert isinstance(contender.module, Predictor)
    return contender.module


def _search(contender: Contender, systems: Systems, search: SkinSearch) -> Neighborhoods:
    """The neighbours by the model's settings, from a search that remembers, as in ``OCPCalculator``."""
    config = _predictor(contender).config
    return search(
        systems.positions_N3,
        systems.cell_B33,
        systems.pbc_B3,
        systems.structure_N,
        cutoff=config.max_radius,
        max_neighbors=config.max_neighbors,
    )


@torch.no_grad()
def _forces(contender: Contender, systems: Systems, neighborhoods: Neighborhoods) -> torch.Tensor:
    with contender.numerics():
        forces_N3: torch.Tensor = _predictor(contender)(systems, neighborhoods=neighborhoods)["forces"]
        return forces_N3.float()


def _ase(case: DynamicsCase, batch: FrameBatch) -> StepTimes:
    """ASE's velocity Verlet with ``OCPCalculator``, as users run it."""
    import_baselines()  # says what is missing
    from ase import Atoms
    from ase.md.verlet import VelocityVerlet
    from ase.units import fs

    import escaip_fairchem
    from escaip_fairchem.plugin.random_checkpoint import save_random_checkpoint

    if VARIANTS[case.variant].precision != "fp32":
        raise NotAvailableError("OCPCalculator computes in float32")
    systems = batch.systems
    atoms = Atoms(
        numbers=systems.numbers_N.numpy(),
        positions=systems.positions_N3.double().numpy(),
        cell=systems.cell_B33[0].double().numpy(),
        pbc=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = asdict(backbone_config(case.name))
        path = save_random_checkpoint(settings, Path(folder) / "random.pt", seed=case.seed)
        calculator = escaip_fairchem.OCPCalculator(checkpoint_path=path, cpu=case.device == "cpu")
    small = atoms[: min(_WARM_ATOMS, len(atoms))]
    small.calc = calculator
    small.get_forces()
    # The same velocities as the bare loop's, on average.
    speeds = _SPEED * np.random.default_rng(case.seed).standard_normal((len(atoms), 3)) / fs
    atoms.set_velocities(speeds)
    atoms.calc = calculator
    integrator = VelocityVerlet(atoms, TIMESTEP_FS * fs)
    integrator.run(0)  # the forces that the first step starts from
    times = StepTimes()
    moments = _watch(calculator.trainer._unwrapped_model, case.device)
    while _goes_on(times, case):
        begin = synchronized_clock(case.device)
        integrator.run(1)
        times.whole.append(synchronized_clock(case.device) - begin)
        times.search.append(moments["network"] - moments["backbone"])
        times.model.append(moments["end"] - moments["network"])
    return times


def _watch(model: torch.nn.Module, device: str) -> dict[str, float]:
    """Note when the backbone, its network and the whole model begin or end, in every pass anew."""
    moments: dict[str, float] = {}

    def note(key: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            moments[key] = synchronized_clock(device)

        return hook

    backbone: Any = model.get_submodule("backbone")
    backbone.register_forward_pre_hook(note("backbone"))
    backbone.network.register_forward_pre_hook(note("network"))
    model.register_forward_hook(note("end"))
    return moments


def run_md(session: Session) -> MakeTables:
    """Measure dynamics of growing systems; the table's file is ``md.csv``."""
    options = session.options
    outcomes: list[Outcome] = []
    for name in options.names(USUAL_MODELS, QUICK_MODELS):
        for driver in DRIVERS:
            last: Outcome | None = None
            before = 1
            for atoms in QUICK_SIZES if options.quick else SIZES:
                case = _case(session, name, driver, atoms)
                reason = why_not_larger(last, growth=atoms / before, longest=LONGEST_STEP[options.device])
                last = session.runner.drop(case, reason) if reason else session.runner.one(case)
                outcomes.append(last)
                before = atoms
    return lambda: [session.save(dynamics_table(outcomes, session), "md")]


def _case(session: Session, name: ModelName, driver: str, atoms: int) -> DynamicsCase:
    return DynamicsCase(
        **session.options.common, model=name.model, variant=name.variant, driver=driver, atoms=atoms, steps=5
    )


def dynamics_table(outcomes: Sequence[Outcome], session: Session) -> Table:
    """A row per model, driver and number of atoms."""
    columns = (
        "model", "driver", "atoms", "steps", "steps/s", "time median (s)", "time std (s)", "µs/atom", "search %",
        "model %", "other %", "floor (s)", "floor share", "remark",
    )  # fmt: skip
    notes = [
        "driver bare: a loop over tensors; ase: ASE's velocity Verlet with OCPCalculator. 1 fs per step, 300 K, "
        f"rattled close-packed metal, random weights, a skin of {SKIN_ANGSTROM:g} Å",
        "search: neighbours and, for ase, reading the batch and its geometry; model: the network; other: the "
        "integrator and, for ase, everything of ASE's and fairchem's around the model",
        "floor: FLOPs of the plain model's forward pass over the measured rate, or the weights' bytes over the "
        "bandwidth",
    ]
    rows = [_row(outcome, session) for outcome in outcomes]
    return Table(title="Molecular dynamics", columns=columns, rows=rows, notes=notes)


def _row(outcome: Outcome, session: Session) -> dict[str, Any]:
    case = outcome.case
    assert isinstance(case, DynamicsCase)
    row: dict[str, Any] = {"model": str(case.name), "driver": case.driver, "atoms": case.atoms}
    if not outcome.is_measured:
        return row | {"remark": outcome.remark}
    spread = Spread.of(outcome.seconds)
    search, model = (sum(outcome.extra[key]) / sum(outcome.seconds) for key in ("search", "model"))
    floor = Floor(flops=outcome.flops * case.atoms, bytes=outcome.bytes, precision=case.name.precision)
    seconds = floor.seconds(session.machine)
    return row | {
        "steps": spread.count,
        "steps/s": 1.0 / spread.median,
        "time median (s)": spread.median,
        "time std (s)": spread.std,
        "µs/atom": 1e6 * spread.median / case.atoms,
        "search %": 100.0 * search,
        "model %": 100.0 * model,
        "other %": 100.0 * (1.0 - search - model),
        "floor (s)": seconds,
        "floor share": seconds / spread.median,
    }
