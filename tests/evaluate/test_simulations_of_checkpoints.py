"""Simulations with checkpoints, which take fairchem; those with other potentials are beside this."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from simulation_cases import ase_path, crystals, evaluate, frames_of, molecule, pool_paths, without_seconds

from escaip_fairchem.evaluate.langevin import LangevinOptions, frame_type
from escaip_fairchem.evaluate.potentials import evaluate_each
from escaip_fairchem.evaluate.relaxation_table import LINES, read_table
from escaip_fairchem.plugin.calculator import OCPCalculator
from escaip_fairchem.plugin.potential import CheckpointPotential
from escaip_fairchem.plugin.random_checkpoint import save_random_checkpoint
from escaip_fairchem.testing import TINY


def test_every_step_is_ases_with_a_network(tmp_path: Path) -> None:
    path = save_random_checkpoint({**TINY, "energy_reduce": "sum"}, tmp_path / "tiny.pt", seed=3, stress=True)
    potential = CheckpointPotential(path)
    assert potential.has_stress
    structures = crystals(4)[1::2]
    together, _ = pool_paths(structures, potential, cell=True, fmax=1e-6, steps=6)
    for atoms, path_together in zip(structures, together, strict=True):
        theirs = ase_path(atoms, cell=True, fmax=1e-6, calculator=potential.calculator, steps=6)
        assert len(theirs) == len(path_together) == 7
        for ours, expected in zip(path_together, theirs, strict=True):
            np.testing.assert_allclose(ours.positions, expected.positions, rtol=0, atol=1e-6)
            np.testing.assert_allclose(ours.cell.array, expected.cell.array, rtol=0, atol=1e-6)
        assert np.abs(theirs[0].cell.array - theirs[-1].cell.array).max() > 1e-4, "it did move"


def test_the_command_relaxes_with_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ase.io.write(tmp_path / "in.extxyz", crystals(3))
    save_random_checkpoint(TINY, tmp_path / "direct.pt", seed=0)
    save_random_checkpoint(TINY, tmp_path / "stress.pt", seed=0, stress=True)
    words = ("in.extxyz", "out", "--steps", "2", "--fmax", "1e-9")
    words = tuple(str(tmp_path / word) if word in ("in.extxyz", "out") else word for word in words)
    assert evaluate("relax", tmp_path / "direct.pt", *words) == 2
    assert "no stress" in capsys.readouterr().err
    assert evaluate("relax", tmp_path / "direct.pt", *words, "--no-cell", "--overwrite") == 0
    assert "3 structures, 0 converged, 3 not converged, 0 failed" in capsys.readouterr().out
    assert evaluate("relax", tmp_path / "stress.pt", *words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert evaluate("relax", tmp_path / "stress.pt", *words, "--overwrite") == 0
    assert [row["n_steps"] for row in read_table(tmp_path / "out" / LINES, {})] == [2, 2, 2]
    (tmp_path / "elements.yml").write_text("{Cu: -1.0, Ag: -2.0, Au: -3.0}")
    elements = ("--element-references", tmp_path / "elements.yml", "--model-name", "tiny")
    before = [row["energy_per_atom"] for row in read_table(tmp_path / "out" / LINES, {})]
    assert evaluate("relax", tmp_path / "stress.pt", *words, *elements) == 0, "only a column more"
    assert "written anew" in capsys.readouterr().err
    lines = [json.loads(line) for line in gzip.decompress((tmp_path / "out" / LINES).read_bytes()).splitlines()]
    found = [line["e_form_per_atom_tiny"] for line in lines]
    assert found == pytest.approx([before[0] + 1.0, before[1] + 2.0, before[2] + 3.0])
    assert evaluate("relax", tmp_path / "absent.pt", *words) == 2
    assert "no such checkpoint" in capsys.readouterr().err


def test_a_model_names_one_bad_structure_of_a_batch(tmp_path: Path) -> None:
    potential = CheckpointPotential(save_random_checkpoint(TINY, tmp_path / "tiny.pt", seed=0))
    structures = crystals(3)
    structures[1].numbers[:] = 118  # more than the model has
    found = evaluate_each(potential, structures)
    assert isinstance(found[1], str)
    for row in (0, 2):
        alone = potential.evaluate([structures[row]])[0]
        together = found[row]
        assert not isinstance(together, str)
        np.testing.assert_allclose(together.forces, alone.forces, atol=1e-5)
        assert together.energy == pytest.approx(alone.energy, abs=1e-5)


def test_a_run_with_a_network_goes_on_the_same(tmp_path: Path) -> None:
    path = save_random_checkpoint({**TINY, "use_pbc": False}, tmp_path / "tiny.pt", seed=0)
    options = LangevinOptions(steps=20, every=5, friction=20.0)
    whole = frames_of(tmp_path / "whole", options, calculator=OCPCalculator(checkpoint_path=path))
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[: 2 * frame_type(5).itemsize])
    again = frames_of(tmp_path / "cut", options, calculator=OCPCalculator(checkpoint_path=path))
    assert without_seconds(again) == without_seconds(whole)


def test_the_command_runs_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_random_checkpoint({**TINY, "use_pbc": False}, tmp_path / "tiny.pt", seed=0)
    start = tmp_path / "start.xyz"
    ase.io.write(start, molecule(), format="extxyz")
    words = ("dynamics", path, start, tmp_path / "out", "--steps", "4", "--every", "2", "--reference", start)
    assert evaluate(*words) == 0
    printed = capsys.readouterr().out
    assert "h(r) against 1 reference frames" in printed
    assert "steps/s" in printed
    assert json.loads((tmp_path / "out/summary.json").read_text())["runs"][0]["steps"] == 4
