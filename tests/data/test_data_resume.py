"""Interrupted, repeated and parallel conversions: one data set, whole, or a clear refusal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ase.io import write
from fairchem_side import data_set_content, open_split, section
from raw_cases import mptrj_entry
from structure_cases import molecule, slab

from escaip_fairchem.data import plans, progress, sources, staging
from escaip_fairchem.data.checks import Limits
from escaip_fairchem.data.claims import claim
from escaip_fairchem.data.convert import convert
from escaip_fairchem.data.manifest import Manifest
from escaip_fairchem.data.options import ConvertOptions
from escaip_fairchem.data.splits import SplitOptions
from escaip_fairchem.errors import DataError

OPTIONS = ConvertOptions(split=SplitOptions(parts=(0.6, 0.2, 0.2)))


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """Three files of a few chunks, with something to skip in one of them."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        frames = [slab(k, run=number) if k % 3 else molecule(k, run=number) for k in range(40)]
        write(folder / f"{number}.extxyz", frames)
    with (folder / "2.extxyz").open("a") as file:
        file.write("broken\n")
    return [str(folder)]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_the_number_of_workers_changes_nothing(tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "CHUNK_FRAMES", 11)  # the plan is made here, so the workers see it too
    convert(inputs, tmp_path / "one", OPTIONS, workers=1)
    convert(inputs, tmp_path / "two", OPTIONS, workers=2)
    one, two = data_set_content(tmp_path / "one"), data_set_content(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        if name.endswith(".yml"):  # they name their own folder
            assert one[name].replace(b"/one/", b"/two/") == two[name]
        else:
            assert one[name] == two[name], name


def test_another_seed_gives_another_split(tmp_path: Path, inputs: list[str]):
    convert(inputs, tmp_path / "a", OPTIONS)
    convert(inputs, tmp_path / "b", ConvertOptions(split=SplitOptions(parts=(0.6, 0.2, 0.2), seed=1)))
    ids = [{data.sid for data in open_split(section(tmp_path / name / "dataset.yml"), "val")} for name in "ab"]
    assert len(ids[0]) == len(ids[1]) == 24
    assert ids[0] != ids[1]


def test_groups_stay_together(tmp_path: Path, inputs: list[str]):
    options = ConvertOptions(split=SplitOptions(parts=(0.4, 0.3, 0.3)), split_by="run")
    convert(inputs, tmp_path / "out", options)
    sections = section(tmp_path / "out" / "dataset.yml")
    runs = [{data.sid.split(".")[0] for data in open_split(sections, split)} for split in ("train", "val", "test")]
    assert sorted(map(len, runs)) == [1, 1, 1]
    with pytest.raises(DataError, match="no structure has an entry 'system'"):
        convert(inputs, tmp_path / "other", ConvertOptions(split_by="system"))
    convert(inputs, tmp_path / "other", ConvertOptions(split_by="file"))  # the refusal left the folder free


def test_a_complete_data_set_is_left_alone(tmp_path: Path, inputs: list[str]):
    first = convert(inputs, tmp_path / "out", OPTIONS)
    stamp = (tmp_path / "out" / "train" / "data.0000.aselmdb").stat().st_mtime_ns
    assert convert(inputs, tmp_path / "out", OPTIONS) == first
    assert (tmp_path / "out" / "train" / "data.0000.aselmdb").stat().st_mtime_ns == stamp
    assert not (tmp_path / "out" / ".partial").exists()


def test_another_data_set_is_refused_until_overwriting_is_asked_for(tmp_path: Path, inputs: list[str]):
    convert(inputs, tmp_path / "out", OPTIONS)
    before = data_set_content(tmp_path / "out")
    other = ConvertOptions(split=OPTIONS.split, limits=Limits(max_force=9.0))
    with pytest.raises(
        DataError, match=r'(?s)holds a data set .*limits: .*"max_force": 50.0.* there.*9.0.*--overwrite'
    ):
        convert(inputs, tmp_path / "out", other)
    assert data_set_content(tmp_path / "out") == before
    convert(inputs, tmp_path / "out", other, overwrite=True)
    assert json.loads(read(tmp_path / "out" / "manifest.json"))["decides"]["limits"]["max_force"] == 9.0


def test_changed_input_is_noticed(tmp_path: Path, inputs: list[str]):
    convert(inputs, tmp_path / "out", OPTIONS)
    write(Path(inputs[0]) / "3.extxyz", slab(99))
    with pytest.raises(DataError, match="inputs: "):
        convert(inputs, tmp_path / "out", OPTIONS)


def test_files_of_someone_else_are_never_touched(tmp_path: Path, inputs: list[str]):
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "train" / "precious").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="already holds train, which no command of this kind has recorded"):
            convert(inputs, tmp_path / "out", OPTIONS, overwrite=overwrite)
    assert read(tmp_path / "out" / "train" / "precious") == "mine"


