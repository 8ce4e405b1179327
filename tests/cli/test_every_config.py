"""Every shipped configuration trains, validates, saves and opens in ``OCPCalculator``, on its benchmark's format.

Configurations are found by looking for them, so none escapes. Only sizes are overridden, on the command line, as a user
would; the data lie where the configurations say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_data import convert_everything
from config_runs import run_command

from escaip_fairchem.evaluate.curves import read_curves
from escaip_fairchem.plugin.info import read_config

pytestmark = [pytest.mark.end_to_end]

FOLDER = Path(__file__).parents[2] / "configs"
NAMES = [
    path.relative_to(FOLDER).with_suffix("").as_posix()
    for path in sorted(FOLDER.rglob("*.yml"))
    if not path.name.startswith("base") and FOLDER / "base" not in path.parents
]
SIZES: dict[str, dict[str, int]] = {
    "escaip": {
        "hidden_size": 8, "num_layers": 1, "atten_num_heads": 2, "edge_distance_expansion_size": 8,
        "edge_distance_embedding_size": 8, "node_direction_embedding_size": 4, "atom_embedding_size": 4,
    },
    "equiformer": {
        "num_layers": 1, "sphere_channels": 4, "attn_hidden_channels": 4, "num_heads": 2, "attn_alpha_channels": 4,
        "attn_value_channels": 4, "ffn_hidden_channels": 4, "edge_channels": 4, "max_neighbors": 8,
    },
}  # fmt: skip
TRAINING = {"batch_size": 2, "eval_batch_size": 2, "max_epochs": 1, "num_workers": 0, "eval_every": 1}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data of all benchmarks."""
    folder = tmp_path_factory.mktemp("benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        convert_everything(folder)
    return folder


def calculate(folder: Path) -> dict[str, Any]:
    """What ``OCPCalculator`` says about a structure, from the checkpoint of the run."""
    import ase.build

    from escaip_fairchem import OCPCalculator

    (checkpoint,) = folder.glob("runs/*/checkpoints/*/best_checkpoint.pt")
    calculator = OCPCalculator(checkpoint_path=checkpoint, cpu=True)
    atoms = ase.build.fcc111("Cu", (2, 2, 3), vacuum=6.0)
    atoms.pbc = True
    atoms.calc = calculator
    found = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if "stress" in calculator.implemented_properties:
        found["stress"] = atoms.get_stress()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name: str, workspace: Path, tmp_path: Path) -> None:
    config = read_config(FOLDER / f"{name}.yml")
    kind = "equiformer" if "equiformer" in name else "escaip"
    overrides = [f"model.backbone.{key}={value}" for key, value in SIZES[kind].items()]
    overrides += [f"optim.{key}={value}" for key, value in TRAINING.items()]
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
    result = run_command("fairchem", [*words, "--timestamp-id", "run", *overrides], tmp_path, calculate)
    assert result.status == 0, result.text[-4000:]

    curves = read_curves(tmp_path / "runs/run/logs/tensorboard/run")
    assert np.isfinite(list(curves["train/loss"].values())).all()
    for metric in ("energy_mae", "forces_mae"):
        assert np.isfinite(list(curves[f"val/{metric}"].values())).all()
    assert np.isfinite(result.value["energy"])
    assert result.value["forces"].shape == (12, 3)
    assert np.isfinite(result.value["forces"]).all()
    if "stress" in config["outputs"]:
        assert np.isfinite(list(curves["val/stress_mae"].values())).all()
        assert np.isfinite(result.value["stress"]).all()
    if kind == "escaip" and "conservative" not in name:
        assert np.abs(result.value["forces"]).max() > 0
