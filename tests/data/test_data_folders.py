"""The folder that is written into: what is there stays until a whole replaces it; strangers' files stay for good."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from ase.io import write
from fairchem_side import data_set_content, open_split, section
from structure_cases import molecule, slab

from escaip_fairchem.data import staging
from escaip_fairchem.data.checks import Limits
from escaip_fairchem.data.convert import convert
from escaip_fairchem.data.demo_set import DemoOptions, write_demo
from escaip_fairchem.data.options import ConvertOptions
from escaip_fairchem.data.splits import SplitOptions
from escaip_fairchem.errors import DataError

OPTIONS = ConvertOptions(split=SplitOptions(parts=(0.8, 0.2)))
OTHER = ConvertOptions(split=SplitOptions(parts=(1.0,)), limits=Limits(max_force=9.0), linear_references=False)


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    write(tmp_path / "in.extxyz", [slab(k) if k % 3 else molecule(k) for k in range(20)])
    return [str(tmp_path / "in.extxyz")]


@pytest.fixture
def read_chunks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the chunks that were read, as they are read."""
    numbers: list[int] = []
    original = staging.read_chunk

    def counting(chunk):
        numbers.append(chunk.number)
        return original(chunk)

    monkeypatch.setattr(staging, "read_chunk", counting)
    return numbers


def fail_once(monkeypatch: pytest.MonkeyPatch, target: str, at_call: int = 1) -> None:
    """Let Ctrl-C arrive in one call of a function."""
    module, name = target.rsplit(".", maxsplit=1)
    original = getattr(__import__(module, fromlist=[name]), name)
    calls = []

    def failing(*arguments, **options):
        calls.append(arguments)
        if len(calls) == at_call:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(target, failing)


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {".lock"}


def test_an_output_that_is_a_file_is_refused_by_name(tmp_path: Path, inputs: list[str]):
    shutil.copy(inputs[0], tmp_path / "b.extxyz")
    before = (tmp_path / "b.extxyz").read_bytes()
    with pytest.raises(DataError, match=r"b\.extxyz is a file; the last argument is the folder to write into"):
        convert(inputs, tmp_path / "b.extxyz", OPTIONS)
    assert (tmp_path / "b.extxyz").read_bytes() == before


def test_a_folder_that_cannot_be_made_or_locked_is_an_error_for_users(tmp_path: Path, inputs: list[str]):
    with pytest.raises(DataError, match="cannot write into OUT .*below"):
        convert(inputs, Path(inputs[0]) / "below", OPTIONS)
    (tmp_path / "out" / ".lock").mkdir(parents=True)
    with pytest.raises(DataError, match="cannot write into OUT"):
        convert(inputs, tmp_path / "out", OPTIONS)


def test_overwriting_removes_all_of_another_command_and_nothing_else(tmp_path: Path, inputs: list[str]):
    out = tmp_path / "out"
    write_demo(out, DemoOptions(train=1, val=0, test=0, formats=("aselmdb",)))
    (out / "notes.txt").write_text("mine")
    (out / "aselmdb" / "train" / "notes.txt").write_text("mine")
    convert(inputs, out, OPTIONS, overwrite=True)
    convert(inputs, tmp_path / "fresh", OPTIONS)
    assert names_in(out) == names_in(tmp_path / "fresh") | {"notes.txt", "aselmdb/train/notes.txt"}
    assert not (out / "lmdb").exists()
    (out / "aselmdb" / "train" / "notes.txt").unlink()
    with pytest.raises(DataError, match="already holds aselmdb"):  # a stranger's now, empty or not
        write_demo(out, DemoOptions(train=1, val=0, test=0, formats=("aselmdb",)), overwrite=True)


