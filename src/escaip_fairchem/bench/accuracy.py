"""Errors on small sets after equal wall-clock time: this package's models beside fairchem's, by one trainer.

Every training gets the same seconds on the same machine, evaluations left out; its learning rate rises and falls over
exactly that time, so a model that takes cheaper steps takes more of them. Splits, initial parameters and the order of
the data follow from a seed. Energies are stored relative to energies per element that are fitted to the training split;
all labels are divided by the root mean square of the training forces.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import yaml

from escaip_fairchem.bench.accuracy_kept import KeptTrainings
from escaip_fairchem.bench.accuracy_models import MODELS, SmallTraining, small_model
from escaip_fairchem.bench.accuracy_sets import SETS, read_set
from escaip_fairchem.bench.cases import AccuracyCase, Outcome
from escaip_fairchem.bench.models import import_baselines
from escaip_fairchem.bench.options import Session
from escaip_fairchem.bench.passes import warm_libraries
from escaip_fairchem.bench.side_by_side import run_side_by_side
from escaip_fairchem.bench.tables import Table
from escaip_fairchem.errors import ConfigError, nearest

MOMENTS = (0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)
"""Shares of the budget at which errors are measured for the figure."""
BUDGETS, QUICK_BUDGETS = (60.0, 240.0), (1.0,)
DRAWS, QUICK_DRAWS = (0, 1), (0,)
QUICK_SETS = ("acac",)
LARGEST_BATCH = 32
"""Of evaluations."""


def measure_accuracy(case: AccuracyCase) -> Outcome:
    """Train a model on a set for the case's budget.

    Raises:
        NotAvailableError: The set's files are not there, or fairchem is not installed.
    """
    import_baselines()
    from escaip_fairchem.data.convert import convert
    from escaip_fairchem.data.options import ConvertOptions
    from escaip_fairchem.data.splits import SplitOptions
    from escaip_fairchem.plugin.baselines import quiet
    from escaip_fairchem.plugin.budget_trainer import train_within

    labelled = SETS[case.data]
    structures = read_set(case.data, case.folder)
    atoms = sum(map(len, structures)) / len(structures)
    warm_libraries(case.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ase.io.write(folder / "all.extxyz", structures)
        parts = tuple(float(part) for part in labelled.split)
        options = ConvertOptions(split=SplitOptions(parts=parts, seed=case.draw), subtract_references=True)
        convert([str(folder / "all.extxyz")], folder / "data", options)
        section = yaml.safe_load((folder / "data" / "dataset_conservative.yml").read_text(encoding="utf-8"))
        with quiet():
            settings = _settings(case, folder, section["dataset"], atoms)
            result = train_within(settings, seconds=case.budget, moments=MOMENTS)
    return Outcome(
        case=case,
        seconds=[case.budget],
        atoms=[round(atoms)],
        parameters=result["parameters"],
        extra={key: result[key] for key in ("points", "test", "zeros", "steps")},
    )


def _settings(case: AccuracyCase, folder: Path, dataset: dict[str, Any], atoms: float) -> dict[str, Any]:
    """Keyword arguments of the trainer, for structures of so many atoms on average."""
    model = small_model(case.model)
    training = model.training
    dataset["train"]["transforms"]["normalizer"].pop("stress", None)
    if training.rotations > 1:
        dataset["train"]["rotations"] = {"copies": training.rotations, "seed": case.draw}
    dataset["train"].setdefault("a2g_args", {})["r_stress"] = False
    return {
        "task": {},
        "model": dict(model.section),
        "outputs": {
            "energy": {"level": "system"},
            "forces": {"level": "atom", "train_on_free_atoms": False, "eval_on_free_atoms": False},
        },
        "dataset": dataset,
        "optimizer": {
            "batch_size": max(1, round(training.atoms / atoms)),
            "eval_batch_size": LARGEST_BATCH,
            "num_workers": 0,
            "max_epochs": 10**6,
            "lr_initial": training.rate,
            "optimizer": "AdamW",
            "optimizer_params": {"weight_decay": training.weight_decay},
            "clip_grad_norm": training.clip,
            "ema_decay": training.ema,
            "checkpoint_every": 10**9,
            "eval_every": 10**9,
        },
        "loss_functions": [
            {"energy": {"fn": "per_atom_mae", "coefficient": training.energy}},
            {"forces": {"fn": "l2mae", "coefficient": training.forces}},
        ],
        "evaluation_metrics": {
            "metrics": {"energy": ["mae", "per_atom_mae"], "forces": ["mae", "cosine_similarity"]},
            "primary_metric": "forces_mae",
        },
        "identifier": "bench",
        "run_dir": str(folder / "run"),
        "local_rank": 0,
        "print_every": 10**9,
        "seed": case.draw,
        "logger": "null",
        "is_debug": True,
        "cpu": case.device == "cpu",
    }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared.

    Attributes:
        models: As :func:`small_model` reads them.
        sets: Keys of :data:`SETS`.
        budgets: Seconds of training.
        draws: Seeds.
    """

    models: Sequence[str]
    sets: Sequence[str]
    budgets: Sequence[float]
    draws: Sequence[int]

    @classmethod
    def of(
        cls,
        *,
        models: Sequence[str] | None = None,
        sets: Sequence[str] | None = None,
        budgets: Sequence[float] | None = None,
        draws: Sequence[int] | None = None,
        quick: bool = False,
    ) -> Comparison:
        """Fill in what was not asked for.

        Raises:
            ConfigError: A set or a model is unknown.
        """
        for name in models or ():
            small_model(name)
        for name in sets or ():
            if name not in SETS:
                raise ConfigError(f"set {name!r} is unknown{nearest(name, SETS)}; known are {', '.join(SETS)}")
        return cls(
            models=models or list(MODELS),
            sets=sets or list(QUICK_SETS if quick else SETS),
            budgets=budgets or (QUICK_BUDGETS if quick else BUDGETS),
            draws=draws or (QUICK_DRAWS if quick else DRAWS),
        )

    def cases(self, session: Session) -> Iterator[AccuracyCase]:
        """All trainings, short ones first and models in turn: a time limit or a slow hour then hits all alike."""
        for budget in self.budgets:
            for draw in self.draws:
                for data in self.sets:
                    for model in self.models:
                        common = {**session.options.common, "budget": budget}
                        yield AccuracyCase(**common, model=model, data=data, draw=draw)


