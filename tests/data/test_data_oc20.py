"""`escaip data oc20`: from the published files to what fairchem reads with the shipped configurations."""

from __future__ import annotations

import json
import lzma
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fairchem_side import open_split
from oc_files import (
    as_version_1,
    decoded_content,
    frame,
    graph,
    natoms_of,
    preprocessed,
    unlabelled,
    write_lmdb,
    write_raw,
    write_simple,
)

from escaip_fairchem.data import oc20, oc20_files, prebuilt
from escaip_fairchem.data.checks import Limits
from escaip_fairchem.data.oc20 import OC20Options, convert_oc20
from escaip_fairchem.data.oc20_raw import wrapped
from escaip_fairchem.data.schema import Structure
from escaip_fairchem.errors import DataError

ROOT = Path(__file__).parents[2]
OPTIONS = OC20Options()
STRICT = OC20Options(limits=Limits(min_distance=0.5, max_force=50.0))


def opened(folder: Path) -> Any:
    """Open a split with the keys of the configurations for OC20."""
    section = yaml.safe_load((ROOT / "configs" / "oc20" / "base.yml").read_text(encoding="utf-8"))["dataset"]["train"]
    return open_split({"train": {**section, "src": str(folder)}}, "train")


def reasons(summary: dict[str, Any]) -> list[tuple[str, int, str]]:
    return [(Path(skip["file"]).name, skip["position"], skip["reason"]) for skip in summary["skipped"]]


def test_numbers_worked_by_hand_reach_fairchem(tmp_path: Path):
    write_simple(tmp_path / "raw", "2", sid=77)
    write_simple(tmp_path / "raw", "10", sid=1234567, count=2)
    summary = convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OPTIONS)
    dataset = opened(tmp_path / "out")
    assert [(data.sid, data.fid) for data in dataset] == [(77, 0), (77, 1), (77, 2), (1234567, 0), (1234567, 1)]
    assert [data.energy for data in dataset] == [-1.5, -2.5, -3.5, -1.5, -2.5]  # −10 − k − (−8.5)
    data = dataset[0]
    assert data.forces.tolist() == [[0.5, 0.25, -1.0], [0, 0, 3], [0, -4, 0]]  # the fixed atom's as well
    assert data.fixed.tolist() == [1, 0, 0]  # F: may not move
    assert data.tags.tolist() == [0, 1, 2]
    assert data.atomic_numbers.tolist() == [29, 29, 8]
    assert torch.equal(data.cell, torch.diag(torch.tensor([6.0, 6.0, 20.0]))[None])
    assert natoms_of(tmp_path / "out") == [3] * 5
    described = summary["splits"]["out"]
    assert (summary["read"], summary["usable"], summary["skipped"]) == (5, 5, [])
    assert described["energy_eV"] == {"mean": -2.3, "spread": pytest.approx(0.56**0.5)}  # −1.5, −2.5 twice, −3.5 once
    assert described["elements"] == {"O": 5, "Cu": 10}
    assert described["force_component_rms_eV_per_A"] == pytest.approx((25 / 6) ** 0.5)  # 3 and 4 over two free atoms
    assert described["force_component_mean_absolute_eV_per_A"] == pytest.approx(7 / 6, rel=1e-7)
    assert "adsorption energies" in (tmp_path / "out" / "report.txt").read_text(encoding="utf-8")


def test_batches_of_fairchem_hold_the_rows(tmp_path: Path):
    from fairchem.core.datasets.lmdb_dataset import data_list_collater

    write_simple(tmp_path / "raw", "0", sid=5)
    convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OPTIONS)
    batch = data_list_collater(list(opened(tmp_path / "out")), otf_graph=True)
    assert batch.energy.tolist() == [-1.5, -2.5, -3.5]
    assert batch.natoms.tolist() == [3, 3, 3]
    assert batch.sid == [5, 5, 5] or torch.as_tensor(batch.sid).tolist() == [5, 5, 5]


def test_rows_and_metadata_follow_the_order_of_file_names(tmp_path: Path):
    """More than ten shards of different sizes: 10 comes after 2, in the folder and in the metadata."""
    for number in range(12):
        atoms = [f"O 0 0 {1.5 * row} T 2 0 0 0" for row in range(number + 1)]
        write_raw(tmp_path / "raw", str(number), [frame(-1.0, atoms=atoms)], [f"random{number},frame0,0"])
    convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OPTIONS)
    assert natoms_of(tmp_path / "out") == list(range(1, 13))
    assert [data.natoms for data in opened(tmp_path / "out")] == list(range(1, 13))


