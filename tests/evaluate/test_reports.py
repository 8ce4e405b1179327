"""Curves, tables, figures, and the command run in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from escaip_fairchem.errors import DataError, EScAIPError
from escaip_fairchem.evaluate.curves import last_value, read_curves
from escaip_fairchem.evaluate.launching import run_fairchem
from escaip_fairchem.evaluate.parity import Parity
from escaip_fairchem.evaluate.plots import plot_curves, plot_parity
from escaip_fairchem.evaluate.tables import Measurement, as_markdown, save_table


def test_curves_are_read_back(tmp_path: Path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(1, 2001):  # more than TensorBoard keeps by default
            writer.add_scalar("train/loss", 1.0 / step, step)
        writer.add_scalar("val/loss", 2.0, 5)
    curves = read_curves(tmp_path)
    assert len(curves["train/loss"]) == 2000
    assert last_value(curves["train/loss"]) == pytest.approx(1 / 2000)
    assert curves["val/loss"] == {5: 2.0}


def test_a_folder_without_events_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="no TensorBoard event file"):
        read_curves(tmp_path)


def test_tables_for_people_and_programs(tmp_path: Path):
    rows = [
        Measurement(part="training", name="steps", value=12000),
        Measurement(part="test", name="force MAE", value=0.123456, unit="eV/Å", note="all atoms"),
        Measurement(part="relaxation", name="converged", value=True),
    ]
    lines = as_markdown(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "12,000 " in lines[2]
    assert "| 0.1235 eV/Å |" in lines[3]
    assert "| yes " in lines[4]
    save_table(rows, tmp_path / "results")
    assert json.loads((tmp_path / "results.json").read_text())[1]["value"] == 0.123456
    assert (tmp_path / "results.md").read_text().splitlines() == lines


def test_equal_figures_are_equal_files(tmp_path: Path):
    random = np.random.default_rng(0)
    energies, forces = random.normal(size=(2, 9)), random.normal(size=(2, 30, 3))
    parity = Parity(
        energy_label=energies[0], energy_predicted=energies[1], forces_label=forces[0], forces_predicted=forces[1]
    )
    first, second = (plot_parity(parity, tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert plot_curves({"train/loss": {1: 2.0, 2: 1.0}}, tmp_path / "deep/c.png").stat().st_size > 1000


def test_a_command_that_fails_shows_its_last_words(tmp_path: Path):
    shown: list[str] = []
    with pytest.raises(EScAIPError, match=r"nowhere\.yml` ended with status 2") as caught:
        run_fairchem(["main", "--config-yml", "nowhere.yml"], tmp_path / "logs/x.log", show=shown.append)
    assert "no such configuration file" in str(caught.value)
    assert shown == ["$ fairchem main --config-yml nowhere.yml"]
    assert "no such configuration file" in (tmp_path / "logs/x.log").read_text()
