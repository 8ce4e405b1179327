"""The table of runs, its CSV file and its order."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.plugin.trainer import metrics as trainer_metrics
from escaip_fairchem.runs.records import Status, Submission
from escaip_fairchem.runs.states import RunState
from escaip_fairchem.runs.table import HEADINGS, as_text, best, duration, higher_is_better, write_csv

EFWT = "energy_forces_within_threshold"


def run(name: str, state: str = "running", *, why: str = "", **values) -> RunState:
    status = Status(run=name, state="training", **values) if values else None
    return RunState(run=name, folder=Path("/runs/checkpoints") / name, state=state, why=why, status=status)


def test_the_table():
    first = RunState(
        run="first",
        folder=Path("/runs/checkpoints/first"),
        state="running",
        job="17_3",
        seconds_left=7800.0,
        log=Path("/runs/logs/17_3.out"),
        status=Status(
            run="first",
            state="training",
            step=1200,
            total_steps=5000,
            epoch=2.4,
            total_epochs=10,
            metrics={"energy_mae": 0.123456, "forces_mae": 0.0213, EFWT: 0.25, "loss": 7.0},
            primary_metric=EFWT,
            best=0.3,
            samples_per_second=812.34,
        ),
    )
    second = run("the second one", "failed", why="time limit")
    heading, row, failed, _, summary = as_text([first, second]).splitlines()
    assert heading == (
        "run             state    job          step   epoch  EFwT  E MAE [eV]  F MAE [eV/Å]      best  samples/s"
        "   time left  log                  why"
    )
    assert row == (
        "first           running  17_3  1,200/5,000  2.4/10  0.25      0.1235        0.0213  0.3 EFwT      812.3"
        "  2 h 10 min  /runs/logs/17_3.out"
    )
    assert failed.split() == ["the", "second", "one", "failed", "time", "limit"]
    assert failed.index("time limit") == heading.index("why")
    assert summary == "2 runs: 1 running, 1 failed"


def test_columns_without_content_are_left_out():
    assert as_text([run("a", "queued", why="Resources")]).splitlines() == [
        "run  state   why",
        "a    queued  Resources",
        "",
        "1 run: 1 queued",
    ]


def test_why_is_one_line_that_ends(tmp_path):
    row = as_text([run("a", "failed", why="first line\nsecond " + "x" * 500)]).splitlines()[1]
    assert "first line second xx" in row
    assert row.endswith("…")
    assert len(row) < 150


def test_logs_below_the_working_directory_are_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = RunState(run="a", folder=tmp_path, state="running", log=tmp_path / "logs/17.out")
    assert as_text([state]).splitlines()[1].endswith("  logs/17.out")


def test_steps_and_epochs_of_a_training_whose_length_is_not_known():
    heading, row = as_text([run("a", step=1200, epoch=2.0)]).splitlines()[:2]
    assert heading.split() == ["run", "state", "step", "epoch"]
    assert row.split() == ["a", "running", "1,200", "2"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (math.nan, ""),
        (math.inf, ""),
        (0.0, "0 s"),
        (45.2, "45 s"),
        (60.0, "1 min"),
        (3599.0, "1 h 0 min"),
        (7800.0, "2 h 10 min"),
        (86399.0, "1 d 0 h"),
        (273600.0, "3 d 4 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_csv_file_has_raw_numbers_and_what_each_run_was_changed_by(tmp_path):
    path = tmp_path / "runs.csv"
    submission = Submission(
        run="b",
        job="17_0",
        submitted="then",
        logdir="/l",
        log="/l/a",
        config={},
        parameters={},
        config_yml="c.yml",
        changes={"optim.lr_initial": 0.001},
        attempts=2,
    )
    submitted = RunState(
        run="b",
        folder=Path("/r/b"),
        state="queued",
        why="a, b\nc",
        job="17_0",
        submission=submission,
        seconds_left=1.25,
    )
    write_csv([run("a", step=1200, total_steps=5000, metrics={"forces_mae": 0.1 + 0.2}), submitted], path)
    with path.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["run"], first["step"], first["total_steps"]) == ("a", "1200", "5000")
    assert first["metrics.forces_mae"] == "0.30000000000000004"
    assert first["folder"] == "/runs/checkpoints/a"
    assert first["best"] == first["changes.optim.lr_initial"] == first["seconds_left"] == ""
    assert (second["state"], second["why"], second["job"], second["attempts"]) == ("queued", "a, b\nc", "17_0", "2")
    assert (second["seconds_left"], second["changes.optim.lr_initial"]) == ("1.25", "0.001")
    assert second["step"] == second["metrics.forces_mae"] == ""
    assert list(first)[-2:] == ["metrics.forces_mae", "changes.optim.lr_initial"]
    for own in ("run", "state", "why", "job", "log"):
        assert list(first).count(own) == 1


def test_a_csv_file_that_cannot_be_written(tmp_path):
    with pytest.raises(ConfigError, match=r"no/runs\.csv: cannot be written \(No such file or directory\)"):
        write_csv([run("a", step=1)], tmp_path / "no/runs.csv")


def test_the_best_run_comes_first():
    runs = [
        run("none"),
        run("middle", metrics={"forces_mae": 0.2}),
        run("nan", metrics={"forces_mae": math.nan}),
        run("worst", metrics={"forces_mae": 0.3}),
        run("best", metrics={"forces_mae": 0.4}, primary_metric="forces_mae", best=0.1),
    ]
    assert [state.run for state in best(runs, "forces_mae")] == ["best", "middle", "worst", "none", "nan"]


@pytest.mark.parametrize("metric", [EFWT, "forces_cosine_similarity"])
def test_the_best_run_by_what_should_be_high(metric):
    runs = [run("none"), run("low", metrics={metric: 0.1}), run("high", metrics={metric: 0.9})]
    assert [state.run for state in best(runs, metric)] == ["high", "low", "none"]


def test_a_metric_that_no_run_has():
    runs = [run("a", metrics={"forces_mae": 0.2, "energy_mae": 0.1})]
    with pytest.raises(ConfigError, match=r"--best force_mae: no run has this metric \(did you mean 'forces_mae'\?\)"):
        best(runs, "force_mae")
    with pytest.raises(ConfigError, match="none of the 1 runs has been evaluated"):
        best([run("a", "queued")], "forces_mae")


def test_the_metric_that_was_asked_for_is_shown():
    runs = [run("a", metrics={"forces_mae": 0.2, "stress_mae": 0.5})]
    assert "S MAE [eV/Å³]" in as_text(runs, "stress_mae")
    assert "S MAE" not in as_text(runs)


def test_directions_are_those_of_the_trainer():
    for metric in [*HEADINGS, "loss", "forces_magnitude_error", "energy_mse", "energy_within_threshold"]:
        assert higher_is_better(metric) == trainer_metrics.higher_is_better(metric), metric