def test_total_energies_and_test_data(tmp_path: Path):
    write_simple(tmp_path / "raw", "0", sid=5)
    convert_oc20([str(tmp_path / "raw")], tmp_path / "total", OC20Options(total_energies=True))
    assert [data.energy for data in opened(tmp_path / "total")] == [-10, -11, -12]
    write_raw(tmp_path / "test", "0", [unlabelled(0), unlabelled(1)], ["random8,frame0", "random8,frame1"])
    summary = convert_oc20([str(tmp_path / "test")], tmp_path / "out", OC20Options(test_data=True))
    for data in opened(tmp_path / "out"):
        assert "energy" not in data
        assert "forces" not in data
        assert data.fixed.tolist() == [1, 0]
    assert summary["splits"]["out"]["with_energy"] == 0
    with pytest.raises(DataError, match=r"malformed line.*has no reference energy \(--test-data"):
        convert_oc20([str(tmp_path / "test")], tmp_path / "other", OPTIONS)
    with pytest.raises(DataError, match="--total-energies makes no sense"):
        OC20Options(test_data=True, total_energies=True)


def test_labels_of_test_data_are_left_out(tmp_path: Path):
    write_simple(tmp_path / "raw", "0", sid=5)
    convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OC20Options(test_data=True))
    assert all("energy" not in data and "forces" not in data for data in opened(tmp_path / "out"))


