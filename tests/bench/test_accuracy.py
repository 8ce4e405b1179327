"""Accuracy after equal time: what is asked of the trainer, and how tables follow from it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from bench_cases import InProcessWorker

from escaip_fairchem.bench import accuracy_sets
from escaip_fairchem.bench.accuracy import (
    Comparison,
    accuracy_table,
    compare_accuracies,
    curves_table,
    measure_accuracy,
)
from escaip_fairchem.bench.accuracy_kept import KeptTrainings
from escaip_fairchem.bench.accuracy_models import MODELS, small_model
from escaip_fairchem.bench.accuracy_plot import plot_accuracy
from escaip_fairchem.bench.accuracy_sets import LabelledSet, in_a_box, read_set
from escaip_fairchem.bench.cases import AccuracyCase, Outcome
from escaip_fairchem.bench.models import NotAvailableError
from escaip_fairchem.bench.options import Options, Session
from escaip_fairchem.bench.timing import Deadline
from escaip_fairchem.cli.main import main
from escaip_fairchem.errors import ConfigError
from escaip_fairchem.plugin.budget_trainer import Budget, rate_factor


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a set of 30 rattled molecules called ``tiny``."""
    conformers = []
    for seed in range(30):
        atoms = molecule("CH3OH")
        atoms.rattle(0.05, seed=seed)
        atoms.calc = EMT()
        atoms.get_forces()
        conformers.append(atoms)
    ase.io.write(tmp_path / "tiny.extxyz", conformers)
    tiny = LabelledSet(files=("tiny.extxyz",), split=(20, 4, 6), what="methanol")
    monkeypatch.setattr(accuracy_sets, "SETS", {**accuracy_sets.SETS, "tiny": tiny})
    monkeypatch.setattr("escaip_fairchem.bench.accuracy.SETS", accuracy_sets.SETS)
    return tmp_path


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_for_its_seconds(model: str, folder: Path):
    outcome = measure_accuracy(AccuracyCase(model=model, data="tiny", budget=1.5, frames=str(folder)))
    points = outcome.extra["points"]
    assert len(points) == 7
    assert 1.5 <= points[-1]["seconds"] < 15.0  # a busy machine takes seconds for a step
    assert [point["seconds"] for point in points] == sorted(point["seconds"] for point in points)
    assert outcome.extra["steps"] == points[-1]["step"] >= 1
    for metrics in (outcome.extra["test"], *(point["metrics"] for point in points)):
        assert all(math.isfinite(metrics[name]) for name in ("energy_per_atom_mae", "forces_mae"))
    assert outcome.parameters > 10_000
    labels = [atoms.get_forces() for atoms in ase.io.read(folder / "tiny.extxyz", ":")]
    of_each = [1e3 * np.abs(forces).mean() for forces in labels]
    assert min(of_each) <= 1e3 * outcome.extra["zeros"]["forces_mae"] <= max(of_each)
    assert 0 < outcome.extra["zeros"]["energy_per_atom_mae"] < 1


def test_molecules_get_a_box_that_changes_no_distance_and_crystals_keep_theirs():
    alone = molecule("CH3OH")
    boxed = in_a_box(alone)
    assert boxed.pbc.all()
    assert boxed.get_all_distances(mic=True) == pytest.approx(alone.get_all_distances(), abs=1e-10)
    assert min(boxed.cell.lengths()) > 2 * 6.0
    crystal = Atoms("Cu", cell=[3, 3, 3], pbc=True)
    assert in_a_box(crystal) is crystal


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(
        NotAvailableError, match=r"lips_200.extxyz is not in .*; name a folder that has it with --frames"
    ):
        read_set("lips", tmp_path)


def test_the_rate_rises_and_falls_over_the_budget():
    factors = [rate_factor(share / 100) for share in range(101)]
    top = factors.index(max(factors))
    assert (top, factors[top]) == (2, pytest.approx(1.0))
    assert factors[0] == factors[100] == pytest.approx(0.01)
    assert factors[top:] == sorted(factors[top:], reverse=True)


def test_a_budget_knows_when_to_evaluate():
    budget = Budget(seconds=10.0, moments=(0.5, 1.0))
    assert not budget.evaluation_is_due
    budget.spent = 5.0
    assert budget.evaluation_is_due
    budget.points.append(None)  # type: ignore[arg-type]
    assert not budget.evaluation_is_due
    budget.spent = 12.0
    assert (budget.evaluation_is_due, budget.share) == (True, 1.0)


