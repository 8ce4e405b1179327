"""The path from files to forces on real structures: convert, train, open in ASE, relax."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from fairchem_runs import OURS, run

from escaip_fairchem.evaluate.curves import read_curves
from escaip_fairchem.evaluate.labels import read_labels
from escaip_fairchem.evaluate.parity import join, read_predictions

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.shared]

ROOT = Path(__file__).parents[2]

RELAX = """
import sys
import ase.io
from escaip_fairchem import OCPCalculator
from escaip_fairchem.evaluate.simulate import relax

start = ase.io.read("oxides.extxyz", 0)
relaxation = relax(start, OCPCalculator(checkpoint_path=sys.argv[1], cpu=True), fmax=0.0, max_steps=3)
assert relaxation.steps == 3
assert not relaxation.converged
assert (relaxation.path[-1].positions != start.positions).any()
"""


def test_oxides_from_extxyz_to_forces(shared: Path, tmp_path: Path):
    structures = [atoms for atoms in ase.io.read(shared / "data/oxides.extxyz", ":") if len(atoms) <= 12][:40]
    ase.io.write(tmp_path / "oxides.extxyz", structures)
    convert = ["-m", "escaip_fairchem.cli.main", "data", "convert", "oxides.extxyz", "data", "--workers", "1"]
    process = run(convert, "--split", "28", "6", "6", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    summary = json.loads((tmp_path / "data/summary.json").read_text())
    assert sum(split["structures"] for split in summary["splits"].values()) == len(structures)

    settings = yaml.safe_load((ROOT / "configs/demo/escaip_demo.yml").read_text())
    settings["dataset"] = yaml.safe_load((tmp_path / "data/dataset.yml").read_text())["dataset"]
    settings["optim"].update(batch_size=4, max_epochs=3, eval_every=21)
    settings["model"]["backbone"].update(hidden_size=16, num_layers=1, atten_num_heads=2)
    (tmp_path / "oxides.yml").write_text(yaml.safe_dump(settings))
    flags = ["main", "--config-yml", "oxides.yml", "--cpu", "--print-every", "1", "--timestamp-id", "run"]
    process = run(OURS, *flags, cwd=tmp_path)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]

    curves = read_curves(tmp_path / "logs/tensorboard/run")
    losses = list(curves["train/loss"].values())
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    parity = join(read_labels(tmp_path / "data/test"), read_predictions(tmp_path / "results/run/ocp_predictions.npz"))
    # Total energies of some −100 eV per structure: the references per element are subtracted and added back.
    assert parity.energy_mae < 0.05 * np.abs(parity.energy_label).mean()
    checkpoint = tmp_path / "checkpoints/run/best_checkpoint.pt"
    process = run(["-c", RELAX], str(checkpoint), cwd=tmp_path)
    assert process.returncode == 0, process.stderr