def test_files_that_were_unpacked_are_read_once(tmp_path: Path):
    write_simple(tmp_path / "raw", "0", sid=5)
    for kind in ("extxyz", "txt"):
        packed = tmp_path / "raw" / f"0.{kind}.xz"
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
    (tmp_path / "raw" / "README.txt").write_text("not a list of frames\n")
    assert convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OPTIONS)["read"] == 3


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """A folder with every fault, and one usable frame in each file that can have one."""
    raw = tmp_path / "raw"
    good = frame(-10.0)
    label = "random1,frame{},-8.5".format
    write_raw(raw, "0", [good, frame("nan"), frame(-10.0, atoms=["Cu 0 0 0 T 1 0 0 51"])], map(label, range(3)))
    write_raw(
        raw, "1", [good, frame(-1.0, atoms=["O 0 0 0 T 2 0 0 0", "O 0 0 0.2 T 2 0 0 0"])], ["random2,frame0,1"] * 2
    )
    write_raw(raw, "2", [good, good], ["random3,frame0,-8.5"])
    write_raw(raw, "3", [good, good, good], ["random4,frame0,-8.5", "random4,frame1,what", "4,1,-8.5"])
    write_raw(raw, "4", [good, good[:-40]], [f"random5,frame{n},-8.5" for n in range(4)])
    write_raw(
        raw, "5", [good, frame(-1.0, atoms=["Cu 0 0 zero T 1 0 0 0"]), good], [f"random6,frame{n},0" for n in range(3)]
    )
    write_raw(raw, "6", [good], ["random7,frame0,0"])
    (raw / "6.txt.xz").unlink()
    write_raw(raw, "7", [good], ["random8,frame0,0"])
    (raw / "7.extxyz.xz").unlink()
    write_raw(raw, "8", [good, good, good], ["random3,frame9,0", "random3,frame9,1", "random1,frame0,2"])
    write_raw(raw, "9", [frame(-1.0 * k, number=k) for k in range(300)], [f"random9,frame{n},0" for n in range(300)])
    packed = (raw / "9.extxyz.xz").read_bytes()
    (raw / "9.extxyz.xz").write_bytes(packed[: len(packed) // 2])
    return raw


def test_every_fault_is_reported_and_costs_nothing_else(tmp_path: Path, faulty: Path):
    summary = convert_oc20([str(faulty)], tmp_path / "out", STRICT)
    found = [entry for entry in reasons(summary) if entry[0] != "9.extxyz.xz"]
    assert found == [
        ("0.extxyz.xz", 1, "not finite"),
        ("0.extxyz.xz", 2, "force above the limit"),
        ("1.extxyz.xz", 1, "overlapping atoms"),
        ("2.extxyz.xz", 0, "frames and lines differ"),
        ("3.extxyz.xz", 1, "malformed line"),
        ("3.extxyz.xz", 2, "malformed line"),
        ("4.extxyz.xz", 1, "unreadable frame"),
        ("5.extxyz.xz", 1, "unreadable frame"),
        ("6.extxyz.xz", 0, "missing partner file"),
        ("7.txt.xz", 0, "missing partner file"),
        ("8.extxyz.xz", 1, "duplicate id"),
        ("8.extxyz.xz", 2, "duplicate id"),
    ]
    details = {(Path(skip["file"]).name, skip["position"]): skip["detail"] for skip in summary["skipped"]}
    assert details["2.extxyz.xz", 0].startswith("2 frames and 1 lines")
    assert details["3.extxyz.xz", 1] == "the reference energy 'what' is no finite number"
    assert "the frames of the last 3 lines were not read" in details["4.extxyz.xz", 1]
    assert details["7.txt.xz", 0] == "there is no 7.extxyz.xz beside 7.txt.xz"
    assert details["8.extxyz.xz", 1] == "random3,frame9 occurs at 8.extxyz.xz:0 before"
    assert details["8.extxyz.xz", 2] == "random1,frame0 occurs at 0.extxyz.xz:0 before"
    ids = [(data.sid, data.fid) for data in opened(tmp_path / "out")]
    assert [pair for pair in ids if pair[0] != 9] == [(1, 0), (2, 0), (4, 0), (5, 0), (6, 0), (6, 2), (3, 9)]
    assert len(ids) == len(natoms_of(tmp_path / "out")) == summary["usable"] == summary["splits"]["out"]["structures"]
    assert "duplicate id" in (tmp_path / "out" / "report.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("options", [OPTIONS, OC20Options(limits=Limits(min_distance=0.1, max_force=60.0))])
def test_published_frames_are_kept_unless_limits_are_given(tmp_path: Path, faulty: Path, options: OC20Options):
    found = reasons(convert_oc20([str(faulty)], tmp_path / "out", options))
    assert not {reason for _, _, reason in found} & {"overlapping atoms", "force above the limit"}


def test_raw_pairs_are_joined_in_order(tmp_path: Path):
    """Files of 1, 2, … 7 frames are closed by the pair with which they have 5: 1 + 2 + 3, 4 + 5, 6, and 7."""
    for number in range(1, 8):
        write_simple(tmp_path / "raw", str(number), sid=number, count=number)
    summary = convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OC20Options(shard_rows=5))
    assert sorted(path.name for path in (tmp_path / "out").glob("*.lmdb")) == [f"data.000{k}.lmdb" for k in range(4)]
    expected = [(number, frame) for number in range(1, 8) for frame in range(number)]
    assert [(data.sid, data.fid) for data in opened(tmp_path / "out")] == expected
    assert natoms_of(tmp_path / "out") == [3] * 28
    raw = tmp_path / "raw"
    assert summary["files"]["data.0000.lmdb"] == f"{raw / '1.extxyz.xz'} to {raw / '3.extxyz.xz'} (3 files)"
    assert summary["files"]["data.0003.lmdb"] == str(raw / "7.extxyz.xz")
    convert_oc20([str(tmp_path / "raw")], tmp_path / "one", OPTIONS)
    assert [path.name for path in (tmp_path / "one").glob("*.lmdb")] == ["data.0000.lmdb"]
    assert [(data.sid, data.fid) for data in opened(tmp_path / "one")] == expected
    with pytest.raises(DataError, match="--shard-size must be at least 1"):
        OC20Options(shard_rows=0)


def test_a_run_stopped_at_joining_reads_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_simple(tmp_path / "raw", "0", sid=5)

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(oc20_files, "write_shard", stopped)
        convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OPTIONS)
    monkeypatch.setattr(oc20, "write_raw_shard", stopped)
    assert convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OC20Options(shard_rows=2))["usable"] == 3