def compare_accuracies(session: Session, comparison: Comparison, *, jobs: int = 1) -> list[Table]:
    """Train everything; write ``accuracy.csv``, ``accuracy_curves.csv`` and ``accuracy.png``.

    With a folder for results, every training is kept there as soon as it ends. Another call with that folder takes what
    it finds, and its tables show all that is there.

    Args:
        session: The command's run.
        comparison: What to train.
        jobs: Trainings at a time, each with its share of the cores.

    Raises:
        ConfigError: The folder holds trainings of another machine, or of as many at a time as is not asked for now.
    """
    out = session.options.out
    conditions: dict[str, str | int] = {"jobs": jobs, "processor": session.machine.name, **session.machine.versions}
    kept = KeptTrainings(None if out is None else out / "trainings.jsonl", conditions)
    cases = [case for case in comparison.cases(session) if not kept.has(case)]
    if kept.outcomes:
        session.show(f"{len(kept.outcomes)} trainings are there already; {len(cases)} are to come")
    run_side_by_side(session.runner, cases, jobs, kept.add)
    table = session.save(accuracy_table(kept.outcomes), "accuracy")
    session.save(curves_table(kept.outcomes), "accuracy_curves")
    if out is not None and any(outcome.is_measured for outcome in kept.outcomes):
        from escaip_fairchem.bench.accuracy_plot import plot_accuracy  # matplotlib is slow to import, and may be absent

        plot_accuracy(kept.outcomes, out / "accuracy.png")
    return [table]