def test_two_conversions_cannot_share_a_folder(tmp_path: Path, inputs: list[str]):
    manifest = Manifest.of("another command", {})
    refused = pytest.raises(DataError, match="another process is writing into")
    with claim(tmp_path / "out", manifest, outputs=(), overwrite=False), refused:
        convert(inputs, tmp_path / "out", OPTIONS)


def test_the_output_folder_is_no_input(tmp_path: Path, inputs: list[str]):
    out = Path(inputs[0]) / "out"
    first = convert(inputs, out, OPTIONS)
    assert convert(inputs, out, OPTIONS) == first


def test_nothing_matching_is_an_error_before_anything_is_written(tmp_path: Path):
    with pytest.raises(DataError, match="no file matches"):
        convert([str(tmp_path / "absent*.xyz")], tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


def test_the_limit_takes_the_first_structures_of_all_files(tmp_path: Path, inputs: list[str]):
    options = ConvertOptions(split=SplitOptions(parts=(1.0,), shuffle=False), limit=50)
    summary = convert(inputs, tmp_path / "out", options)
    assert summary["read"] == 50
    ids = [data.sid for data in open_split(section(tmp_path / "out" / "dataset.yml"), "train")]
    assert ids == [f"0.extxyz:{k}" for k in range(40)] + [f"1.extxyz:{k}" for k in range(10)]


def test_an_interrupted_conversion_reads_only_what_is_missing(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sources, "CHUNK_FRAMES", 11)
    convert(inputs, tmp_path / "whole", OPTIONS)
    read_chunks: list[int] = []
    original = staging.read_chunk

    def failing(chunk):
        read_chunks.append(chunk.number)
        if len(read_chunks) == 6:
            raise KeyboardInterrupt
        return original(chunk)

    monkeypatch.setattr(staging, "read_chunk", failing)
    with pytest.raises(KeyboardInterrupt):
        convert(inputs, tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out" / "train").exists()
    convert(inputs, tmp_path / "out", OPTIONS)
    assert read_chunks == [0, 1, 2, 3, 4, 5, *range(5, read_chunks[-1] + 1)]
    whole, resumed = data_set_content(tmp_path / "whole"), data_set_content(tmp_path / "out")
    assert {name: whole[name] for name in whole if not name.endswith(".yml")} == {
        name: resumed[name] for name in resumed if not name.endswith(".yml")
    }


def test_files_are_not_searched_through_again_after_an_interruption(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sources, "CHUNK_FRAMES", 11)
    (Path(inputs[0]) / "2.extxyz").unlink()  # whose end cannot be followed
    write(tmp_path / "in" / "rows.json", [slab(k, run=9) for k in range(15)])
    convert(inputs, tmp_path / "whole", OPTIONS)
    searches: list[int] = []
    original, stage = plans.plan_chunks, staging.stage_chunk

    def searching(files, **options):
        searches.append(len(files))
        return original(files, **options)

    def stopped(chunk, **options):
        if chunk.number == 5:
            raise KeyboardInterrupt
        return stage(chunk, **options)

    monkeypatch.setattr(plans, "plan_chunks", searching)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(staging, "stage_chunk", stopped)
        convert(inputs, tmp_path / "out", OPTIONS)
    assert (tmp_path / "out" / ".partial" / "read" / "plan.json").is_file()
    convert(inputs, tmp_path / "out", OPTIONS)
    assert searches == [3]
    whole, resumed = data_set_content(tmp_path / "whole"), data_set_content(tmp_path / "out")
    assert {name: whole[name] for name in whole if not name.endswith(".yml")} == {
        name: resumed[name] for name in resumed if not name.endswith(".yml")
    }


@pytest.mark.parametrize("fault", ["broken", "changed"])
def test_a_search_is_repeated_where_the_first_failed_or_a_file_changed(tmp_path: Path, inputs: list[str], fault: str):
    folder = tmp_path / "read"
    folder.mkdir()
    if fault == "changed":
        (Path(inputs[0]) / "2.extxyz").unlink()
    files = sources.find_files(inputs, exclude=folder)
    first = plans.plan_once(files, folder, form=None, limit=None, show_progress=False)
    assert (folder / "plan.json").exists() == (fault == "changed")
    assert any(chunk.failure for chunk in first) == (fault == "broken")
    if fault == "changed":
        assert plans.plan_once(files, folder, form=None, limit=None, show_progress=False) == first
        write(files[0].path, [molecule(k) for k in range(3)])
    again = plans.plan_once(files, folder, form=None, limit=None, show_progress=False)
    assert again[0].count == (3 if fault == "changed" else 40)


def test_a_plan_survives_with_everything_that_says_where_things_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "CHUNK_FRAMES", 2)
    entries = {f"mp-{k}": {f"mp-{k}-0-0": mptrj_entry(f"mp-{k}")} for k in range(5)}
    (tmp_path / "m.json").write_text(json.dumps(entries))
    files = sources.find_files([str(tmp_path / "m.json")], exclude=tmp_path / "x", form="mptrj")
    first = plans.plan_once(files, tmp_path, form="mptrj", limit=None, show_progress=False)
    assert [len(chunk.spans) for chunk in first] == [2, 2, 1]
    assert plans.plan_once(files, tmp_path, form="mptrj", limit=None, show_progress=False) == first


def test_the_search_for_structures_reports_how_far_it_is(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sources, "CHUNK_FRAMES", 11)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    files = sources.find_files(inputs, exclude=tmp_path / "out")
    sizes = [source.path.stat().st_size for source in files]
    monkeypatch.setattr(progress, "MEGABYTE", 1)
    sources.plan_chunks(files, show_progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"looking for structures: 11 structures so far, 0 of {sum(sizes)} MB, 0 s")
    assert lines[4].startswith(f"looking for structures: 51 structures so far, {sizes[0]} of {sum(sizes)} MB")
    assert len(lines) == 13  # four chunks of each file, and the end that cannot be followed
    sources.plan_chunks(files)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_everything_found_is_passed_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    found = progress.watch([3, 7, 9], total=9, title="x", reach=lambda item: item, size=lambda item: 1)
    assert list(found) == [3, 7, 9]


def test_a_short_search_is_not_reported(tmp_path: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]):
    convert(inputs, tmp_path / "out", OPTIONS, show_progress=True)
    assert "looking for structures" not in capsys.readouterr().err