def test_atoms_outside_the_cell_are_moved_into_it(tmp_path: Path):
    """The cell is 6 Å × 6 Å × 20 Å: −0.5 becomes 5.5, 13 becomes 1, and 21 becomes 1; all else stays as it is."""
    atoms = ["Cu -0.5 1.25 5.0 F 0 0.5 0.25 -1.0", "Cu 3.0 13.0 7.5 T 1 0 0 3", "O 1.0 1.0 21.0 T 2 0 -4.0 0"]
    write_raw(tmp_path / "raw", "0", [frame(-1.0, atoms=atoms)], ["random1,frame0,0"])
    convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OPTIONS)
    (data,) = opened(tmp_path / "out")
    assert data.pos.tolist() == [[5.5, 1.25, 5.0], [3.0, 1.0, 7.5], [1.0, 1.0, 1.0]]
    assert data.forces.tolist() == [[0.5, 0.25, -1.0], [0, 0, 3], [0, -4, 0]]


def test_wrapping_follows_cell_vectors_that_are_not_orthogonal_and_leaves_other_axes_alone():
    cell = np.array([[4.0, 0, 0], [2.0, 3.0, 0], [0, 0, 0]])
    structure = Structure(
        sid="1", fid=0, numbers=np.array([8, 8]), positions=np.array([[6.5, 3.5, -9.0], [1.0, 0.2, 0.3]]), cell=cell,
        pbc=np.array([True, True, False]), tags=np.zeros(2, dtype=int), fixed=np.zeros(2, dtype=bool), energy=None,
        forces=None,
    )  # fmt: skip
    # 6.5, 3.5 is 1 + 1/24 … along the first and 1 + 1/6 along the second vector: one of each is taken off.
    np.testing.assert_allclose(wrapped(structure).positions, [[0.5, 0.5, -9.0], [1.0, 0.2, 0.3]], atol=1e-12)
    assert wrapped(structure).positions[1].tolist() == [1.0, 0.2, 0.3]


def test_two_workers_write_what_one_writes(tmp_path: Path, faulty: Path):
    convert_oc20([str(faulty)], tmp_path / "one" / "train", OPTIONS, workers=1)
    convert_oc20([str(faulty)], tmp_path / "two" / "train", OPTIONS, workers=2)
    assert decoded_content(tmp_path / "one") == decoded_content(tmp_path / "two")


def test_nothing_usable_names_the_reasons_and_frees_the_folder(tmp_path: Path):
    write_raw(tmp_path / "raw", "0", [frame("nan")], ["random1,frame0,0"])
    with pytest.raises(DataError, match=r"(?s)nothing usable was found.*not finite.*0\.extxyz\.xz:0"):
        convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OPTIONS)
    write_simple(tmp_path / "raw", "1", sid=2)
    assert convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OPTIONS)["usable"] == 3


def test_changed_input_and_options_are_noticed(tmp_path: Path):
    write_simple(tmp_path / "raw", "0", sid=5)
    first = convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OPTIONS)
    stamp = (tmp_path / "out" / "data.0000.lmdb").stat().st_mtime_ns
    assert convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OPTIONS) == first
    assert (tmp_path / "out" / "data.0000.lmdb").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="total_energies: false there, true now"):
        convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OC20Options(total_energies=True))
    write_simple(tmp_path / "raw", "1", sid=6)
    with pytest.raises(DataError, match=r'inputs: .*"2 files".*"4 files"'):
        convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OPTIONS)
    assert convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OPTIONS, overwrite=True)["usable"] == 6


def test_shards_of_someone_else_are_not_mixed_in(tmp_path: Path):
    write_simple(tmp_path / "raw", "0", sid=5)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.lmdb").touch()
    with pytest.raises(DataError, match=r"already holds mine\.lmdb"):
        convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OPTIONS, overwrite=True)


SLOW = """
import sys, time
from pathlib import Path
from escaip_fairchem.data import oc20, oc20_raw
original = oc20_raw.read_chunk
def slow(chunk):
    for item in original(chunk):
        time.sleep(0.05)
        yield item
oc20_raw.read_chunk = slow
oc20.convert_oc20([sys.argv[1]], Path(sys.argv[2]), oc20.OC20Options())
"""