def outcome(model: str, draw: int, forces: float, budget: float = 60.0) -> Outcome:
    metrics = {"energy_per_atom_mae": 0.001, "forces_mae": forces, "forces_cosine_similarity": 0.9}
    points = [{"seconds": budget * share, "step": int(10 * share), "metrics": metrics} for share in (0.5, 1.0)]
    case = AccuracyCase(model=model, data="acac", draw=draw, budget=budget)
    extra = {"test": metrics, "points": points, "steps": 10, "zeros": {"energy_per_atom_mae": 0.5, "forces_mae": 0.25}}
    return Outcome(case=case, parameters=1000, extra=extra)


def test_seeds_are_averaged_and_failures_stay_visible():
    lost = Outcome(case=AccuracyCase(model="painn", data="acac", budget=60.0), status="failed", reason="because")
    table = accuracy_table([outcome("escaip", 0, 0.010), outcome("escaip", 1, 0.014), lost])
    escaip, painn = table.rows
    assert (escaip["forces (meV/Å)"], escaip["± "]) == (pytest.approx(12.0), pytest.approx(2.0))
    assert (escaip["energy (meV/atom)"], escaip["±"], escaip["steps"]) == (pytest.approx(1.0), pytest.approx(0.0), 10)
    assert painn["remark"] == "failed: because"
    assert "forces (meV/Å)" not in painn
    assert len(curves_table([outcome("escaip", 0, 0.01), lost]).rows) == 2
    assert "without a model: 500 meV/atom by the energies per element, 250 meV/Å by no forces" in table.notes[0]
    assert "without a model" not in accuracy_table([lost]).notes[0]


def test_the_figure_is_written(tmp_path: Path):
    members = [
        outcome(model, draw, 0.01, budget)
        for model in ("escaip", "schnet")
        for draw in (0, 1)
        for budget in (6.0, 60.0)
    ]
    first = plot_accuracy(members, tmp_path / "a" / "accuracy.png").read_bytes()
    assert first[:4] == b"\x89PNG"
    assert first == plot_accuracy(members, tmp_path / "b.png").read_bytes()


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session whose trainings end at once; ``measured`` lists their cases."""
    monkeypatch.setattr("escaip_fairchem.bench.runner.Worker", Ending)
    monkeypatch.setattr(Ending, "measured", [], raising=False)
    return Session(Options(quick=True, out=tmp_path / "out"), show=lambda line: None)


class Ending(InProcessWorker):
    """Says at once what comes out; PaiNN fails."""

    measured: list[AccuracyCase]

    def ask(self, case: AccuracyCase, deadline: Deadline) -> Outcome:  # type: ignore[override]
        self.measured.append(case)
        if case.model == "painn":
            return Outcome(case=case, status="failed", reason="because")
        return replace(outcome(case.model, case.draw, 0.01, case.budget), case=case)


def test_short_budgets_come_first_and_models_in_turn(session: Session):
    compare_accuracies(session, Comparison.of(sets=["lips", "acac"], budgets=[5.0, 20.0], draws=[0, 1]))
    cases = Ending.measured
    assert len(cases) == 2 * 2 * 2 * len(MODELS)
    assert [case.budget for case in cases] == sorted(case.budget for case in cases)
    assert [case.model for case in cases[: len(MODELS)]] == list(MODELS)


def test_a_comparison_goes_on_where_it_ended(session: Session, tmp_path: Path):
    first = Comparison.of(models=["escaip", "painn"], sets=["acac"], budgets=[5.0], draws=[0])
    compare_accuracies(session, first)
    compare_accuracies(
        session, Comparison.of(models=["escaip", "painn", "schnet"], sets=["acac"], budgets=[5.0], draws=[0])
    )
    assert [case.model for case in Ending.measured] == ["escaip", "painn", "painn", "schnet"]
    assert len((tmp_path / "out" / "trainings.jsonl").read_text().splitlines()) == 2
    (table,) = compare_accuracies(session, first)
    assert [row["model"] for row in table.rows] == ["escaip", "schnet", "painn"]


def test_the_folder_of_the_files_is_not_written_down(session: Session, tmp_path: Path):
    session.options = replace(session.options, frames=tmp_path / "elsewhere")
    compare_accuracies(session, Comparison.of(models=["escaip"], sets=["acac"], budgets=[5.0], draws=[0]))
    assert "elsewhere" not in (tmp_path / "out" / "trainings.jsonl").read_text()


def test_trainings_under_other_conditions_are_not_mixed(session: Session):
    comparison = Comparison.of(models=["escaip"], sets=["acac"], budgets=[5.0], draws=[0])
    compare_accuracies(session, comparison)
    with pytest.raises(ConfigError, match=r"trainings.jsonl: holds trainings that cannot .* \(jobs: 1, now 2\)"):
        compare_accuracies(session, comparison, jobs=2)


def test_a_line_that_is_no_training_is_named(tmp_path: Path):
    (tmp_path / "trainings.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"trainings.jsonl, line 1: is no training"):
        KeptTrainings(tmp_path / "trainings.jsonl", {})


def test_several_trainings_at_a_time_share_the_cores(session: Session, monkeypatch: pytest.MonkeyPatch):
    """Each waits for the other, so one after the other would never end."""
    meeting, threads = Barrier(2), []

    class Meeting(Ending):
        def __init__(self, threads_of_one: int | None = None) -> None:
            threads.append(threads_of_one)

        def ask(self, case: AccuracyCase, deadline: Deadline) -> Outcome:  # type: ignore[override]
            meeting.wait(timeout=30)
            return super().ask(case, deadline)

    monkeypatch.setattr("escaip_fairchem.bench.runner.Worker", Meeting)
    monkeypatch.setattr("escaip_fairchem.bench.runner.available_cores", lambda: 6)
    comparison = Comparison.of(models=["escaip", "schnet"], sets=["acac"], budgets=[5.0], draws=[0, 1])
    (table,) = compare_accuracies(session, comparison, jobs=2)
    assert len(Ending.measured) == 4
    assert threads == [3] * 4
    assert [row["remark"] for row in table.rows] == ["", ""]


def test_an_error_ends_all_trainings(session: Session, monkeypatch: pytest.MonkeyPatch):
    """One fails for a reason that is none of a training's; the other would go on for a minute."""
    begun, told = Event(), Event()

    class Failing(Ending):
        def ask(self, case: AccuracyCase, deadline: Deadline) -> Outcome:  # type: ignore[override]
            if case.model == "schnet":
                assert begun.wait(timeout=60)
                raise KeyboardInterrupt
            begun.set()
            assert told.wait(timeout=60)
            return super().ask(case, deadline)

        def kill(self) -> None:
            told.set()

    monkeypatch.setattr("escaip_fairchem.bench.runner.Worker", Failing)
    comparison = Comparison.of(models=["schnet", "escaip"], sets=["acac"], budgets=[5.0], draws=[0, 1])
    with pytest.raises(KeyboardInterrupt):
        compare_accuracies(session, comparison, jobs=2)
    assert told.is_set()