def test_the_old_data_set_stays_until_the_new_one_is_whole(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    summary = convert(inputs, out, OPTIONS)
    before = data_set_content(out)
    for stage in ("staging.read_chunk", "convert.fit_normalizers", "convert.summarize"):
        fail_once(monkeypatch, f"escaip_fairchem.data.{stage}")
        with pytest.raises(KeyboardInterrupt):
            convert(inputs, out, OTHER, overwrite=True)
        assert {name: content for name, content in data_set_content(out).items() if name in before} == before
        assert len(open_split(section(out / "dataset.yml"), "train")) == 16
    assert convert(inputs, out, OPTIONS) == summary
    convert(inputs, out, OTHER, overwrite=True)
    convert(inputs, tmp_path / "fresh", OTHER)
    assert names_in(out) == names_in(tmp_path / "fresh")
    assert not (out / "val").exists()


def test_a_run_stopped_while_files_take_their_places_can_be_finished(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    convert(inputs, out, OPTIONS)
    fail_once(monkeypatch, "escaip_fairchem.data.claims._remove", at_call=2)
    with pytest.raises(KeyboardInterrupt):
        convert(inputs, out, OTHER, overwrite=True)
    with pytest.raises(DataError, match="unfinished work of a run"):  # neither the old set nor the new one
        convert(inputs, out, OPTIONS)
    convert(inputs, out, OTHER)
    convert(inputs, tmp_path / "fresh", OTHER)
    assert names_in(out) == names_in(tmp_path / "fresh")


def test_a_split_that_cannot_be_met_costs_no_reading(tmp_path: Path, inputs: list[str], read_chunks: list[int]):
    out = tmp_path / "out"
    with pytest.raises(DataError, match="asks for 40 structures"):
        convert(inputs, out, ConvertOptions(split=SplitOptions(parts=(30, 10))))
    assert not (out / "train").exists()
    read_chunks.clear()
    for split in (SplitOptions(parts=(50,)), SplitOptions(parts=(15, 5), seed=3, shuffle=False)):
        try:
            convert(inputs, out, ConvertOptions(split=split, shard_rows=7))
        except DataError:
            assert split.parts == (50,)
    assert read_chunks == []
    convert(inputs, tmp_path / "fresh", ConvertOptions(split=split, shard_rows=7))
    assert names_in(out) == names_in(tmp_path / "fresh")
    val = "val/data.0000.aselmdb"
    assert data_set_content(out)[val] == data_set_content(tmp_path / "fresh")[val]


def test_what_a_refused_split_left_stands_in_nobodys_way(tmp_path: Path, inputs: list[str], read_chunks: list[int]):
    with pytest.raises(DataError, match="asks for"):
        convert(inputs, tmp_path / "out", ConvertOptions(split=SplitOptions(parts=(30, 10))))
    convert(inputs, tmp_path / "out", OTHER)
    assert read_chunks == [0, 0]


def test_shards_of_a_run_with_another_split_are_not_taken_over(
    tmp_path: Path, inputs: list[str], monkeypatch: pytest.MonkeyPatch
):
    """Stopped after writing three files for a split, a run with fewer structures per split must not keep the third."""
    fail_once(monkeypatch, "escaip_fairchem.data.convert.summarize")
    with pytest.raises(KeyboardInterrupt):
        convert(inputs, tmp_path / "out", ConvertOptions(split=SplitOptions(parts=(20,)), shard_rows=7))
    summary = convert(inputs, tmp_path / "out", ConvertOptions(split=SplitOptions(parts=(6,)), shard_rows=7))
    assert summary["splits"]["train"]["structures"] == 6
    assert len(open_split(section(tmp_path / "out" / "dataset.yml"), "train")) == 6


@pytest.mark.parametrize("lost", ["train", "summary.json", "val/data.0000.aselmdb", "element_references.npz"])
def test_a_data_set_that_lost_files_is_made_again(tmp_path: Path, inputs: list[str], lost: str):
    summary = convert(inputs, tmp_path / "out", OPTIONS)
    before = data_set_content(tmp_path / "out")
    path = tmp_path / "out" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert convert(inputs, tmp_path / "out", OPTIONS) == summary
    assert data_set_content(tmp_path / "out") == before


def test_a_data_set_of_another_format_version_is_not_taken_for_the_same(tmp_path: Path, inputs: list[str]):
    convert(inputs, tmp_path / "out", OPTIONS)
    manifest = tmp_path / "out" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "format": content["format"] + 1}))
    version = content["format"]
    with pytest.raises(DataError, match=f"format version: {version + 1} there, {version} now"):
        convert(inputs, tmp_path / "out", OPTIONS)
    convert(inputs, tmp_path / "out", OPTIONS, overwrite=True)
    assert json.loads(manifest.read_text()) == content


@pytest.mark.parametrize("make", [SplitOptions, DemoOptions])
def test_a_bad_seed_is_refused_before_anything_is_read(make: type):
    with pytest.raises(DataError, match="--seed must be a whole number, 0 or above; got -1"):
        make(seed=-1)
