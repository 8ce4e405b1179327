"""Faults of the machine are told apart from those of the data: they cost no structure, and the same command goes on."""

from __future__ import annotations

import errno
import gzip
import lzma
import os
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from oc_files import graph, write_lmdb, write_simple

from escaip_fairchem.data import oc20_raw, prebuilt, row_files, sources, staging, writer
from escaip_fairchem.data.convert import convert
from escaip_fairchem.data.faults import MachineFaultError, is_of_machine
from escaip_fairchem.data.oc20 import OC20Options, convert_oc20
from escaip_fairchem.data.options import ConvertOptions
from escaip_fairchem.data.splits import SplitOptions
from escaip_fairchem.errors import DataError

OPTIONS = ConvertOptions(split=SplitOptions(parts=(1.0,)))
GOES_ON = r"cannot be read now.*the same command again, and it goes on"


def system(code: int) -> OSError:
    return OSError(code, os.strerror(code))


@pytest.mark.parametrize(
    ("error", "of_machine"),
    [
        (system(errno.EIO), True),
        (system(errno.EMFILE), True),
        (system(errno.ENOENT), False),  # about another file: this one is there
        (PermissionError(errno.EACCES, "denied"), True),
        (MemoryError(), True),
        (lmdb.MemoryError("a.lmdb: Cannot allocate memory"), True),
        (lmdb.Error("a.lmdb: Too many open files"), True),
        (lmdb.Error("a.lmdb: No such file or directory"), False),
        (lmdb.CorruptedError("a.lmdb: MDB_CORRUPTED"), False),
        (gzip.BadGzipFile("Not a gzipped file"), False),
        (OSError("Invalid data stream"), False),
        (lzma.LZMAError("Corrupt input data"), False),
        (EOFError("Compressed file ended"), False),
        (ValueError("what"), False),
    ],
)
def test_errors_are_told_apart(tmp_path: Path, error: Exception, of_machine: bool):
    (tmp_path / "file").touch()
    assert is_of_machine(error, tmp_path / "file") is of_machine


def test_a_file_that_disappears_is_no_fault_of_its_contents(tmp_path: Path):
    assert is_of_machine(FileNotFoundError(errno.ENOENT, "gone"), tmp_path / "file")


