"""Every shipped configuration trains, validates, saves and opens in ``OCPCalculator``, on its benchmark's format.

Configurations are found by looking for them, so none escapes. Only sizes are overridden, on the command line, as a user
would; the data lie where the configurations say.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_data import FRAMES, convert_everything
from config_runs import run_command

from escaip_fairchem.cli.config_files import is_configuration
from escaip_fairchem.evaluate.curves import read_curves
from escaip_fairchem.plugin.info import read_config

pytestmark = [pytest.mark.end_to_end]

FOLDER = Path(__file__).parents[2] / "configs"
NAMES = [
    path.relative_to(FOLDER).with_suffix("").as_posix()
    for path in sorted(FOLDER.rglob("*.yml"))
    if not path.name.startswith("base") and FOLDER / "base" not in path.parents and is_configuration(path)
]
SIZES: dict[str, dict[str, Any]] = {
    "escaip": {
        "hidden_size": 8, "num_layers": 1, "atten_num_heads": 2, "edge_distance_expansion_size": 8,
        "edge_distance_embedding_size": 8, "node_direction_embedding_size": 4, "atom_embedding_size": 4,
    },
    "equiformer": {
        "num_layers": 1, "sphere_channels": 4, "attn_hidden_channels": 4, "num_heads": 2, "attn_alpha_channels": 4,
        "attn_value_channels": 4, "ffn_hidden_channels": 4, "edge_channels": 4, "max_neighbors": 8,
        "lmax_list": [1], "mmax_list": [1],
    },
}  # fmt: skip
"""Degrees are sizes, too: matrices of L = 8 take half a minute. The invariant model keeps its own, which is 0."""
TRAINING = {"batch_size": 2, "eval_batch_size": 2, "max_epochs": 1, "num_workers": 0}


def smaller(name: str) -> list[str]:
    """What makes a configuration small: words for its command, found by its name or the command itself."""
    sizes = dict(SIZES["equiformer" if "equiformer" in name else "escaip"])
    if "equiformer_v2_l0" in name:
        del sizes["lmax_list"], sizes["mmax_list"]
    batch = {"batch_size": 16} if "md22" in name else {}  # every structure comes 16 times
    overrides = [f"model.backbone.{key}={value}" for key, value in sizes.items()]
    return overrides + [f"optim.{key}={value}" for key, value in {**TRAINING, **batch}.items()]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data of all benchmarks."""
    folder = tmp_path_factory.mktemp("benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        convert_everything(folder)
    return folder


def inspect_run(folder: Path) -> dict[str, Any]:
    """What the checkpoints of the run hold, and what ``OCPCalculator`` says with the best one about a rattled slab."""
    import ase.build

    from escaip_fairchem import OCPCalculator
    from escaip_fairchem.plugin.checkpoints import read_checkpoint

    checkpoints = folder / "runs/run/checkpoints/run"
    calculator = OCPCalculator(checkpoint_path=checkpoints / "best_checkpoint.pt", cpu=True)
    atoms = ase.build.fcc111("Cu", (2, 2, 3), vacuum=6.0)
    atoms.pbc = True
    atoms.rattle(0.1, seed=1)  # in a perfect slab, symmetry makes forces zero
    atoms.calc = calculator
    found = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if "stress" in calculator.implemented_properties:
        found["stress"] = atoms.get_stress()
    latest = read_checkpoint(checkpoints / "checkpoint.pt")
    return found | {"step": latest["step"], "structures": latest["escaip_training"]["structures"]}


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name: str, workspace: Path, tmp_path: Path) -> None:
    config = read_config(FOLDER / f"{name}.yml")
    (tmp_path / "data").symlink_to(workspace / "data")
    words = [
        "main",
        "--config-yml",
        str(FOLDER / f"{name}.yml"),
        "--cpu",
        "--print-every",
        "1",
        "--run-dir",
        "runs/run",
    ]
    result = run_command("fairchem", [*words, "--timestamp-id", "run", *smaller(name)], tmp_path, inspect_run)
    assert result.status == 0, result.text[-4000:]

    curves = read_curves(tmp_path / "runs/run/logs/tensorboard/run")
    assert np.isfinite(list(curves["train/loss"].values())).all()
    for metric in ("energy_mae", "forces_mae"):
        assert np.isfinite(list(curves[f"val/{metric}"].values())).all()
    energy, forces = result.value["energy"], result.value["forces"]
    assert np.isfinite(energy)
    assert forces.shape == (12, 3)
    assert np.isfinite(forces).all()
    assert np.abs(forces).max() > 0
    if "stress" in config["outputs"]:
        assert np.isfinite(list(curves["val/stress_mae"].values())).all()
        assert np.isfinite(result.value["stress"]).all()
    if "oc22" in name:  # the labels are total energies of about -30 eV per atom, which references bring back
        assert energy == pytest.approx(-30.0 * 12, rel=0.15)

    train = config["dataset"]["train"]
    with np.load(workspace / train["src"] / "metadata.npz") as saved:
        there = len(saved["natoms"])
    used = round(train.get("fraction", 1.0) * there)
    assert result.value["structures"] == used
    copies = train.get("rotations", {}).get("copies", 1)
    batch = 16 if "md22" in name else TRAINING["batch_size"]
    assert result.value["step"] == math.ceil(used * copies / batch)
    if "fraction" in train:
        assert there == FRAMES
        assert used == {0.25: 2, 0.5: 4, 0.75: 6}[train["fraction"]]
    if "md22" in name:
        assert (used, result.value["step"]) == (8, 8)
