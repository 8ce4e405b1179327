"""What run folders tell, from real trainings, and figures of error against cost."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_cases import build, config, rattled_slabs, write_lmdb

from escaip_fairchem.cli.main import main
from escaip_fairchem.errors import DataError, RunFolderError
from escaip_fairchem.evaluate.curves import read_curves
from escaip_fairchem.evaluate.scaling import NOT_KNOWN, read_runs, scaling_table, seconds_per_step, write_scaling
from escaip_fairchem.plugin.run_facts import family_of, read_run, run_folders
from escaip_fairchem.testing import TINY

RUNS = {
    "small": (8, {}),
    "large": (16, {}),
    "half": (16, {"fraction": 0.5}),
    "turned": (8, {"rotations": {"copies": 2}}),
}
STRUCTURES = {"small": 8, "large": 8, "half": 4, "turned": 8}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings of one epoch that differ in size and data, all in one folder."""
    folder = tmp_path_factory.mktemp("runs")
    train = write_lmdb(folder / "train.lmdb", rattled_slabs(8, 0))
    val = write_lmdb(folder / "val.lmdb", rattled_slabs(3, 1))
    for name, (width, data) in RUNS.items():
        settings = config(train, val, model__width=width, optimizer__max_epochs=1, logger="tensorboard")
        settings["dataset"]["train"].update(data)
        trainer = build(settings, folder, timestamp_id=name)
        trainer.train(disable_eval_tqdm=True)
        trainer.logger.writer.flush()
        trainer.close()
    return folder


def on_gpus(runs: Path, name: str, copy: Path, gpus: int = 2, recorded: int = 2) -> Path:
    """A copy of a run as if it had been done on GPUs; returns the folder of its checkpoints."""
    shutil.copytree(runs / "checkpoints" / name, copy / "checkpoints" / name)
    shutil.copytree(runs / "logs/tensorboard" / name, copy / "logs/tensorboard" / name)
    for path in (copy / "checkpoints" / name).glob("*checkpoint.pt"):
        content = torch.load(path, weights_only=True)
        content["config"]["gpus"] = gpus
        if "escaip_training" in content:
            content["escaip_training"]["ranks"] *= recorded
        torch.save(content, path)
    return copy / "checkpoints" / name


def test_checkpoints_tell_sizes_data_and_errors(runs):
    for name, count in STRUCTURES.items():
        facts = read_run(runs / "checkpoints" / name)
        assert (facts.name, facts.family, facts.structures) == (name, "TinyModel", count)
        assert (facts.batch_size, facts.processes, facts.on_gpu) == (4, 1, False)
        best = torch.load(facts.folder / "best_checkpoint.pt", weights_only=True)
        latest = torch.load(facts.folder / "checkpoint.pt", weights_only=True)
        assert facts.forces_mae == best["val_metrics"]["forces_mae"]["metric"]
        assert facts.steps == latest["step"] == {"small": 2, "large": 2, "half": 1, "turned": 4}[name]
        weights = {key: tensor.numel() for key, tensor in latest["state_dict"].items()}
        assert facts.parameters == sum(weights.values())


@pytest.mark.parametrize(("limit", "measured"), [(None, "all of {}"), (2, "at most 2 structures of {}")])
def test_checkpoints_tell_what_was_evaluated(runs, tmp_path, limit, measured):
    folder = on_gpus(runs, "small", tmp_path)
    for path in folder.glob("*checkpoint.pt"):
        content = torch.load(path, weights_only=True)
        if limit is not None:
            content["config"]["val_dataset"]["at_most"] = limit
        torch.save(content, path)
    facts = read_run(folder)
    assert facts.validation == f"{runs.name}/val.lmdb"
    assert facts.validation_limit == limit
    (run,) = read_runs([str(folder)])
    assert run.measured == measured.format(facts.validation)
    assert f"on {run.measured}" in scaling_table([run]).text()


def test_gpu_hours_are_steps_times_seconds_times_gpus(runs, tmp_path):
    (run,) = read_runs([str(on_gpus(runs, "small", tmp_path))])
    rates = read_curves(tmp_path / "logs/tensorboard/small")["train/samples_per_second"]
    assert sorted(rates) == [1, 2]
    seconds = sum(4 * 2 / rate for rate in rates.values())  # both GPUs' batches of four in every step
    assert run.gpu_hours == pytest.approx(seconds * 2 / 3600)
    assert not any("GPU-hours" in line for line in run.unknown)


def test_a_save_by_a_signal_does_not_hide_the_other_gpus(runs, tmp_path):
    """It records the generators of one process, however many there are."""
    assert read_run(on_gpus(runs, "small", tmp_path, gpus=4, recorded=1)).processes == 4


def test_relative_folders_have_names_and_logs(runs, monkeypatch):
    for here, words in (("checkpoints/small", "."), ("checkpoints", "small"), (".", "checkpoints/small")):
        monkeypatch.chdir(runs / here)
        (facts,) = (read_run(folder) for folder in run_folders(Path(words)))
        assert facts.name == "small"
        assert facts.logs == [runs.resolve() / "logs/tensorboard/small"]


