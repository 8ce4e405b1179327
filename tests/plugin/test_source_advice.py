"""What a user is told whose data are not where the configuration says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from escaip_fairchem.errors import DataError
from escaip_fairchem.plugin.sources import check_atom_counts, check_source

CONFIGURATIONS = Path(__file__).parents[2] / "configs"
BENCHMARKS = sorted(path.name for path in CONFIGURATIONS.iterdir() if path.name not in ("base", "demo", "slurm"))


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_command_that_makes_a_benchmark_s_data_is_named(benchmark: str, tmp_path: Path):
    with pytest.raises(DataError, match=rf"does not exist.*`(escaip data )?{benchmark}`") as error:
        check_source("dataset.train.src", tmp_path / "data" / benchmark / "train", "lmdb")
    assert "dataset.train.src=…" in str(error.value)


def test_all_commands_that_write_numbers_of_atoms_are_named(tmp_path: Path):
    message = re.escape("`escaip data …` write it (`escaip data oc20` and `oc22` for prepared LMDB files, too)")
    with pytest.raises(DataError, match=f"metadata.npz.*{message}.*load_balancing_on_error"):
        check_atom_counts("dataset.train.src", tmp_path, None)