def test_a_killed_run_goes_on_with_the_next_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    raw, out = tmp_path / "raw", tmp_path / "a" / "train"
    for number in range(6):
        write_simple(raw, str(number), sid=number % 5, count=8)  # the last one repeats the first
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(raw), str(out)])
    deadline = time.monotonic() + 120
    while not (out / ".partial" / "read" / "shard-000002.npz").exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(out.glob("*.lmdb"))
    done = sorted(path.name for path in (out / ".partial" / "read").glob("*.npz"))
    read: list[int] = []
    original = oc20.write_raw_shard
    monkeypatch.setattr(oc20, "write_raw_shard", lambda unit, *rest: read.append(unit.number) or original(unit, *rest))
    summary = convert_oc20([str(raw)], out, OPTIONS)
    assert read == [*range(len(done), 6), 5]  # the last one again, for its duplicates
    assert summary["skipped_by_reason"] == {"duplicate id": 8}
    convert_oc20([str(raw)], tmp_path / "b" / "train", OPTIONS)
    assert decoded_content(tmp_path / "a") == decoded_content(tmp_path / "b")
    assert not (out / ".partial").exists()


def test_a_run_stopped_at_the_duplicates_can_be_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number in range(3):
        write_simple(tmp_path / "raw", str(number), sid=1)
    calls: list[int] = []
    original = oc20.write_raw_shard

    def failing(*arguments: Any) -> Any:
        calls.append(arguments[0].number)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(oc20, "write_raw_shard", failing)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        convert_oc20([str(tmp_path / "raw")], out, OPTIONS)
    assert convert_oc20([str(tmp_path / "raw")], out, OPTIONS)["usable"] == 3
    assert calls == [0, 1, 2, 1, 2, 2]
    assert len(opened(out)) == 3


def test_prebuilt_files_are_checked_and_linked(tmp_path: Path):
    prebuilt = tmp_path / "prebuilt"
    write_lmdb(prebuilt / "a.lmdb", [graph(1, 0, [29, 29, 8], -1.0), graph(1, 1, [29, 8], -2.0)])
    write_lmdb(prebuilt / "b.lmdb", [as_version_1(graph(2, k, [29] * (k + 2), -3.0)) for k in range(11)])
    summary = convert_oc20([str(prebuilt)], tmp_path / "out", OPTIONS)
    assert natoms_of(tmp_path / "out") == [3, 2, *range(2, 13)]
    dataset = opened(tmp_path / "out")
    assert [data.natoms for data in dataset] == natoms_of(tmp_path / "out")
    assert [data.energy for data in dataset][:3] == [-1, -2, -3]
    assert (tmp_path / "out" / "data.0000.lmdb").samefile(prebuilt / "a.lmdb")
    assert summary["files"] == {f"data.000{k}.lmdb": str(prebuilt / f"{'ab'[k]}.lmdb") for k in range(2)}
    assert summary["notes"] == []


def test_what_fairchem_s_own_preprocessing_writes_is_taken_as_it_is(tmp_path: Path):
    """Its labels are called energy and forces, which the configurations' key_mapping leaves alone."""
    from fairchem.core.datasets.lmdb_dataset import data_list_collater

    records = [preprocessed(3, fid, -1.5 - fid) for fid in range(3)]
    assert {"energy", "forces"} <= set(records[0].keys())
    write_lmdb(tmp_path / "built" / "data.0000.lmdb", records)
    write_lmdb(tmp_path / "built" / "data.0001.lmdb", [preprocessed(4, 0, 2.5)])
    summary = convert_oc20([str(tmp_path / "built")], tmp_path / "out", OPTIONS)
    described = summary["splits"]["out"]
    assert (summary["usable"], summary["notes"], described["with_energy"]) == (4, [], 4)
    assert described["energy_eV"]["mean"] == pytest.approx(-1.25)  # −1.5, −2.5, −3.5 and 2.5
    assert described["force_component_rms_eV_per_A"] == pytest.approx(
        (25 / 3) ** 0.5
    )  # 0, −4 and 3: oxygen alone is free
    dataset = opened(tmp_path / "out")
    assert [data.energy for data in dataset] == [-1.5, -2.5, -3.5, 2.5]
    batch = data_list_collater(list(dataset), otf_graph=True)
    assert batch.energy.tolist() == [-1.5, -2.5, -3.5, 2.5]
    assert batch.forces[:2].tolist() == [[0.5, 0.25, -1.0], [0.0, -4.0, 3.0]]
    assert batch.fixed.tolist() == [1, 0] * 4
    assert natoms_of(tmp_path / "out") == [2] * 4