SLOW_READER = """
import sys, time
from escaip_fairchem.data import sources, staging
from escaip_fairchem.data.convert import convert
from escaip_fairchem.data.options import ConvertOptions
from escaip_fairchem.data.splits import SplitOptions
from pathlib import Path
sources.CHUNK_FRAMES = 11
original = staging.read_chunk
def slow(chunk):
    for item in original(chunk):
        time.sleep(0.02)
        yield item
if sys.argv[3] == "slow":
    staging.read_chunk = slow
convert([sys.argv[1]], Path(sys.argv[2]), ConvertOptions(split=SplitOptions(parts=(0.6, 0.2, 0.2))))
"""


def test_a_killed_conversion_goes_on_where_it_was(tmp_path: Path, inputs: list[str]):
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", SLOW_READER, inputs[0], str(out), "slow"])
    done = out / ".partial" / "read" / "chunk-000002.npz"
    deadline = time.monotonic() + 120
    while not done.exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stamp = done.stat().st_mtime_ns
    assert not (out / "train").exists()
    assert not (out / "dataset.yml").exists()
    with pytest.raises(DataError, match="holds the unfinished work of a run"):
        convert(inputs, out, ConvertOptions(split=OPTIONS.split, limits=Limits(max_force=9.0)))
    assert done.stat().st_mtime_ns == stamp
    subprocess.run([sys.executable, "-c", SLOW_READER, inputs[0], str(out), "fast"], check=True)
    subprocess.run([sys.executable, "-c", SLOW_READER, inputs[0], str(tmp_path / "whole"), "fast"], check=True)
    resumed, whole = data_set_content(out), data_set_content(tmp_path / "whole")
    assert resumed.keys() == whole.keys()
    assert all(resumed[name] == whole[name] for name in whole if not name.endswith(".yml"))
    assert json.loads(read(out / "manifest.json"))["complete"] is True
    assert not (out / ".partial").exists()


ORPHANS = """
import os, sys, time
from escaip_fairchem.data.pool import ordered_map
def work(number):
    with open(os.path.join(sys.argv[1], f"{os.getpid()}"), "w"):
        time.sleep(60)
if __name__ == "__main__":
    list(ordered_map(work, range(4), 2))
"""


def test_workers_end_with_their_parent(tmp_path: Path):
    script, marks = tmp_path / "orphans.py", tmp_path / "marks"
    script.write_text(ORPHANS)
    marks.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(marks)])
    deadline = time.monotonic() + 120
    while len(list(marks.iterdir())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    workers = [int(path.name) for path in marks.iterdir()]
    while any(_alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)


def _alive(process: int) -> bool:
    """A process that only waits to be reaped does not count."""
    try:
        os.kill(process, 0)
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