def failing(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Three structures with labels."""
    structures = []
    for number in range(3):
        atoms = Atoms("OH", positions=[[0, 0, 0], [0, 0, 1 + number / 10]])
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0 - number, forces=np.zeros((2, 3)))
        structures.append(atoms)
    import ase.io

    ase.io.write(tmp_path / "a.extxyz", structures)
    return tmp_path / "a.extxyz"


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [
        (sources, "index_frames", system(errno.EMFILE)),
        (sources, "read_frames", system(errno.EIO)),
        (sources, "_parse_xyz", MemoryError()),
        (staging, "to_structure", MemoryError()),
    ],
)
def test_a_conversion_stops_and_goes_on(
    tmp_path: Path, frames: Path, module: Any, name: str, error: Exception, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched, pytest.raises(MachineFaultError, match=rf"a\.extxyz {GOES_ON}"):
        patched.setattr(module, name, failing(error))
        convert([str(frames)], tmp_path / "out", OPTIONS)
    assert not list((tmp_path / "out").rglob("*.npz"))
    assert convert([str(frames)], tmp_path / "out", OPTIONS)["usable"] == 3


def test_a_broken_archive_is_a_fault_of_the_data(tmp_path: Path, frames: Path):
    (tmp_path / "b.extxyz.gz").write_bytes(gzip.compress(frames.read_bytes())[:40])
    summary = convert([str(frames), str(tmp_path / "b.extxyz.gz")], tmp_path / "out", OPTIONS)
    assert summary["skipped_by_reason"] == {"unreadable file": 1}


@pytest.mark.parametrize(
    ("name", "error", "file"),
    [
        ("open_with_compression", system(errno.EIO), "0.txt.xz"),
        ("to_structure", MemoryError(), "0.extxyz.xz"),
        ("read_chunk", None, "0.extxyz.xz"),
    ],
)
def test_raw_files_of_oc20_are_read_again(
    tmp_path: Path, name: str, error: Exception | None, file: str, monkeypatch: pytest.MonkeyPatch
):
    write_simple(tmp_path / "raw", "0", sid=5)
    with monkeypatch.context() as patched, pytest.raises(MachineFaultError, match=rf"{file} {GOES_ON}"):
        if error is None:
            patched.setattr(sources, "read_frames", failing(system(errno.EIO)))
        else:
            patched.setattr(oc20_raw, name, failing(error))
        convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OC20Options())
    assert not list((tmp_path / "out" / ".partial").rglob("shard*.npz"))
    assert convert_oc20([str(tmp_path / "raw")], tmp_path / "out", OC20Options())["usable"] == 3


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("_open", lmdb.Error("a.lmdb: Too many open files")),
        ("cut_off", system(errno.EMFILE)),
        ("decode_record", MemoryError()),
    ],
)
def test_prebuilt_files_are_read_again(tmp_path: Path, name: str, error: Exception, monkeypatch: pytest.MonkeyPatch):
    write_lmdb(tmp_path / "prebuilt" / "a.lmdb", [graph(1, 0, [29, 8], -1.0)])
    with monkeypatch.context() as patched, pytest.raises(MachineFaultError, match=rf"a\.lmdb {GOES_ON}"):
        patched.setattr(prebuilt, name, failing(error))
        convert_oc20([str(tmp_path / "prebuilt")], tmp_path / "out", OC20Options())
    assert convert_oc20([str(tmp_path / "prebuilt")], tmp_path / "out", OC20Options())["usable"] == 1


FULL = r"cannot be written .*No space left on device.*Make room there"


def on_a_full_disk(path: Path) -> Path:
    """Let what is written under a name, before the file is complete, go to a device that is always full."""
    path.with_name(path.name + ".tmp").symlink_to("/dev/full")
    return path


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # numpy's archive cannot be closed
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=rf"a\.npz {FULL}"):
        writer.save_npz(on_a_full_disk(tmp_path / "a.npz"), numbers=np.arange(100_000))
    with pytest.raises(DataError, match=rf"a\.txt {FULL}"):
        writer.save_text(on_a_full_disk(tmp_path / "a.txt"), "text")
    with pytest.raises(DataError, match=rf"a\.rows {FULL}"):
        row_files.write_rows(on_a_full_disk(tmp_path / "a.rows"), [b"row"] * 100_000)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".tmp"]


def test_a_full_disk_under_an_lmdb_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Full:
        """An LMDB environment whose disk has room for no page."""

        begin = staticmethod(failing(lmdb.DiskError("mdb_txn_commit: No space left on device")))
        __enter__ = __exit__ = lambda *_: None

    monkeypatch.setattr(writer.lmdb, "open", lambda *_, **__: Full())
    with pytest.raises(DataError, match=rf"a\.lmdb {FULL}"):
        writer.write_shard(tmp_path / "a.lmdb", [b"row"], "lmdb")
    monkeypatch.setattr(writer.lmdb, "open", failing(lmdb.DiskError("a.lmdb.tmp: No space left on device")))
    with pytest.raises(DataError, match=rf"a\.lmdb {FULL}"):
        writer.write_shard(tmp_path / "a.lmdb", [b"row"], "lmdb")


def test_rows_are_read_as_they_were_written_and_a_file_cut_off_is_refused(tmp_path: Path):
    rows = [b"", b"one", bytes(range(256)) * 300]
    path = tmp_path / "a.rows"
    assert row_files.write_rows(path, iter(rows)) == 3
    assert list(row_files.read_rows(path)) == rows
    content = path.read_bytes()
    for length in (len(content) - 1, 13, 9):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"a\.rows was cut off"):
            list(row_files.read_rows(path))
