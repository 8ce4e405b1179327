"""What the tables of many GPUs count, against numbers worked out by hand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from escaip_fairchem.bench.scaling import (
    Imbalance,
    Loader,
    ScalingOptions,
    Training,
    divide_evenly,
    limit_tables,
    read_training,
    simulate_imbalance,
    time_table,
)
from escaip_fairchem.cli.main import main
from escaip_fairchem.errors import ConfigError, DataError

LARGE = Path(__file__).parents[2] / "configs" / "oc20" / "escaip_all_md_large.yml"
TRAINING = Training(
    parameters=250_000_000, flops_per_atom=1e10, batch_size=10, epochs=2, structures=1_600_000, sizes=[50, 150]
)
"""A step of 10 x 100 atoms takes 10 TFLOP; gradients take 1 GB."""
LOADER = Loader(read=800.0, searched=200.0, atoms=50.0, record_bytes=5_000.0)
OPTIONS = ScalingOptions(config=LARGE, gpus=(16,), teraflops=(100.0,), node_gigabytes=(10.0,), workers=(2,))


def test_a_row_of_times_by_hand() -> None:
    table = time_table(TRAINING, LOADER, {16: Imbalance(drawn=1.5, balanced=1.25)}, OPTIONS)
    (row,) = table.rows
    assert row["step, ms"] == pytest.approx(125.0)  # 10 TFLOP at 100 TFLOP/s, of the process with a quarter more
    assert row["structures/s per GPU"] == pytest.approx(80.0)
    assert row["workers per GPU"] == 1  # 200 of half the atoms per second are 100 of these
    assert row["read, MB/s in all"] == pytest.approx(16 * 80 * 5_000 / 1e6)
    # Two nodes send half of the gradients twice: 1 GB, in two thirds of 125 ms.
    assert row["GB/s per node to hide the exchange"] == pytest.approx(12.0)
    assert row["GPU-hours"] == pytest.approx(16 * 2 * 10_000 * 0.125 / 3600)
    assert row["days"] == pytest.approx(2 * 10_000 * 0.125 / 86400)


def test_limits_by_hand() -> None:
    loaders, links = limit_tables(TRAINING, LOADER, OPTIONS)
    (row,) = loaders.rows
    assert row["structures/s"] == pytest.approx(200.0)
    assert row["GPU waits from, TFLOP/s"] == pytest.approx(200.0)  # 1 TFLOP each
    assert row["without a search, TFLOP/s"] == pytest.approx(800.0)
    (row,) = links.rows
    assert row["exchange, ms"] == pytest.approx(100.0)
    # Hidden while two thirds of a step take 100 ms: 10 TFLOP in 150 ms.
    assert row["GPU waits from, TFLOP/s"] == pytest.approx(10 / 0.15)
    assert row["with twice the batch, TFLOP/s"] == pytest.approx(20 / 0.15)


def test_at_the_limits_the_tables_agree() -> None:
    """A GPU that is as fast as the links allow needs just these links."""
    (limit,) = limit_tables(TRAINING, LOADER, OPTIONS)[1].rows
    rate = limit["GPU waits from, TFLOP/s"]
    assert isinstance(rate, float)
    options = ScalingOptions(config=LARGE, gpus=(16,), teraflops=(rate,))
    (row,) = time_table(TRAINING, LOADER, {16: Imbalance(drawn=1.0, balanced=1.0)}, options).rows
    assert row["GB/s per node to hide the exchange"] == pytest.approx(10.0)


def test_one_node_exchanges_nothing_with_others() -> None:
    options = ScalingOptions(config=LARGE, gpus=(8,))
    assert TRAINING.exchanged_bytes(1) == 0
    assert [table.title for table in limit_tables(TRAINING, LOADER, options)] == ["Where the loaders become the limit"]


def test_structures_are_divided_as_fairchem_divides_them() -> None:
    from fairchem.core.common.data_parallel import _balanced_partition

    sizes = np.random.default_rng(0).integers(20, 220, 96)
    theirs = [sizes[rows].sum() for rows in _balanced_partition(sizes, 12)]
    assert sorted(divide_evenly(sizes.tolist(), 12)) == sorted(theirs)


def test_imbalance_is_that_of_the_sizes() -> None:
    even = Training(**{**vars(TRAINING), "sizes": [70]})
    assert simulate_imbalance(even, 4, seed=0) == Imbalance(drawn=1.0, balanced=1.0)
    found = [simulate_imbalance(TRAINING, processes, seed=0) for processes in (4, 64)]
    assert all(1.0 <= one.balanced < one.drawn for one in found)
    assert found[1].drawn > found[0].drawn  # the largest of more
    assert found[0] == simulate_imbalance(TRAINING, 4, seed=0)
    # Of 64 tens of structures of 50 or 150 atoms, the heaviest has eight or nine of the larger: 1.3 or 1.4.
    assert 1.3 < found[1].drawn < 1.5


def test_numbers_of_atoms_of_one_s_own_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "metadata.npz", natoms=np.array([10, 30]))
    training = read_training(ScalingOptions(config=LARGE, metadata=tmp_path / "metadata.npz"))
    assert training.mean_atoms == 20
    assert (training.parameters, training.batch_size, training.epochs) == (311_842_954, 8, 6)
    assert training.flops_per_atom == pytest.approx(24.54e9, rel=1e-3)  # as `escaip info` prints
    (tmp_path / "other.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"other\.npz: no metadata\.npz with an array 'natoms'"):
        read_training(ScalingOptions(config=LARGE, metadata=tmp_path / "other.npz"))


@pytest.mark.parametrize(
    ("config", "words", "message"),
    [
        ("oc20/escaip_2m.yml", ["--gpus=12"], "--gpus 12: not a multiple of 8"),
        ("oc20/escaip_2m.yml", ["--gpus-per-node=0"], "--gpus-per-node 0: must be at least 1"),
        ("oc20/escaip_2m.yml", ["--structures=0"], "--structures 0: must be at least 1"),
        ("oc22/equiformer_v2_oc22.yml", [], "not a training of one of this package's models"),
        ("spice/escaip_spice_conservative.yml", [], "forces are derivatives there"),
        ("oc20/none.yml", [], "none.yml"),
    ],
)
def test_what_cannot_be_counted(
    config: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "scaling", f"--config={LARGE.parents[1] / config}", *words, "--quick"]) == 2
    assert message in capsys.readouterr().err


def test_the_command_prints_its_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "scaling", f"--config={LARGE}", "--quick", "--teraflops=100", "--gpus=64,128"]) == 0
    said = capsys.readouterr().out
    assert re.findall(r"^## .*", said, re.MULTILINE) == [
        "## Counted and simulated",
        "## By the rate that a GPU achieves, if nothing else is a limit",
        "## Where the loaders become the limit",
        "## Where the exchange of gradients becomes the limit",
    ]
    assert "311,842,954 parameters" in said
    with pytest.raises(ConfigError, match="--gpus 4"):
        ScalingOptions(config=LARGE, gpus=(4,))
