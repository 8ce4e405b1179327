"""Trainings on data of one's own, as docs/datasets.md shows, and on LMDB files of fairchem's own preprocessing."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from benchmark_data import adsorbates, molecules
from config_runs import RunResult, run_command
from fairchem_runs import write_lmdb
from test_every_config import SIZES, TRAINING
from torch_geometric.data import Data

from escaip_fairchem.evaluate.curves import read_curves

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SECTION = re.search(
    r"^## Training on your own data$(.*?)^## ",
    (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8"),
    flags=re.MULTILINE | re.DOTALL,
)
SMALLER = [
    *("--print-every", "1"),
    *(f"model.backbone.{key}={value}" for key, value in SIZES["escaip"].items()),
    *(f"optim.{key}={value}" for key, value in {**TRAINING, "batch_size": 4, "eval_every": 100}.items()),
]


def block(language: str) -> str:
    """The only block of a language in the section."""
    assert SECTION is not None
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", SECTION[1], flags=re.MULTILINE | re.DOTALL)
    return str(found)


def in_little(command: str, folder: Path) -> RunResult:
    """Run a command on the CPU, a training with a small model for one epoch."""
    program, *words = shlex.split(command)
    return run_command(program, [*words, "--cpu", *(SMALLER if words[0] == "main" else [])], folder)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with `configs` and `data/mine`, made of slabs and molecules."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "data" / "raw").mkdir(parents=True)
    structures = [*adsorbates(12, 0), *molecules(["CH3OH"], 12, 1)["CH3OH"]]
    for atoms in structures:
        atoms.get_forces()  # what has not been computed is not written
    ase.io.write(tmp_path / "data/raw/mine.extxyz", structures)
    words = ["data", "convert", "data/raw", "data/mine", "--split", "0.6", "0.2", "0.2", "--workers", "1"]
    result = run_command("escaip", words, tmp_path)
    assert result.status == 0, result.text[-4000:]
    return tmp_path


def test_the_example_trains_and_is_evaluated(mine: Path):
    (mine / "train_mine.yml").write_text(block("yaml"), encoding="utf-8")
    assert len(block("yaml").splitlines()) <= 10
    commands = block("sh").splitlines()
    assert [command.split()[0] for command in commands] == ["fairchem", "escaip"]
    for command in commands:
        result = in_little(command, mine)
        assert result.status == 0, f"{command}\n{result.text[-4000:]}"
    curves = read_curves(mine / "runs/logs/tensorboard/mine")
    assert np.isfinite(list(curves["train/loss"].values())).all()
    assert np.isfinite(list(curves["val/forces_mae"].values())).all()
    assert "nan" not in (mine / "results/mine/metrics.csv").read_text()


def test_a_benchmark_s_configuration_cannot_be_included_beside_the_section(mine: Path):
    (mine / "both.yml").write_text("includes: [configs/oc20/escaip_2m.yml, data/mine/dataset.yml]\n", encoding="utf-8")
    result = in_little("fairchem main --config-yml both.yml", mine)
    assert result.status == 2
    assert "Conflicting (duplicate) parameters" in result.text
    assert "Traceback" not in result.text


def preprocessed(structures: list[Atoms]) -> list[Data]:
    """Records as fairchem-core 1.10's own preprocessing makes them of raw S2EF files."""
    from fairchem.core.preprocessing import AtomsToGraphs

    converter = AtomsToGraphs(r_energy=True, r_forces=True, r_fixed=True, r_edges=False)
    records = []
    for number, atoms in enumerate(structures):
        atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 0))
        data = converter.convert(atoms)
        data.tags = torch.tensor(atoms.get_tags())
        data.sid, data.fid = 7, number
        records.append(data)
    return records


def test_files_of_fairchem_s_own_preprocessing_are_trained_on_with_the_shipped_configuration(tmp_path: Path):
    for seed, (source, target) in enumerate((("train", "2M/train"), ("val", "all/val_id"))):
        (tmp_path / "built" / source).mkdir(parents=True)
        records = preprocessed(adsorbates(8, seed))
        assert {"energy", "forces"} <= set(records[0].keys())
        write_lmdb(tmp_path / "built" / source / "data.0000.lmdb", records)
        words = ["data", "oc20", f"built/{source}", f"data/oc20/s2ef/{target}", "--workers", "1"]
        result = run_command("escaip", words, tmp_path)
        assert result.status == 0, result.text[-4000:]
    for command in (
        "fairchem main --config-yml configs/oc20/escaip_2m.yml --run-dir runs --timestamp-id built",
        "escaip evaluate metrics runs/checkpoints/built/best_checkpoint.pt id=data/oc20/s2ef/all/val_id --table oc20 "
        "--out results",
    ):
        result = in_little(command, tmp_path)
        assert result.status == 0, f"{command}\n{result.text[-4000:]}"
    curves = read_curves(tmp_path / "runs/logs/tensorboard/built")
    assert np.isfinite(list(curves["train/loss"].values())).all()
    assert "nan" not in (tmp_path / "results/metrics.csv").read_text()
