"""``escaip demo``: what it leaves behind, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fairchem_runs import run

from escaip_fairchem.cli import demo
from escaip_fairchem.cli.main import main

ESCAIP = ["-m", "escaip_fairchem.cli.main"]


@pytest.mark.end_to_end
@pytest.mark.slow
def test_a_quick_demo_runs_every_step_and_measures_it(tmp_path: Path):
    process = run(ESCAIP, "demo", "--quick", "--out", "out", cwd=tmp_path)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    assert "$ fairchem main " in process.stdout
    assert "not judged in a quick run" in process.stdout
    out = tmp_path / "out"
    for name in ("parity.png", "curves.png", "simulation.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    for name in ("results.md", "relaxed.extxyz", "training/checkpoints/demo/best_checkpoint.pt", "logs/training.log"):
        assert (out / name).stat().st_size > 0
    rows = {(row["part"], row["name"]): row["value"] for row in json.loads((out / "results.json").read_text())}
    assert rows["training", "steps"] == 5
    assert rows["relaxation", "steps"] == 5
    assert rows["data", "train frames"] == 40
    ratio = rows["validation", "force MAE / mean force component"]
    assert ratio == pytest.approx(rows["validation", "force MAE"] / rows["validation", "mean force component"])
    assert rows["time", "total"] > rows["time", "training"] > 0

    # A second one does not touch it unasked.
    before = sorted(path.stat().st_mtime_ns for path in out.rglob("*"))
    process = run(ESCAIP, "demo", "--quick", "--out", "out", cwd=tmp_path)
    assert process.returncode == 2
    assert "add --overwrite" in process.stderr
    assert sorted(path.stat().st_mtime_ns for path in out.rglob("*")) == before


def test_a_folder_with_other_things_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "thesis.tex").write_text("precious")
    assert main(["demo", "--quick", "--overwrite", "--out", str(tmp_path)]) == 2
    assert "no demo wrote" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_demo_folder_is_replaced_when_asked(tmp_path: Path):
    demo.prepare_folder(tmp_path / "out", overwrite=False)
    (tmp_path / "out/old").write_text("old")
    demo.prepare_folder(tmp_path / "out", overwrite=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [demo.MARKER]


def test_wrong_arguments_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["demo", "--epochs", "0", "--out", str(tmp_path / "out")]) == 2
    assert "--epochs 0" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_the_force_criterion_decides_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from escaip_fairchem.evaluate.demo import Demo

    def pretend(ratio: float):
        def finish(self: Demo) -> list[object]:
            self.ratio = ratio
            return []

        return finish

    for ratio, status in ((0.39, 0), (0.41, 1), (float("nan"), 1)):
        monkeypatch.setattr(Demo, "run", pretend(ratio))
        assert main(["demo", "--overwrite", "--out", str(tmp_path / "out")]) == status
