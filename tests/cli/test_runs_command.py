"""``escaip runs``: the table of made run folders, the watching, the ends."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from escaip_fairchem.cli.main import main
from escaip_fairchem.runs import records
from escaip_fairchem.runs.records import Status, Submission


def submit(folder: Path, job: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    submission = Submission(
        run=folder.name,
        job=job,
        submitted="2025-01-31T10:00:00+01:00",
        logdir="/l",
        log=f"/l/{job}.out",
        config={},
        parameters={},
        config_yml="c.yml",
    )
    records.write_submission(folder, submission)


def write(folder: Path, state: str, **values) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    records.write_status(folder, Status(run=folder.name, state=state, updated=records.now(), **values))


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch):
    """Puts scripts that print given lines, one text a call, the last one for ever, in the place of squeue."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def answer(*texts: str) -> None:
        for index, text in enumerate(texts):
            (folder / f"answer{index}").write_text(text + "\n")
        count = folder / "count"
        script = f"""#!/bin/sh
read -r n 2>/dev/null < {count} || n=0
echo $((n + 1)) > {count}
[ -e {folder}/answer$n ] || n={len(texts) - 1}
while read -r line; do echo "$line"; done < {folder}/answer$n
"""
        (folder / "squeue").write_text(script)
        (folder / "squeue").chmod(0o755)

    return answer


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    checkpoints = tmp_path / "runs/checkpoints"
    write(checkpoints / "a", "training", job="17_0", step=1200, total_steps=5000, metrics={"forces_mae": 0.2})
    submit(checkpoints / "a", "17_0")
    submit(checkpoints / "b", "17_1")
    write(checkpoints / "c", "finished", step=5000, total_steps=5000, metrics={"forces_mae": 0.1})
    return tmp_path / "runs"


def test_the_table_of_a_folder(runs, squeue, capsys):
    squeue("17|0|RUNNING|1:00:00|None\n17|1|PENDING|1:00:00|Resources")
    assert main(["runs", str(runs)]) == 0
    heading, *rows, _, summary = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["run", "state", "job"]
    assert [row.split()[:2] for row in rows] == [["a", "running"], ["b", "queued"], ["c", "finished"]]
    assert "1,200/5,000" in rows[0]
    assert "Resources" in rows[1]
    assert summary == "3 runs: 1 running, 1 queued, 1 finished"


def test_the_working_directory_is_the_default(runs, squeue, capsys, monkeypatch):
    squeue("17|0|RUNNING|1:00:00|None\n17|1|PENDING|1:00:00|Resources")
    monkeypatch.chdir(runs)
    assert main(["runs"]) == 0
    assert "3 runs" in capsys.readouterr().out


def test_slurm_that_cannot_be_asked_is_no_error(runs, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["runs", str(runs)]) == 0
    out = capsys.readouterr().out
    assert "SLURM cannot be asked" in out
    assert "no sign of life since" in out


def test_the_best_first_and_a_csv_file(runs, squeue, capsys, tmp_path):
    squeue("17|0|RUNNING|1:00:00|None\n17|1|PENDING|1:00:00|Resources")
    assert main(["runs", str(runs), "--best", "forces_mae", "--csv", str(tmp_path / "x.csv")]) == 0
    rows = capsys.readouterr().out.splitlines()[1:4]
    assert [row.split()[0] for row in rows] == ["c", "a", "b"]
    with (tmp_path / "x.csv").open(newline="") as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUNS", "--best", "force_mae"], "did you mean 'forces_mae'?"),
        (["RUNS", "--csv", "RUNS/no/x.csv"], "cannot be written"),
        (["RUNS/nowhere"], "nowhere: no such folder; give the --run-dir"),
    ],
)
def test_what_the_user_can_put_right(runs, squeue, capsys, words, message):
    squeue("17|0|RUNNING|1:00:00|None\n17|1|PENDING|1:00:00|Resources")
    assert main(["runs", *(word.replace("RUNS", str(runs)) for word in words)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("escaip runs: error: ")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "some/folder"])
def test_seconds_that_are_none(seconds, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["runs", "--watch", seconds])
    assert stop.value.code == 2
    assert "is no number of seconds above 0; folders go before --watch" in capsys.readouterr().err


@pytest.mark.parametrize("is_terminal", [True, False])
def test_watching_ends_when_nothing_is_under_way(runs, squeue, capsys, monkeypatch, is_terminal):
    squeue(
        "17|0|RUNNING|1:00:00|None\n17|1|PENDING|1:00:00|Resources",
        "17|0|PENDING|1:00:00|BeginTime\n17|1|TIMEOUT|INVALID|TimeLimit",
        "17|0|TIMEOUT|INVALID|TimeLimit\n17|1|TIMEOUT|INVALID|TimeLimit",
    )
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    assert main(["runs", str(runs), "--watch", "0.01"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("3 runs")] == [
        "3 runs: 1 running, 1 queued, 1 finished",
        "3 runs: 1 preempted, 1 finished, 1 failed",
        "3 runs: 1 finished, 2 failed",
    ]
    assert out.count("\x1b[2J") == (3 if is_terminal else 0)


def test_watching_what_has_ended_ends_at_once(tmp_path, capsys):
    write(tmp_path / "c", "finished")
    assert main(["runs", str(tmp_path), "--watch"]) == 0
    assert capsys.readouterr().out.count("1 run: 1 finished") == 1


def test_ctrl_c_ends_the_watching_quietly(runs, squeue):
    squeue("17|0|RUNNING|1:00:00|None\n17|1|PENDING|1:00:00|Resources")
    words = [sys.executable, "-m", "escaip_fairchem.cli.main", "runs", str(runs), "--watch", "60"]
    # A job in a shell's background ignores it, and so would what it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("3 runs"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "escaip runs: interrupted\n")


def test_nothing_slow_is_imported(runs, squeue):
    squeue("17|0|RUNNING|1:00:00|None\n17|1|PENDING|1:00:00|Resources")
    code = (
        "import sys; from escaip_fairchem.cli.main import main; main(['runs', sys.argv[1]]); "
        "print({'torch', 'fairchem', 'numpy', 'ase', 'submitit'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", code, str(runs)], capture_output=True, text=True, check=True)
    assert "3 runs" in process.stdout
    assert process.stdout.splitlines()[-1] == "set()"