def test_labels_of_fairchem_s_own_preprocessing_are_labels_of_test_data_too(tmp_path: Path):
    write_lmdb(tmp_path / "built" / "a.lmdb", [preprocessed(3, 0, -1.5)])
    summary = convert_oc20([str(tmp_path / "built")], tmp_path / "out", OC20Options(test_data=True))
    assert summary["notes"] == ["prebuilt files hold labels, and keep them: --test-data only allows for files without"]


def changed(record: Any, **changes: Any) -> Any:
    """A record with other fields; None takes one away."""
    for name, value in changes.items():
        if value is None:
            del record[name]
        else:
            record[name] = value
    return record


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{"forces": None}], "0: malformed record: has no force, nor forces"),
        ([{"energy": None}], "0: malformed record: has no y, nor energy"),
        ([{"y": -1.0}], "0: malformed record: has both y and energy, and fairchem cannot"),
        ([{"forces": torch.zeros(3, 3)}], r"forces has shape \(3, 3\) instead of \(2, 3\)"),
        ([{"energy": float("nan")}], "0: not finite: energy holds NaN"),
        (
            [{}, {"energy": None, "y": -1.0}],
            "1: malformed record: cannot share a batch with the first record: only the first has energy; only the "
            "second has y",
        ),
    ],
)
def test_faults_of_labels_under_either_name_are_told(tmp_path: Path, changes: list[dict[str, Any]], message: str):
    records = [changed(preprocessed(1, fid, -1.0), **change) for fid, change in enumerate(changes)]
    write_lmdb(tmp_path / "built" / "a.lmdb", records)
    with pytest.raises(DataError, match=rf"(?s)1 prebuilt files cannot be used as they are.*a\.lmdb:.*{message}"):
        convert_oc20([str(tmp_path / "built")], tmp_path / "out", OPTIONS)


def test_files_with_different_names_of_labels_are_not_mixed(tmp_path: Path):
    write_lmdb(tmp_path / "built" / "a.lmdb", [graph(1, 0, [29, 8], -1.0)])
    write_lmdb(tmp_path / "built" / "b.lmdb", [preprocessed(1, 1, -1.0)])
    with pytest.raises(DataError, match=r"a\.lmdb and .*b\.lmdb cannot be mixed.*only the first has force, y"):
        convert_oc20([str(tmp_path / "built")], tmp_path / "out", OPTIONS)


def test_across_file_systems_links_are_symbolic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_lmdb(tmp_path / "prebuilt" / "a.lmdb", [graph(1, 0, [29, 8], -1.0)])

    def refuse(*_: Any) -> None:
        raise OSError("another device")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    convert_oc20([str(tmp_path / "prebuilt")], tmp_path / "symbolic", OPTIONS)
    assert (tmp_path / "symbolic" / "data.0000.lmdb").is_symlink()
    assert len(opened(tmp_path / "symbolic")) == 1
    monkeypatch.setattr(Path, "symlink_to", refuse)
    convert_oc20([str(tmp_path / "prebuilt")], tmp_path / "copied", OPTIONS)
    assert len(opened(tmp_path / "copied")) == 1


