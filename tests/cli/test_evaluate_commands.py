"""``escaip evaluate`` beside the real ``fairchem --mode validate``, on a model that the real command trained."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from fairchem_runs import OURS, run

from escaip_fairchem.cli.main import main
from escaip_fairchem.data.demo_set import DemoOptions, write_demo
from escaip_fairchem.evaluate.curves import read_curves

CONFIG = Path(__file__).parents[2] / "configs/demo/escaip_demo.yml"
TINY = (
    "model.backbone.hidden_size=16",
    "model.backbone.num_layers=1",
    "model.backbone.atten_num_heads=2",
    "model.backbone.max_neighbors=6",
    "optim.batch_size=4",
    "optim.eval_batch_size=3",
    "optim.max_epochs=1",
)


@pytest.mark.end_to_end
@pytest.mark.slow
def test_errors_are_those_of_the_validate_command(tmp_path, capsys):
    write_demo(tmp_path / "data", DemoOptions(train=8, val=7, test=0, formats=("lmdb", "aselmdb")))
    flags = ["--config-yml", str(CONFIG), "--cpu", "--timestamp-id", "run"]
    settings = ["dataset.train.src=data/lmdb/train", *(f"dataset.{part}.src=data/lmdb/val" for part in ("val", "test"))]
    checkpoint = tmp_path / "trained/checkpoints/run/checkpoint.pt"
    for name, mode in (("trained", ["train"]), ("validated", ["validate", "--checkpoint", str(checkpoint)])):
        words = ["--mode", *mode, *flags, "--run-dir", name, *(f"--{setting}" for setting in (*settings, *TINY))]
        process = run(OURS, *words, cwd=tmp_path)
        assert process.returncode == 0, process.stderr[-3000:]
    curves = read_curves(tmp_path / "validated/logs/tensorboard/run")
    # The data of either format, in batches of another size.
    sets = [f"{form}={tmp_path / 'data' / form / 'val'}" for form in ("lmdb", "aselmdb")]
    assert main(["evaluate", "metrics", str(checkpoint), *sets, "--cpu", "--out", str(tmp_path / "out")]) == 0
    assert f"wrote {tmp_path / 'out/metrics.csv'}" in capsys.readouterr().out
    with (tmp_path / "out/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["data_set"] for row in rows] == ["lmdb", "aselmdb", "mean"]
    for row in rows:
        for column, metric, factor in (
            ("energy_mae_meV", "energy_mae", 1000),
            ("forces_mae_meV_per_A", "forces_mae", 1000),
            ("forces_cosine_similarity", "forces_cosine_similarity", 1),
        ):
            (value,) = curves[f"val/{metric}"].values()
            assert float(row[column]) == pytest.approx(factor * value, rel=1e-4, abs=1e-4), (row["data_set"], metric)


@pytest.mark.parametrize("command", [["evaluate"], ["evaluate", "metrics"], ["evaluate", "submission"], ["plot"]])
def test_lines_that_lack_something_end_with_status_2(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    assert f"usage: escaip {' '.join(command)}" in capsys.readouterr().err


def test_help_lists_the_evaluations(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name in ("metrics", "submission", "rotation", "relax ", "dynamics ", "relaxations, molecular dynamics"):
        assert name in said