def test_seconds_per_step_weigh_reports_by_their_steps():
    assert seconds_per_step({10: 4.0, 30: 8.0}, 8) == pytest.approx((10 * 2 + 20 * 1) / 30)
    assert seconds_per_step({}, 8) is None
    assert seconds_per_step({5: 0.0}, 8) is None


@pytest.mark.parametrize(
    ("remove", "reasons"),
    [
        ("logs", ["GPU-hours: its folder of logs"]),
        (
            "checkpoint.pt",
            ["training structures: its checkpoint.pt is missing", "GPU-hours: checkpoint.pt, which says"],
        ),
        ("best_checkpoint.pt", ["errors: there is no best_checkpoint.pt"]),
    ],
)
def test_what_a_folder_lacks_is_not_known(runs, tmp_path, remove, reasons):
    folder = on_gpus(runs, "small", tmp_path)
    if remove == "logs":
        shutil.rmtree(tmp_path / "logs")
    else:
        (folder / remove).unlink()
    (run,) = read_runs([str(folder)])
    assert [
        line.partition(f"{NOT_KNOWN}: ")[2][: len(reason)] for line, reason in zip(run.unknown, reasons, strict=True)
    ] == reasons
    assert list(run.values.values()).count(NOT_KNOWN) == (2 if remove != "logs" else 1)


def test_a_run_on_cpus_has_no_gpu_hours(runs):
    (run,) = read_runs([str(runs / "checkpoints/small")])
    assert run.gpu_hours is None
    assert run.unknown == ("small: not known: GPU-hours: it was trained on CPUs",)


def test_figures_and_tables_of_all_runs_of_a_folder(runs, tmp_path, capsys):
    on_gpus(runs, "small", tmp_path / "gpu")
    out = tmp_path / "out"
    assert main(["plot", "scaling", str(runs), f"Tiny on GPUs={tmp_path / 'gpu'}", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "half: not known: GPU-hours: it was trained on CPUs" in printed
    with (out / "scaling.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["half", "large", "small", "turned", "small"]
    assert [row["family"] for row in rows] == ["TinyModel"] * 4 + ["Tiny on GPUs"]
    assert [row["training_structures"] for row in rows] == ["4", "8", "8", "8", "8"]
    assert [row["gpu_hours"] == NOT_KNOWN for row in rows] == [True] * 4 + [False]
    assert {(row["validation_set"], row["validation_limit"]) for row in rows} == {(f"{runs.name}/val.lmdb", "all")}
    assert int(rows[1]["parameters"]) > int(rows[2]["parameters"])
    assert sorted(path.name for path in out.iterdir()) == [
        "scaling.csv", "scaling.tex", "scaling_data.png", "scaling_gpu-hours.png", "scaling_parameters.png",
    ]  # fmt: skip
    for path in out.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    again = tmp_path / "again"
    assert main(["plot", "scaling", str(runs), "--x", "data", "--out", str(again)]) == 0
    assert sorted(path.name for path in again.iterdir()) == ["scaling.csv", "scaling.tex", "scaling_data.png"]


def test_what_cannot_be_drawn_says_why(runs, tmp_path, capsys):
    assert main(["plot", "scaling", str(runs), "--x", "gpu-hours", "--out", str(tmp_path / "out")]) == 2
    assert "half: not known: GPU-hours: it was trained on CPUs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="nothing to plot"):
        write_scaling([], tmp_path / "out", ["parameters"])
    assert main(["plot", "scaling", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no run is there; give a run's folder of checkpoints" in capsys.readouterr().err
    (tmp_path / "bad").mkdir()
    torch.save({"state_dict": {}}, tmp_path / "bad/checkpoint.pt")
    with pytest.raises(RunFolderError, match=r"bad/checkpoint\.pt: holds no configuration"):
        read_run(tmp_path / "bad")
    assert run_folders(tmp_path / "bad") == [tmp_path / "bad"]


def escaip(**settings: Any) -> dict[str, Any]:
    return {"name": "escaip_fairchem.EScAIP", "backbone": {**TINY, **settings}}


@pytest.mark.parametrize(
    ("model", "family"),
    [
        (escaip(direct_force=True), "EScAIP"),
        (escaip(direct_force=False, regress_forces=True), "EScAIP (conservative)"),
        ({"name": "hydra", "backbone": {"model": "equiformer_v2_backbone"}, "heads": {}}, "equiformer_v2"),
        ({"name": "hydra", "backbone": {"model": "escaip_fairchem.EScAIPBackbone"},
          "heads": {"a": {"module": "escaip_fairchem.EScAIPConservativeHead"}}}, "EScAIP (conservative)"),
        ({"name": "schnet", "direct_force": False}, "schnet"),
    ],
)  # fmt: skip
def test_families(model, family):
    assert family_of(model) == family
