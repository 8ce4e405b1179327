"""What stops runs before any of them is queued."""

from __future__ import annotations

import re

import pytest

from escaip_fairchem.errors import ConfigError, RunFolderError
from escaip_fairchem.plugin.launch.planning import check_plan


@pytest.fixture
def plan(tmp_path):
    """Configurations of runs with these names."""

    def of(*names: str, **settings: object) -> list[dict]:
        return [{"mode": "train", "run_dir": str(tmp_path), "timestamp_id": name, **settings} for name in names]

    return of


def leave(tmp_path, name: str, *files: str) -> str:
    folder = tmp_path / "checkpoints" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file).touch()
    return str(folder)


def test_new_names_pass(plan, tmp_path):
    leave(tmp_path, "other", "checkpoint.pt", "status.json")
    leave(tmp_path, "a")  # empty
    leave(tmp_path, "b", "best_checkpoint.pt", "run.lock")
    check_plan(plan("a", "b", "c"))
    assert not (tmp_path / "checkpoints/c").exists()


@pytest.mark.parametrize("file", ["checkpoint.pt", "status.json", "submission.json"])
def test_a_folder_with_a_run_is_refused(plan, tmp_path, file):
    folder = leave(tmp_path, "a", file)
    with pytest.raises(RunFolderError) as caught:
        check_plan(plan("a", "b"))
    assert str(caught.value) == (
        f"{folder}: holds {file} of an earlier run; `escaip resubmit {folder}` continues it; choose another "
        "--identifier for a new one"
    )


def test_duplicate_names_are_refused(plan):
    with pytest.raises(ConfigError, match=re.escape("timestamp_id a: runs 0, 2 would write into the same folder")):
        check_plan(plan("a", "b", "a"))


def test_all_problems_are_told_at_once(plan, tmp_path):
    leave(tmp_path, "a", "checkpoint.pt", "submission.json")
    leave(tmp_path, "c", "status.json")
    with pytest.raises(ConfigError) as caught:
        check_plan(plan("a", "b", "b", "c", "a", "d", "d", "d"))
    lines = str(caught.value).splitlines()
    assert [line.partition(" would")[0] for line in lines[:3]] == [
        "timestamp_id a: runs 0, 4",
        "timestamp_id b: runs 1, 2",
        "timestamp_id d: runs 5, 6, 7",
    ]
    assert "checkpoints/a: holds checkpoint.pt, submission.json of" in lines[3]
    assert "checkpoints/c: holds status.json of" in lines[4]
    assert len(lines) == 5
    with pytest.raises(RunFolderError) as folders:
        check_plan(plan("a", "b", "c"))
    assert str(folders.value).splitlines() == lines[3:]


@pytest.mark.parametrize("settings", [{"mode": "validate"}, {"is_debug": True}])
def test_what_writes_no_checkpoint_may_use_the_folder(plan, tmp_path, settings):
    leave(tmp_path, "a", "checkpoint.pt")
    check_plan(plan("a", **settings))
    with pytest.raises(RunFolderError):
        check_plan(plan("a"))