def test_raw_files_need_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where hard links are refused, nothing that was published may lead into the folder of unfinished work."""

    def refuse(*_: Any) -> None:
        raise OSError("not permitted")

    write_simple(tmp_path / "raw", "0", sid=5)
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out" / "data.0000.lmdb").is_symlink()
    assert len(opened(tmp_path / "out")) == 3


@pytest.mark.parametrize("beside", [[], ["raw"]])
def test_total_energies_are_refused_beside_prebuilt_files(tmp_path: Path, beside: list[str]):
    write_simple(tmp_path / "raw", "0", sid=5)
    write_lmdb(tmp_path / "built" / "a.lmdb", [graph(1, 0, [29, 8], -1.0, pbc=torch.ones(3, dtype=torch.bool))])
    inputs = [str(tmp_path / name) for name in [*beside, "built"]]
    with pytest.raises(DataError, match=r"--total-energies is about raw frames, and .*a\.lmdb is prebuilt"):
        convert_oc20(inputs, tmp_path / "out", OC20Options(total_energies=True))
    assert not (tmp_path / "out").exists()


def test_labels_that_prebuilt_test_data_keep_are_named(tmp_path: Path):
    write_lmdb(tmp_path / "with" / "a.lmdb", [graph(1, 0, [29, 8], -1.0)])
    write_lmdb(tmp_path / "without" / "a.lmdb", [graph(1, 0, [29, 8], None)])
    notes = {
        name: convert_oc20([str(tmp_path / name)], tmp_path / f"{name}_out", OC20Options(test_data=True))["notes"]
        for name in ("with", "without")
    }
    assert notes == {
        "with": ["prebuilt files hold labels, and keep them: --test-data only allows for files without"],
        "without": [],
    }


def test_faulty_prebuilt_files_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_lmdb(tmp_path / "prebuilt" / "a.lmdb", [GOOD])
    with monkeypatch.context() as patched, pytest.raises(DataError, match="1 prebuilt files cannot be used"):
        patched.setattr(prebuilt, "decode_record", lambda _: {})
        convert_oc20([str(tmp_path / "prebuilt")], tmp_path / "out", OPTIONS)
    assert convert_oc20([str(tmp_path / "prebuilt")], tmp_path / "out", OPTIONS)["usable"] == 1


def test_the_way_to_the_input_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_simple(tmp_path / "raw", "0", sid=5)
    first = convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OPTIONS)
    monkeypatch.chdir(tmp_path)
    assert convert_oc20(["raw/../raw"], Path("out"), OPTIONS) == first


@pytest.mark.parametrize("published", ["right", "wrong", "broken"])
def test_published_metadata_is_kept_where_it_is_right(tmp_path: Path, published: str):
    prebuilt = tmp_path / "prebuilt"
    write_lmdb(prebuilt / "a.lmdb", [graph(1, 0, [29, 29, 8], -1.0), graph(1, 1, [29, 8], -2.0)])
    if published == "broken":
        (prebuilt / "metadata.npz").write_bytes(b"PK")
    else:
        np.savez(prebuilt / "metadata.npz", natoms=[3, 2] if published == "right" else [2, 3], neighbors=[9, 9])
    summary = convert_oc20([str(prebuilt)], tmp_path / "out", OPTIONS)
    with np.load(tmp_path / "out" / "metadata.npz") as saved:
        assert saved["natoms"].tolist() == [3, 2]
        assert ("neighbors" in saved.files) == (published == "right")
    assert any("metadata.npz does not fit" in note for note in summary["notes"]) == (published != "right")


def test_several_folders_become_one_split(tmp_path: Path):
    for name, sid in (("all", 1), ("md", 2)):
        write_lmdb(tmp_path / name / "data.0000.lmdb", [graph(sid, 0, [29] * (sid + 1), -1.0 * sid)])
    write_lmdb(tmp_path / "md" / "data.0001.lmdb", [graph(1, 0, [8, 8], -9.0)])
    summary = convert_oc20([str(tmp_path / "all"), str(tmp_path / "md")], tmp_path / "out", OPTIONS)
    assert [data.energy for data in opened(tmp_path / "out")] == [-1, -2, -9]
    assert natoms_of(tmp_path / "out") == [2, 3, 2]
    assert any("1 frames have the sid and fid of an earlier one" in note for note in summary["notes"])


def test_raw_and_prebuilt_rows_that_cannot_share_a_batch_are_refused(tmp_path: Path):
    write_simple(tmp_path / "raw", "0", sid=5)
    write_lmdb(tmp_path / "built" / "a.lmdb", [graph(1, 0, [29, 8], -1.0)])
    with pytest.raises(DataError, match=r"0\.extxyz\.xz and .*a\.lmdb cannot be mixed.*only the first has pbc"):
        convert_oc20([str(tmp_path / "raw"), str(tmp_path / "built")], tmp_path / "out", OPTIONS)
    write_lmdb(tmp_path / "with_pbc" / "a.lmdb", [graph(1, 0, [29, 8], -1.0, pbc=torch.ones(3, dtype=torch.bool))])
    convert_oc20([str(tmp_path / "raw"), str(tmp_path / "with_pbc")], tmp_path / "out", OPTIONS)
    assert [data.energy for data in opened(tmp_path / "out")] == [-1.5, -2.5, -3.5, -1.0]


GOOD = graph(1, 0, [29, 8], -1.0)


@pytest.mark.parametrize(
    ("records", "length", "message"),
    [
        ([GOOD, None, GOOD], -1, r"a\.lmdb:0: malformed record: the key length says 3, and there are 2 other keys"),
        ([GOOD], 5, "the key length says 5, and there are 1 other keys"),
        ([GOOD, None, GOOD], None, r"a\.lmdb:1: malformed record: there is no key 1"),
        ([GOOD, b"garbage"], -1, r"a\.lmdb:1: malformed record: UnpicklingError"),
        ([GOOD, 7], -1, r"a\.lmdb:1: malformed record: an object of type int"),
        ([graph(1, 0, [29, 8], None)], -1, r"a\.lmdb:0: malformed record: has no y, force"),
        ([graph(1, 0, [29, 8], -1.0, natoms=3)], -1, "natoms is 3, and there are 2 atomic numbers"),
        ([graph(1, 0, [29, 8], float("nan"))], -1, r"a\.lmdb:0: not finite: energy holds NaN"),
        ([graph(1, 0, [29, 8], -1.0, force=torch.zeros(3, 2))], -1, r"force has shape \(3, 2\) instead of \(2, 3\)"),
        ([GOOD, graph(1, 1, [29, 8], -1.0, extra=1)], -1, "cannot share a batch.*only the second has extra"),
        ([graph(1, 0, [29, 119], -1.0)], -1, "unknown element: atom 1 has atomic number 119"),
    ],
)
def test_faults_of_prebuilt_files_stop_the_command_by_name(
    tmp_path: Path, records: list[Any], length: int | None, message: str
):
    write_lmdb(tmp_path / "prebuilt" / "a.lmdb", records, length=length)
    with pytest.raises(DataError, match=rf"(?s)1 prebuilt files cannot be used as they are.*{message}"):
        convert_oc20([str(tmp_path / "prebuilt")], tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out" / "metadata.npz").exists()


def test_a_file_that_was_cut_off_does_not_kill_the_process(tmp_path: Path):
    path = tmp_path / "prebuilt" / "a.lmdb"
    write_lmdb(path, [graph(1, k, [29] * 200, -1.0) for k in range(40)])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"cut off: {len(content) // 2} of \d+ bytes"):
        convert_oc20([str(path.parent)], tmp_path / "out", OPTIONS)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.lmdb:0: unreadable file"):
        convert_oc20([str(path.parent)], tmp_path / "out", OPTIONS)
    write_lmdb(path.with_name("b.lmdb"), [GOOD])
    path.unlink()
    assert convert_oc20([str(path.parent)], tmp_path / "out", OPTIONS)["usable"] == 1


def test_a_missing_length_is_remarked_upon(tmp_path: Path):
    write_lmdb(tmp_path / "prebuilt" / "a.lmdb", [GOOD], length=None)
    summary = convert_oc20([str(tmp_path / "prebuilt")], tmp_path / "out", OPTIONS)
    assert any("has no key length" in note for note in summary["notes"])
    assert len(opened(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["absent"], r"absent does not exist; give a folder of <n>\.extxyz\.xz"),
        (["raw/0.txt.xz"], "is a file; give the folder"),
        (["empty"], "holds neither"),
        (["above"], r"holds neither .*below it, .*above/split hold LMDB files"),
        (["both"], "as two folders"),
        (["out"], "OUT .*out is also an input"),
    ],
)
def test_inputs_that_make_no_sense_are_refused(
    tmp_path: Path, inputs: list[str], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for folder in ("raw", "both"):
        write_simple(tmp_path / folder, "0", sid=5)
    for folder in ("both", "above/split"):
        write_lmdb(tmp_path / folder / "a.lmdb", [GOOD])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        convert_oc20(inputs, Path("out"), OPTIONS)
    assert not (tmp_path / "out").exists()


def test_the_command_takes_every_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from escaip_fairchem.cli.main import main

    write_simple(tmp_path / "raw", "0", sid=5)
    words = ["data", "oc20", str(tmp_path / "raw"), str(tmp_path / "out"), "--workers", "1"]
    assert main([*words, "--total-energies", "--min-distance", "0.1", "--max-force", "60", "--shard-size", "9"]) == 0
    printed = capsys.readouterr()
    assert "3 structures read, 3 usable, 0 skipped" in printed.out
    assert "reading: 1 files" in printed.err
    decides = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))["decides"]
    assert decides["shard_rows"] == 9
    assert (decides["total_energies"], decides["limits"]["min_distance"], decides["limits"]["max_force"]) == (
        True,
        0.1,
        60,
    )
    assert main([*words, "--test-data"]) == 2
    assert "total_energies: true there, false now" in capsys.readouterr().err
