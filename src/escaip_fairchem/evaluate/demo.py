"""The demonstration, step by step. Each step does what a user would do, and notes what it measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.emt import EMT

from escaip_fairchem.data.demo_set import DemoOptions, write_demo
from escaip_fairchem.data.pool import available_cores
from escaip_fairchem.evaluate.curves import last_value, read_curves
from escaip_fairchem.evaluate.labels import FloatArray, read_labels
from escaip_fairchem.evaluate.launching import run_fairchem
from escaip_fairchem.evaluate.parity import free_forces, join, mean_absolute_force, read_predictions
from escaip_fairchem.evaluate.plots import plot_curves, plot_parity, plot_simulations
from escaip_fairchem.evaluate.simulate import DynamicsOptions, Relaxation, relax, run_dynamics
from escaip_fairchem.evaluate.tables import Measurement

RATIO_LIMIT = 0.4
"""Largest force error that counts as learned, in units of the error of predicting zero."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much the demonstration does. Bounded by numbers of steps, so that it can be repeated.

    Attributes:
        train: Training frames.
        evaluated: Frames each of validation and test.
        epochs: Passes over the training frames; None: what the configuration says.
        overrides: Further settings of the training.
        relaxation_steps: Largest number of steps of the relaxation.
        dynamics_steps: Steps of each molecular dynamics.
        print_every: Training steps between reports.
        judged: Whether the forces have to be learned.
    """

    train: int
    evaluated: int
    epochs: int | None
    overrides: tuple[str, ...]
    relaxation_steps: int
    dynamics_steps: int
    print_every: int
    judged: bool

    def with_epochs(self, epochs: int | None) -> Plan:
        """Return the same plan with another number of epochs, if one is given."""
        return self if epochs is None else replace(self, epochs=epochs)


def full_plan() -> Plan:
    """Learn as much as a few minutes on two cores allow."""
    return Plan(
        train=1600,
        evaluated=160,
        epochs=None,
        overrides=(),
        relaxation_steps=200,
        dynamics_steps=200,
        print_every=25,
        judged=True,
    )


def quick_plan() -> Plan:
    """Show that every step works."""
    small = ("hidden_size=16", "num_layers=1", "atten_num_heads=2", "max_neighbors=6")
    return Plan(
        train=40,
        evaluated=16,
        epochs=1,
        overrides=(
            *(f"model.backbone.{setting}" for setting in small),
            "optim.eval_every=5",
            "optim.checkpoint_every=5",
        ),
        relaxation_steps=5,
        dynamics_steps=10,
        print_every=1,
        judged=False,
    )


class Demo:
    """One demonstration in a folder of its own."""

    def __init__(self, *, folder: Path, config: Path, plan: Plan, seed: int) -> None:
        """Prepare; nothing is written yet.

        Args:
            folder: An empty folder.
            config: The configuration to train with.
            plan: How much to do.
            seed: Decides everything that is drawn.
        """
        self.folder, self.config, self.plan, self.seed = folder, config, plan, seed
        self.rows: list[Measurement] = []
        self.seconds: dict[str, float] = {}
        self.ratio = float("nan")

    def run(self) -> list[Measurement]:
        """Do everything.

        Returns:
            What was measured.
        """
        with self._timed("total"):
            for name, step in (
                ("data", self.make_data),
                ("training", self.train),
                ("validation", self.validate),
                ("prediction", self.predict),
                ("simulation", self.simulate),
            ):
                print(f"\n=== {name}", flush=True)
                with self._timed(name):
                    step()
        for name, seconds in self.seconds.items():
            self._note("time", name, seconds, "s")
        return self.rows

    @property
    def forces_learned(self) -> bool:
        """Whether the criterion is met, where it is asked for."""
        return not self.plan.judged or self.ratio <= RATIO_LIMIT

    @property
    def verdict(self) -> str:
        """The criterion in words."""
        measured = f"validation force MAE is {self.ratio:.3f} of the mean absolute force component"
        if not self.plan.judged:
            return f"{measured}; not judged in a quick run"
        return f"{measured}, at most {RATIO_LIMIT} wanted"

    def products(self) -> dict[str, str]:
        """Files for people, by name below the folder."""
        return {
            "results.md": "this table (results.json for programs)",
            "parity.png": "predictions beside labels",
            "curves.png": "the course of the training",
            "simulation.png": "relaxation and dynamics",
            "relaxed.extxyz": "path of the relaxation",
            "training/checkpoints/demo/best_checkpoint.pt": "the trained model",
        }

    @property
    def checkpoint(self) -> Path:
        """The weights with the lowest force error on the validation set."""
        return self.folder / "training/checkpoints/demo/best_checkpoint.pt"

    def _split(self, name: str) -> Path:
        return self.folder / "data" / "lmdb" / name

    def make_data(self) -> None:
        """Make the demonstration set."""
        options = DemoOptions(
            train=self.plan.train, val=self.plan.evaluated, test=self.plan.evaluated, seed=self.seed, formats=("lmdb",)
        )
        print(f"$ escaip data demo {self.folder / 'data'} --formats lmdb --seed {self.seed} "
              f"--n-train {options.train} --n-val {options.val} --n-test {options.test}")  # fmt: skip
        summary = write_demo(self.folder / "data", options, workers=available_cores())
        for split, content in summary["splits"].items():
            self._note("data", f"{split} frames", content["structures"])
        self._note("data", "mean atoms per frame", summary["splits"]["train"]["atoms"]["mean"])

    def _fairchem(self, name: str, mode: tuple[str, ...], *, prefix: str, overrides: tuple[str, ...]) -> None:
        """Run ``fairchem`` on the demonstration set, in a run folder of that name."""
        sources = tuple(f"dataset.{split}.src={self._split(split)}" for split in ("train", "val", "test"))
        run_fairchem(
            [
                *mode,
                *("--config-yml", str(self.config), "--cpu", "--seed", str(self.seed)),
                *("--run-dir", str(self.folder / name), "--timestamp-id", "demo"),
                *(f"{prefix}{setting}" for setting in (*sources, *self.plan.overrides, *overrides)),
            ],
            self.folder / "logs" / f"{name}.log",
            show=lambda line: print(line, flush=True),
        )

    def train(self) -> None:
        """Train, with fairchem's trainer as ours completes it."""
        epochs = () if self.plan.epochs is None else (f"optim.max_epochs={self.plan.epochs}",)
        self._fairchem("training", ("main", "--print-every", str(self.plan.print_every)), prefix="", overrides=epochs)
        curves = read_curves(self.folder / "training/logs/tensorboard/demo")
        plot_curves(curves, self.folder / "curves.png")
        self._note("training", "steps", max(curves["train/loss"]))
        self._note(
            "training", "samples per second", float(np.median(list(curves["train/samples_per_second"].values())))
        )
        self._note("training", "first loss", curves["train/loss"][min(curves["train/loss"])])
        self._note("training", "last loss", last_value(curves["train/loss"]))

    def validate(self) -> None:
        """Validate in a new process, with fairchem's own form of the command."""
        mode = ("--mode", "validate", "--checkpoint", str(self.checkpoint))
        self._fairchem("validation", mode, prefix="--", overrides=())
        curves = read_curves(self.folder / "validation/logs/tensorboard/demo")
        forces_mae = last_value(curves["val/forces_mae"])
        zero = mean_absolute_force(free_forces(read_labels(self._split("val"))))
        self.ratio = forces_mae / zero
        self._note("validation", "energy MAE", last_value(curves["val/energy_mae"]), "eV")
        self._note("validation", "force MAE", forces_mae, "eV/Å")
        self._note("validation", "mean force component", zero, "eV/Å", "the MAE of predicting zero")
        limit = f"at most {RATIO_LIMIT} wanted" if self.plan.judged else "not judged in a quick run"
        self._note("validation", "force MAE / mean force component", self.ratio, "", limit)

    def predict(self) -> None:
        """Predict the test set in a new process, and draw the predictions beside the labels."""
        mode = ("--mode", "predict", "--checkpoint", str(self.checkpoint))
        self._fairchem("prediction", mode, prefix="--", overrides=())
        predictions = read_predictions(self.folder / "prediction/results/demo/ocp_predictions.npz")
        parity = join(read_labels(self._split("test")), predictions)
        plot_parity(parity, self.folder / "parity.png")
        self._note("test", "energy MAE", parity.energy_mae, "eV")
        self._note("test", "force MAE", parity.forces_mae, "eV/Å")
        self._note("test", "force MAE / mean force component", parity.forces_ratio)

    def simulate(self) -> None:
        """Relax an adsorbate that no split holds, and let it move."""
        # Importing it imports fairchem.
        from escaip_fairchem import OCPCalculator

        calculator = OCPCalculator(checkpoint_path=self.checkpoint, cpu=True)
        start = ase.io.read(self.folder / "data" / "relax_start.extxyz")
        wanted = ase.io.read(self.folder / "data" / "relax_emt.extxyz")
        adsorbate = start.info["adsorbate"]
        print(f"relaxing {adsorbate} on {start.info['slab']} with the trained model", flush=True)
        relaxation = relax(start, calculator, fmax=0.05, max_steps=self.plan.relaxation_steps)
        ase.io.write(self.folder / "relaxed.extxyz", relaxation.path)
        reference = emt_adsorption_energies(relaxation.path, start.info["reference_energy"])
        self._note_relaxation(relaxation, reference, wanted)
        end = relaxation.path[-1]
        print(f"molecular dynamics of {adsorbate}, {self.plan.dynamics_steps} steps twice", flush=True)
        options = DynamicsOptions(steps=self.plan.dynamics_steps, seed=self.seed)
        free = run_dynamics(end, calculator, options)
        bath = run_dynamics(end, calculator, replace(options, friction=0.02))
        plot_simulations(relaxation, reference, free, bath, self.folder / "simulation.png")
        note = "direct forces are not a gradient, so energy is not conserved exactly"
        self._note("dynamics", "energy drift (velocity Verlet)", 1000 * free.drift, "meV/atom/ps", note)
        self._note("dynamics", "mean temperature (Langevin)", bath.mean_temperature, "K", "bath at 300 K")
        self._note("dynamics", "speed", free.steps_per_second, "steps/s", f"{len(end)} atoms")

    def _note_relaxation(self, relaxation: Relaxation, reference: FloatArray, wanted: Atoms) -> None:
        best = float(emt_adsorption_energies([wanted], wanted.info["reference_energy"])[0])
        moved = np.linalg.norm(relaxation.path[-1].positions - wanted.positions, axis=1)
        emt = [f"{energy:.4g} eV by EMT" for energy in reference]
        self._note("relaxation", "steps", relaxation.steps)
        self._note("relaxation", "converged to 0.05 eV/Å", relaxation.converged)
        self._note("relaxation", "largest force at the end", float(relaxation.largest_forces[-1]), "eV/Å")
        self._note("relaxation", "energy at the start", float(relaxation.energies[0]), "eV", emt[0])
        self._note("relaxation", "energy at the end", float(relaxation.energies[-1]), "eV", emt[-1])
        self._note("relaxation", "EMT's own minimum", best, "eV", "EMT relaxed by EMT")
        self._note("relaxation", "missed of EMT's minimum", float(reference[-1]) - best, "eV", "by EMT")
        self._note("relaxation", "largest distance to EMT's minimum", float(moved.max()), "Å")

    def _note(self, part: str, name: str, value: float | int | bool, unit: str = "", note: str = "") -> None:
        self.rows.append(Measurement(part=part, name=name, value=value, unit=unit, note=note))

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - begin, 1)


def emt_adsorption_energies(structures: list[Atoms], reference_energy: float) -> FloatArray:
    """Adsorption energies (eV) by the potential that made the labels.

    Args:
        structures: Structures of one system.
        reference_energy: Of the clean slab and the adsorbate's atoms, eV.
    """
    energies = []
    for structure in structures:
        atoms = structure.copy()
        atoms.calc = EMT()
        energies.append(atoms.get_potential_energy() - reference_energy)
    return np.array(energies)