def accuracy_table(outcomes: Sequence[Outcome]) -> Table:
    """A row per set, budget and model: test errors, mean over the seeds and largest distance from it."""
    columns = (
        "set", "budget (s)", "model", "parameters", "steps", "energy (meV/atom)", "±", "forces (meV/Å)", "± ",
        "force cosine", "remark",
    )  # fmt: skip
    groups: dict[tuple[str, float, str], list[Outcome]] = {}
    for outcome in outcomes:
        case = outcome.case
        assert isinstance(case, AccuracyCase)
        groups.setdefault((case.data, case.budget, case.model), []).append(outcome)
    order = {name: number for number, name in enumerate(SETS)}
    models = {name: number for number, name in enumerate(MODELS)}

    def place(key: tuple[str, float, str]) -> tuple[int, float, int, str]:
        data, budget, model = key
        return order[data], budget, models[model.partition(":")[0]], model

    rows = [_row(*key, groups[key]) for key in sorted(groups, key=place)]
    notes = [
        f"{name}: {SETS[name].what}; {', '.join(map(str, SETS[name].split))} structures to train, validate and test on"
        + _zeros([outcome for key, members in groups.items() if key[0] == name for outcome in members])
        for name in order
        if any(data == name for data, _, _ in groups)
    ]
    notes += [
        f"{name}: {small_model(name).parts}; {_in_words(small_model(name).training)}"
        for name in dict.fromkeys(model for _, _, model in sorted(groups, key=place))
    ]
    notes += [
        "errors on the test structures after the budget, with averaged weights; ±: largest distance from the mean of "
        "the seeds",
        "same splits, trainer, kind of loss, and schedule of the rate over the budget for all",
    ]
    return Table(title="Accuracy after equal time", columns=columns, rows=rows, notes=notes)


def _zeros(members: Sequence[Outcome]) -> str:
    """What the errors of a set's test structures are without any model."""
    zeros = [outcome.extra["zeros"] for outcome in members if outcome.is_measured]
    if not zeros:
        return ""
    energy, _ = _mean([1e3 * errors["energy_per_atom_mae"] for errors in zeros])
    forces, _ = _mean([1e3 * errors["forces_mae"] for errors in zeros])
    return f"; without a model: {energy:.3g} meV/atom by the energies per element, {forces:.3g} meV/Å by no forces"


def _in_words(training: SmallTraining) -> str:
    words = f"initial rate {training.rate:g}, some {training.atoms} atoms per step, average of decay {training.ema:g}"
    words += f", weight decay {training.weight_decay:g}, loss {training.energy:g} energy + {training.forces:g} forces"
    return words + (f", {training.rotations} orientations" if training.rotations > 1 else "")


def _row(data: str, budget: float, model: str, members: Sequence[Outcome]) -> dict[str, Any]:
    row: dict[str, Any] = {"set": data, "budget (s)": budget, "model": model}
    measured = [outcome for outcome in members if outcome.is_measured]
    remark = "; ".join(dict.fromkeys(outcome.remark for outcome in members if not outcome.is_measured))
    if not measured:
        return row | {"remark": remark}
    energy, energy_spread = _mean([1e3 * outcome.extra["test"]["energy_per_atom_mae"] for outcome in measured])
    forces, forces_spread = _mean([1e3 * outcome.extra["test"]["forces_mae"] for outcome in measured])
    return row | {
        "parameters": f"{measured[0].parameters:,}",
        "steps": round(_mean([float(outcome.extra["steps"]) for outcome in measured])[0]),
        "energy (meV/atom)": energy,
        "±": energy_spread,
        "forces (meV/Å)": forces,
        "± ": forces_spread,
        "force cosine": _mean([outcome.extra["test"]["forces_cosine_similarity"] for outcome in measured])[0],
        "remark": remark,
    }


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and largest distance from it."""
    mean = math.fsum(values) / len(values)
    return mean, max(abs(value - mean) for value in values)


def curves_table(outcomes: Sequence[Outcome]) -> Table:
    """A row per evaluation on the way."""
    columns = ("set", "budget (s)", "model", "seed", "seconds", "step", "energy (meV/atom)", "forces (meV/Å)")
    rows = []
    for outcome in outcomes:
        case = outcome.case
        assert isinstance(case, AccuracyCase)
        for point in outcome.extra.get("points", ()):
            rows.append(
                {
                    "set": case.data,
                    "budget (s)": case.budget,
                    "model": case.model,
                    "seed": case.draw,
                    "seconds": point["seconds"],
                    "step": point["step"],
                    "energy (meV/atom)": 1e3 * point["metrics"]["energy_per_atom_mae"],
                    "forces (meV/Å)": 1e3 * point["metrics"]["forces_mae"],
                }
            )
    return Table(title="Errors on the way, on the validation structures", columns=columns, rows=rows, notes=[])