def test_models_can_be_changed_by_their_names():
    model = small_model("escaip:rate=3e-3:atoms=40:hidden_size=128")
    assert (model.training.rate, model.training.atoms) == (0.003, 40)
    assert model.section["backbone"]["hidden_size"] == 128
    assert MODELS["escaip"].section["backbone"]["hidden_size"] != 128
    assert small_model("schnet:num_filters=32").section["num_filters"] == 32
    assert small_model("painn") == MODELS["painn"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("escaip:rate", r"change 'rate' must read key=value"),
        ("escaip:rate=", r"change 'rate=' must read key=value"),
        ("escaip:atoms=few", r"atoms must be a number, got 'few'"),
    ],
)
def test_changes_that_make_no_sense_are_refused(name: str, message: str):
    with pytest.raises(ConfigError, match=message):
        small_model(name)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"sets": ["lps"]}, r"set 'lps' is unknown \(did you mean 'lips'\?\); known are lips, "),
        ({"models": ["shnet"]}, r"model 'shnet' is unknown \(did you mean 'schnet'\?\)"),
    ],
)
def test_unknown_names_are_refused(names: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        Comparison.of(**names)


@pytest.mark.slow
def test_the_command_compares_what_it_is_told_to(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    """Measured in this process, which knows the tiny set."""
    monkeypatch.setattr("escaip_fairchem.bench.runner.Worker", InProcessWorker)
    words = ["--quick", "--sets", "tiny", "--models", "escaip,equiformer-v2", "--frames", str(folder)]
    assert main(["bench", "accuracy", *words, "--out", str(folder / "out")]) == 0
    said = capsys.readouterr().out
    assert "equiformer-v2" in said
    assert (folder / "out" / "accuracy.png").is_file()
    assert len((folder / "out" / "accuracy_curves.csv").read_text().splitlines()) == 1 + 2 * 7
