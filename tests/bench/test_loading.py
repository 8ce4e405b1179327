"""What the loader's benchmark counts, on a few structures; its rates mean nothing here."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from escaip_fairchem.bench.loading import LoadingOptions, loading_table
from escaip_fairchem.cli.main import main
from escaip_fairchem.plugin.loading_rates import measure_loading, put_out_of_cache, write_records


def record(row: int) -> dict[str, Any]:
    count = 1 + row % 3
    return {
        "pos": torch.rand(count, 3), "cell": 9 * torch.eye(3)[None], "atomic_numbers": torch.full((count,), 29.0),
        "natoms": count, "tags": torch.ones(count), "fixed": torch.zeros(count), "sid": row, "fid": 0,
    }  # fmt: skip


@pytest.mark.parametrize(("workers", "missing"), [(0, 0), (1, 4)])
def test_structures_and_atoms_are_counted(tmp_path: Path, workers: int, missing: int):
    """With workers, the first batch is waited for and not counted."""
    file = tmp_path / "data.lmdb"
    assert write_records(file, map(record, range(30))) == 30
    rate = measure_loading(file, cold=True, workers=workers, batch_size=4, seconds=60.0, search=None, seed=0)
    assert rate.structures == 30 - missing
    assert rate.structures <= rate.atoms <= 60
    assert rate.record_bytes == file.stat().st_size / 30
    assert rate.seconds > 0


def test_it_stops_when_the_time_is_over(tmp_path: Path):
    file = tmp_path / "data.lmdb"
    write_records(file, map(record, range(30)))
    rate = measure_loading(file, cold=False, workers=0, batch_size=4, seconds=0.0, search=None, seed=0)
    assert rate.structures == 4


def test_putting_a_file_out_of_the_cache_leaves_it_as_it_is(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"x" * 10_000)
    put_out_of_cache(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"x" * 10_000


def test_the_command_prints_a_row_per_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "loader", "--quick", "--workers", "0,1", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "200 made structures as OC20's" in said
    with (tmp_path / "loader.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    cases = [(row["workers"], row["cache"], row["neighbours"]) for row in rows]
    kinds = [("cold", "not searched"), ("warm", "not searched"), ("warm", "searched")]
    assert cases == [(workers, *kind) for workers in ("0", "1") for kind in kinds]
    assert all(float(row["structures/s"]) > 0 and float(row["atoms/s"]) > float(row["structures/s"]) for row in rows)


def test_files_of_one_s_own(tmp_path: Path):
    write_records(tmp_path / "data.lmdb", map(record, range(40)))
    table = loading_table(LoadingOptions(src=tmp_path / "data.lmdb", workers=[0], seconds=30.0))
    assert [row["structures"] for row in table.rows] == [40, 40, 40]
    assert str(tmp_path / "data.lmdb") in table.notes[0]
