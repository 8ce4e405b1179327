"""The command ``escaip``: what it lists, how fast, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fairchem_runs
import pytest

from escaip_fairchem.cli import main as command
from escaip_fairchem.cli.reporting import run_reporting
from escaip_fairchem.errors import DataError

ESCAIP = ["-m", "escaip_fairchem.cli.main"]


def test_help_lists_the_tools_and_imports_nothing_slow(tmp_path: Path):
    process = fairchem_runs.run([*ESCAIP, "--help"], cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    for name in ("data", "import-checkpoint", "info"):
        assert name in process.stdout
    code = (
        "import sys; from escaip_fairchem.cli.main import build_parser; build_parser(); "
        "print({'torch', 'numpy', 'ase', 'fairchem', 'matplotlib'} & set(sys.modules))"
    )
    assert fairchem_runs.run(["-c", code], cwd=tmp_path).stdout.strip() == "set()"


@pytest.mark.parametrize("words", [[], ["nonsense"], ["data"]])
def test_a_line_that_makes_no_sense_ends_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(words)
    assert stop.value.code == 2
    assert "usage: escaip" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("escaip ")


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_debug_may_stand_anywhere_and_shows_the_traceback(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["data", "convert", "none.xyz", "out"]
    assert command.main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("escaip data: error:")
    assert "Traceback" not in err
    words.insert(place, "--debug")
    assert command.main(words) == 2
    assert "Traceback" in capsys.readouterr().err


def test_statuses(capsys):
    def fails() -> None:
        raise DataError("structure 7: no energy")

    def is_stopped() -> None:
        raise KeyboardInterrupt

    def is_wrong() -> None:
        raise KeyError("a bug")

    assert run_reporting("x", lambda: None, debug=False) == 0
    assert run_reporting("x", lambda: 3, debug=False) == 3
    assert run_reporting("x", fails, debug=False) == 2
    assert capsys.readouterr().err == "x: error: structure 7: no energy\n"
    assert run_reporting("x", is_stopped, debug=False) == 130
    with pytest.raises(KeyError):  # a bug keeps its traceback
        run_reporting("x", is_wrong, debug=False)


def test_a_reader_that_has_had_enough_is_no_error(tmp_path: Path) -> None:
    """As in ``escaip info … | head -1``."""
    script = "import sys; from escaip_fairchem.cli.reporting import run_reporting; "
    script += "sys.exit(run_reporting('x', lambda: print('\\n'.join(map(str, range(10**6)))), debug=False))"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


def test_other_broken_pipes_are_errors() -> None:
    def fail() -> None:
        raise BrokenPipeError("of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        run_reporting("x", fail, debug=False)
