"""The two records of a run folder: what is written is read, whole or not at all."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path

import pytest

from escaip_fairchem.errors import RunFolderError
from escaip_fairchem.runs import records
from escaip_fairchem.runs.records import Status, Submission

STATUS = Status(
    run="a",
    state=records.TRAINING,
    step=1200,
    total_steps=5000,
    epoch=2.5,
    metrics={"energy_mae": 0.1, "forces_mae": 0.02},
    primary_metric="forces_mae",
    best=0.02,
    job="17_3",
    host="node1",
    pid=4,
    updated=records.now(),
)
SUBMISSION = Submission(
    run="a",
    job="17_3",
    submitted=records.now(),
    logdir="/runs/logs",
    log="/runs/logs/17_3.out",
    config={"optim": {"lr_initial": 1e-3}},
    parameters={"mem_gb": 80},
    config_yml="configs/a.yml",
    changes={"optim.lr_initial": 1e-3},
)


def test_what_is_written_is_read(tmp_path: Path):
    records.write_status(tmp_path, STATUS)
    records.write_submission(tmp_path, SUBMISSION)
    assert records.read_status(tmp_path) == STATUS
    assert records.read_submission(tmp_path) == SUBMISSION
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "status.json",
        "submission.json",
    ]  # nothing is left over


def test_what_is_not_there_is_none(tmp_path: Path):
    assert records.read_status(tmp_path) is None
    assert records.read_submission(tmp_path / "missing") is None


def test_a_later_status_replaces_the_earlier_one(tmp_path: Path):
    records.write_status(tmp_path, STATUS)
    records.write_status(tmp_path, replace(STATUS, step=1300))
    status = records.read_status(tmp_path)
    assert status is not None
    assert status.step == 1300


def test_a_write_that_fails_leaves_the_earlier_record(tmp_path: Path):
    records.write_status(tmp_path, STATUS)
    endless: dict = {}
    endless["self"] = endless
    with pytest.raises((ValueError, RecursionError)):
        records.write_status(tmp_path, replace(STATUS, metrics=endless))
    assert records.read_status(tmp_path) == STATUS
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_fields_of_a_later_version_are_skipped(tmp_path: Path):
    records.write_status(tmp_path, STATUS)
    path = tmp_path / records.STATUS_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_the_future": 1}))
    assert records.read_status(tmp_path) == STATUS


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '"x"', "\udcff"])
def test_a_damaged_record_is_an_error_that_names_the_file(tmp_path: Path, text: str):
    path = tmp_path / records.STATUS_NAME
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(RunFolderError, match=r"status\.json: cannot be read .* delete it if it is damaged"):
        records.read_status(tmp_path)


def test_times_have_a_zone():
    assert datetime.datetime.fromisoformat(records.now()).tzinfo is not None
