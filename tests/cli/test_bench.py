"""``escaip bench``: quick runs of every benchmark, what they leave behind, and what they refuse."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from escaip_fairchem.bench import runner
from escaip_fairchem.bench.cases import Case, Outcome
from escaip_fairchem.bench.timing import Deadline
from escaip_fairchem.bench.worker import measure
from escaip_fairchem.cli.bench import COMMANDS
from escaip_fairchem.cli.main import main

QUICK = ["--quick", "--models", "escaip-tiny:plain,escaip-tiny:fast"]


class InProcessWorker:
    """Measures in this process what a worker measures in its own, which takes seconds to start."""

    is_alive = True

    def __init__(self, threads: int | None = None) -> None:
        pass

    def ask(self, case: Case, deadline: Deadline) -> Outcome:
        return measure(case)

    def end(self) -> None:
        pass


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "Worker", InProcessWorker)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.usefixtures("in_process")
def test_efficiency_prints_and_writes_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = "escaip-tiny:bf16,fairchem2-escaip"
    words = ["--quick", "--models", names, "--batch-sizes", "2,1", "--out", str(tmp_path)]
    assert main(["bench", "efficiency", *words]) == 0
    rows = read(tmp_path / "efficiency.csv")
    measured = [row for row in rows if not row["remark"]]
    assert [(row["model"], row["mode"], row["batch"]) for row in measured] == [
        (model, mode, size)
        for model in ("escaip-tiny:bf16",)
        for mode in ("inference", "training")
        for size in ("1", "2")
    ]
    for row in measured:
        assert row["batches"] == "3"
        assert 0 < float(row["floor (s)"]) < float(row["time mean (s)"])
        assert float(row["floor share"]) == pytest.approx(float(row["floor (s)"]) / float(row["time mean (s)"]))
        assert float(row["samples/s"]) == pytest.approx(int(row["batch"]) / float(row["time mean (s)"]))
        assert float(row["GB/sample"]) == pytest.approx(float(row["peak memory (GB)"]) / int(row["batch"]))
        assert row["parameters"] == measured[0]["parameters"]
    assert [row["remark"] for row in rows if row["remark"]] == [
        "not available: not measured; name its Python with --fairchem2"
    ]
    assert (tmp_path / "efficiency.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "## Machine" in printed
    assert "GFLOP/s" in printed
    assert "escaip-tiny:bf16 training, batch 2:" in printed


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a quick run of all benchmarks writes."""
    folder = tmp_path_factory.mktemp("page")
    asked: list[Case] = []

    class Recorder(InProcessWorker):
        def ask(self, case: Case, deadline: Deadline) -> Outcome:
            assert case not in asked, "nothing is measured twice"
            asked.append(case)
            return super().ask(case, deadline)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "Worker", Recorder)
        assert main(["bench", "all", "--quick", "--models", "escaip-tiny:fast", "--page", str(folder)]) == 0
    return folder


def test_a_run_of_all_writes_a_page(page: Path):
    text = (page / "cpu.md").read_text(encoding="utf-8")
    titles = ("Machine", "Must reach", "Efficiency", "Neighbour search", "Molecular dynamics", "Training through the")
    assert all(f"## {title}" in text for title in titles)
    assert "A quick run: the figures mean nothing." in text
    assert "![samples per second and peak memory against batch size](cpu/efficiency.png)" in text
    assert torch.__version__ in text
    assert (page / "cpu" / "efficiency.png").read_bytes().startswith(b"\x89PNG")


def test_all_ratios_are_listed_whether_measured_or_not(page: Path):
    ratios = read(page / "cpu" / "ratios.csv")
    assert {row["verdict"] for row in ratios} <= {"reached", "missed", "not measured"}
    missing = [row["what"] for row in ratios if row["measured"] == "not measured"]
    # Five need a GPU, one a peer that takes a minute.
    assert len(missing) == 6, missing
    assert len(ratios) == 15


@pytest.mark.parametrize("name", ["efficiency", "neighbors", "md", "train"])
def test_every_benchmark_has_times_beside_floors(name: str, page: Path):
    rows = read(page / "cpu" / f"{name}.csv")
    assert rows
    # fairchem's search is given up where it would take too long, and the libraries need not be there.
    assert not [row["remark"] for row in rows if row["remark"] and row.get("method", "escaip").startswith("escaip")]
    assert all(float(row["time median (s)"]) > float(row["floor (s)"]) > 0 for row in rows if not row["remark"])


def test_parts_of_dynamics_add_up(page: Path):
    rows = read(page / "cpu" / "md.csv")
    shares = [float(row["search %"]) + float(row["model %"]) + float(row["other %"]) for row in rows]
    assert shares == pytest.approx([100.0] * len(rows))
    assert {row["driver"] for row in rows} == {"bare", "ase"}


@pytest.mark.usefixtures("in_process")
def test_what_does_not_fit_into_the_time_limit_is_dropped_and_listed(tmp_path: Path):
    assert main(["bench", "efficiency", *QUICK, "--time-limit", "1e-3", "--out", str(tmp_path)]) == 0
    rows = read(tmp_path / "efficiency.csv")
    assert {row["remark"] for row in rows} == {"dropped: the time limit of the command"}
    assert not (tmp_path / "efficiency.png").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_gpu_is_an_error_and_nothing_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["bench", name, "--device", "cuda", "--quick", "--out", str(tmp_path / "out")]) == 2
    assert "finds no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_model_is_an_error_before_anything_is_measured(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "ratios", "--models", "escaip-smal"]) == 2
    captured = capsys.readouterr()
    assert "did you mean 'escaip-small'" in captured.err
    assert "measuring" not in captured.out


def test_a_folder_without_frames_is_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "efficiency", *QUICK, "--frames", str(tmp_path)]) == 2
    assert "oc20_3frames.extxyz" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--batch-sizes", "0"], ["--time-limit", "0"], ["--batch-sizes", "x"]])
def test_wrong_numbers_are_refused(words: list[str]):
    with pytest.raises(SystemExit) as error:
        main(["bench", "efficiency", *words])
    assert error.value.code == 2


@pytest.mark.slow
def test_a_bare_machine_measures_the_network_and_says_what_is_missing(tmp_path: Path):
    # A process sees its sitecustomize first: here, packages that a machine with nothing but torch and e3nn lacks.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('fairchem', 'ase', 'lmdb', 'submitit', 'torch_geometric'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    source = Path(__file__).parents[2] / "src"
    words = ["--quick", "--models", "escaip-tiny,schnet", "--batch-sizes", "1", "--out", str(tmp_path / "out")]
    process = subprocess.run(
        [sys.executable, "-m", "escaip_fairchem.cli.main", "bench", "efficiency", *words],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{source}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    ours, theirs = [], []
    for row in read(tmp_path / "out" / "efficiency.csv"):
        (ours if row["model"] == "escaip-tiny:fast" else theirs).append(row["remark"])
    assert ours == ["", ""]
    assert theirs
    assert all("fairchem-core cannot be imported" in remark for remark in theirs)
