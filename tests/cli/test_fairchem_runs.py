"""The command ``fairchem`` against fairchem's own, and what ``fairchem main`` adds, on real runs of a stock model."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import fairchem_runs
import numpy as np
import pytest
import yaml
from fairchem_runs import OURS, UPSTREAM, prepare, run, schnet_config

pytestmark = pytest.mark.end_to_end
LAUNCHERS_PORT = 29400


@contextlib.contextmanager
def occupied(port: int) -> Iterator[None]:
    """Somebody listens on a port: this, or whoever did already."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(socket.create_server(("", port)))
        yield


def losses(output: str) -> list[str]:
    """Losses and metrics of every training step, as logged."""
    return re.findall(r"energy_mae: \S+ forces_mae: \S+ loss: \S+ lr: \S+ epoch: \S+ step: \S+", output)


def predictions(folder: Path) -> dict[str, np.ndarray]:
    (file,) = folder.glob("results/*/ocp_predictions.npz")
    return dict(np.load(file))


@pytest.fixture(scope="module")
def upstream_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A training run with fairchem's own command."""
    folder = prepare(tmp_path_factory.mktemp("upstream"))
    process = run(UPSTREAM, "--mode=train", "--config-yml=config.yml", "--cpu", "--print-every=1", cwd=folder)
    assert process.returncode == 0, process.stderr
    return folder, process.stdout


@pytest.fixture(scope="module")
def main_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The same with ``fairchem main``, some settings given on the command line."""
    config = schnet_config()
    del config["logger"], config["optim"]["num_workers"], config["evaluation_metrics"]["primary_metric"]
    config["optim"]["lr_initial"] = 1.0
    folder = prepare(tmp_path_factory.mktemp("main"), config)
    process = run(
        OURS,
        *("main", "--config-yml", "config.yml", "--print-every", "1", "--identifier", "try"),
        *("optim.lr_initial=1e-3", "--model.cutoff=5.0"),
        cwd=folder,
    )
    assert process.returncode == 0, process.stderr
    return folder, process.stdout


def test_main_trains_as_upstream_does(upstream_run, main_run):
    assert len(losses(upstream_run[1])) == 3
    assert losses(main_run[1]) == losses(upstream_run[1])
    theirs, ours = predictions(upstream_run[0]), predictions(main_run[0])
    assert theirs.keys() == ours.keys()
    for key in theirs:
        np.testing.assert_array_equal(ours[key], theirs[key])


def test_main_says_what_it_filled_in(main_run):
    folder, output = main_run
    assert output.count("no GPU found") == 1
    assert "tensorboard is used" in output
    (run_folder,) = (folder / "checkpoints").iterdir()
    assert re.fullmatch(r"\d{4}(-\d\d){5}-try-[0-9a-f]{6}", run_folder.name)
    assert run_folder.name in output
    assert (folder / "logs" / "tensorboard" / run_folder.name).is_dir()
    assert not (folder / "wandb").exists()


def test_validation_through_both_commands(main_run, upstream_run):
    folder = upstream_run[0]
    (checkpoint,) = folder.glob("checkpoints/*/best_checkpoint.pt")
    words = ["--mode", "validate", "--config-yml", "config.yml", "--cpu", "--checkpoint", str(checkpoint)]
    results = []
    for command in (UPSTREAM, OURS):
        process = run(command, *words, cwd=folder)
        assert process.returncode == 0, process.stderr
        results.append(re.findall(r"energy_mae: [\d.]+, forces_mae: [\d.]+, loss: [\d.]+", process.stdout))
    assert len(results[0]) == 1
    assert results[0] == results[1]


def test_relaxations_run(main_run):
    folder = main_run[0]
    (checkpoint,) = folder.glob("checkpoints/*/best_checkpoint.pt")
    process = run(
        [*OURS, "main"],
        *("--mode=run-relaxations", "--config-yml=config.yml", f"--checkpoint={checkpoint}", "task.write_pos=true"),
        cwd=folder,
    )
    assert process.returncode == 0, process.stderr
    (file,) = folder.glob("results/*/relaxed_positions.npz")
    moved = np.load(file)
    started = np.concatenate([structure.pos.numpy() for structure in fairchem_runs.structures(3, seed=1)])
    assert moved["pos"].shape == started.shape
    assert 0 < np.abs(moved["pos"] - started).max() < 1


def test_help_is_upstreams():
    from fairchem.core.common.flags import flags

    import escaip_fairchem  # noqa: F401 -- lets fairchem be imported

    process = run(OURS, "--help", cwd=Path.cwd())
    assert process.returncode == 0, process.stderr
    texts = [flags.get_parser().format_help(), process.stdout]
    plain = [re.sub(r"usage: \S+", "usage: PROGRAM", " ".join(text.split())) for text in texts]
    assert "--gp-gpus" in plain[0]
    assert plain[0] == plain[1]


@pytest.mark.slow
def test_two_processes_on_one_machine(tmp_path):
    """Also where the port that torch's launcher takes by itself is another training's, or another program's."""
    folder = prepare(tmp_path)
    with occupied(LAUNCHERS_PORT):
        process = run([*OURS, "main"], "--config-yml=config.yml", "--num-gpus=2", "--print-every=1", cwd=folder)
    assert process.returncode == 0, process.stderr
    assert len(losses(process.stdout)) == 2  # 6 structures, 2 at a time, on 2 processes; the first process logs
    assert len(list((folder / "checkpoints").iterdir())) == 1


@pytest.mark.slow
def test_an_error_for_the_user_in_one_of_several_processes(tmp_path):
    config = schnet_config()
    config["trainer"] = "escaip_forces"
    config["optim"] |= {"scheduler": "LambdaLR", "scheduler_params": {"lambda_type": "cozine"}}
    process = run([*OURS, "main"], "--config-yml=config.yml", "--num-gpus=2", cwd=prepare(tmp_path, config))
    assert process.returncode == 2, process.stderr
    assert "cozine" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.slow
def test_a_sweep_runs_every_combination(tmp_path):
    folder = prepare(tmp_path)
    (folder / "sweep.yml").write_text(yaml.safe_dump({"optim": {"lr_initial": [0.001, 0.01]}}))
    process = run([*OURS, "main"], "--config-yml=config.yml", "--sweep-yml=sweep.yml", "--identifier=s", cwd=folder)
    assert process.returncode == 0, process.stderr
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["s-sweep-lr_initial=0.001", "s-sweep-lr_initial=0.01"]
    again = run([*OURS, "main"], "--config-yml=config.yml", "--sweep-yml=sweep.yml", "--identifier=s", cwd=folder)
    assert again.returncode == 2
    assert "holds checkpoint.pt of an earlier run" in again.stderr


def test_missing_data_is_one_message_and_status_2(tmp_path):
    prepare(tmp_path)
    process = run([*OURS, "main"], "--config-yml=config.yml", "dataset.val.src=data/none.lmdb", cwd=tmp_path)
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert line.startswith("fairchem main: error: dataset.val.src: data/none.lmdb does not exist")
    assert "escaip data demo" in line
    assert "dataset.val.src=" in line
    assert not (tmp_path / "checkpoints").exists()
