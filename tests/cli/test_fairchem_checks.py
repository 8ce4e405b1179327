"""What ``fairchem main`` refuses before anything is built, and what it fills in."""

from __future__ import annotations

import copy
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairchem_runs import prepare, schnet_config

from escaip_fairchem.errors import CheckpointError, ConfigError, DataError, EScAIPError, RunFolderError
from escaip_fairchem.plugin.launch import known_keys, main
from escaip_fairchem.plugin.launch.checks import check_config, check_folder
from escaip_fairchem.plugin.launch.overrides import apply_overrides
from escaip_fairchem.plugin.launch.submission import cluster_request


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("run"))


@pytest.fixture
def config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    return {**schnet_config(), "mode": "train", "identifier": "", "checkpoint": None}


def test_a_good_configuration_passes_unchanged(config):
    before = copy.deepcopy(config)
    check_config(config)
    assert config == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optm.lr_initial=1"], "optm: unknown key (did you mean 'optim'?)"),
        (["optim.lr_inital=1"], "optim.lr_inital: unknown key (did you mean 'lr_initial'?)"),
        (["optim.eval_evry=1"], "optim.eval_evry: unknown key (did you mean 'eval_every'?)"),
        (["dataset.trian.src=x"], "dataset.trian: unknown key (did you mean 'train'?)"),
        (["dataset.train.frist_n=1"], "dataset.train.frist_n: unknown key (did you mean 'first_n'?)"),
        (["dataset.train=x"], "dataset.train: 'x' is given where keys with values are needed"),
        (["task.relax_opts=1"], "task.relax_opts: unknown key (did you mean 'relax_opt'?)"),
        (["outputs.forces.levle=atom"], "outputs.forces.levle: unknown key (did you mean 'level'?)"),
        (["outputs.forces.level=atoms"], "outputs.forces.level: unknown value 'atoms' (did you mean 'atom'?)"),
        (["evaluation_metrics.metric=1"], "evaluation_metrics.metric: unknown key (did you mean 'metrics'?)"),
        (["evaluation_metrics.metrics.stress=[mae]"], "evaluation_metrics.metrics.stress: 'stress' is not among"),
        (["evaluation_metrics.metrics.energy=[mea]"], "evaluation_metrics.metrics.energy: unknown metric 'mea'"),
        (["evaluation_metrics.primary_metric=force_mae"], "(did you mean 'forces_mae'?)"),
        (["loss_functions.0={enrgy: {fn: mae}}"], "loss_functions.0.enrgy: it is not among the outputs"),
        (["optim.lr_initial='1e-4'"], "optim.lr_initial: '1e-4' is not a number"),
        (["trainer=opc"], "trainer: there is no trainer 'opc' (did you mean 'ocp'?)"),
        (["logger=tensorbord"], "logger: there is no logger 'tensorbord' (did you mean 'tensorboard'?)"),
        (["model.name=shcnet"], "model.name: there is no model 'shcnet' (did you mean 'schnet'?)"),
        (["model.name=nowhere.Net"], "model.name: 'nowhere.Net' cannot be imported (No module named 'nowhere'"),
        (["model={a: 1}"], "model.name: missing"),
        (["model={name: hydra, backbone: {model: escaip_bakbone}, heads: {}}"], "did you mean 'escaip_backbone'?"),
        (["dataset.train.format=lmbd"], "dataset.train.format: there is no dataset 'lmbd' (did you mean 'lmdb'?)"),
        (["optim=null"], "optim: this section is missing"),
        (["dataset={val: {src: val.lmdb}}"], "dataset.train.src: missing, and needed to train"),
        (["mode=validate"], "--mode validate needs a trained model: add --checkpoint"),
    ],
)
def test_what_cannot_work_is_refused_with_the_place_and_a_way_out(config, overrides, message):
    apply_overrides(config, overrides)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_config(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.train.src=none.lmdb", "dataset.train.src: none.lmdb does not exist"),
        ("dataset.relax.src=none", "dataset.relax.src: none does not exist"),
        ("dataset.train.src=empty", "dataset.train.src: the folder empty holds no *.lmdb file"),
    ],
)
def test_missing_data_is_named_with_ways_to_get_some(config, folder, override, message):
    (folder / "empty").mkdir(exist_ok=True)
    apply_overrides(config, [override])
    with pytest.raises(DataError, match=re.escape(message)) as error:
        check_config(config)
    assert "escaip data demo" in str(error.value)
    assert f"{override.partition('=')[0]}=…" in str(error.value)


@pytest.mark.parametrize("split", ["train", "val"])
def test_balancing_without_numbers_of_atoms_is_refused(config, tmp_path, split):
    np.savez(tmp_path / "metadata.npz", natoms=np.ones(6, dtype=int))
    config["optim"]["load_balancing"] = "atoms"
    for name in ("train", "val", "test", "relax"):
        place = tmp_path / "parts" if name == split else tmp_path
        place.mkdir(exist_ok=True)
        (place / f"{name}.lmdb").touch()
        config["dataset"][name]["src"] = str(place / f"{name}.lmdb")
    message = f"dataset.{split}.src: optim.load_balancing needs the numbers of atoms in {tmp_path}/parts/metadata.npz"
    with pytest.raises(DataError, match=f"{re.escape(message)}.*load_balancing_on_error=warn_and_no_balance"):
        check_config(config)
    check_config({**config, "optim": {**config["optim"], "load_balancing_on_error": "warn_and_no_balance"}})
    check_config({**config, "optim": {**config["optim"], "load_balancing": None}})
    config["dataset"][split]["metadata_path"] = str(tmp_path / "metadata.npz")
    check_config(config)


@pytest.mark.parametrize("kind", ["lmdb", "oc22_lmdb"])
def test_references_that_a_format_ignores_are_applied(config, kind, caplog):
    config["dataset"]["train"] |= {"format": kind, "lin_ref": "refs.npz"}
    config["dataset"]["val"]["lin_ref"] = "refs.npz"
    normalizer = copy.deepcopy(config["dataset"]["train"]["transforms"]["normalizer"])
    with caplog.at_level("INFO"):
        check_config(config)
    assert config["dataset"]["train"]["transforms"] == {
        "normalizer": normalizer,
        "element_references": {"energy": {"file": "refs.npz"}},
    }
    assert not any("lin_ref" in settings for settings in config["dataset"].values())
    assert "refs.npz is applied as dataset.train.transforms.element_references" in caplog.text


def test_references_that_a_format_applies_are_left_alone(config):
    config["dataset"]["train"] |= {"format": "ase_db", "lin_ref": "refs.npz"}
    check_config(config)
    assert config["dataset"]["train"]["lin_ref"] == "refs.npz"
    assert "element_references" not in config["dataset"]["train"]["transforms"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["dataset.val.lin_ref=refs.npz"],
        ["dataset.train.lin_ref=refs.npz", "dataset.val.lin_ref=others.npz"],
        ["dataset.train.lin_ref=refs.npz", "dataset.train.transforms.element_references.energy.file=others.npz"],
    ],
)
def test_contradicting_references_are_refused(config, overrides):
    apply_overrides(config, overrides)
    with pytest.raises(ConfigError, match=r"lin_ref: this format ignores it.*once, as dataset\.train\.transforms"):
        check_config(config)


def test_patterns_and_addresses_are_left_to_their_reader(config):
    for split in ("train", "val", "test", "relax"):
        config["dataset"][split]["format"] = "ase_db"
    config["dataset"]["train"]["src"] = ["postgresql://host/db", "parts/*.aselmdb"]
    check_config(config)


def test_checkpoints_are_read_before_anything_is_built(config, folder):
    config["checkpoint"] = str(folder / "none.pt")
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        check_config(config)
    config["checkpoint"] = str(folder / "config.yml")
    with pytest.raises(CheckpointError, match=r"not a readable checkpoint|holds more than"):
        check_config(config)
    torch.save({"weights": 1}, folder / "other.pt")
    config["checkpoint"] = str(folder / "other.pt")
    with pytest.raises(CheckpointError, match="not a fairchem checkpoint"):
        check_config(config)
    torch.save({"state_dict": {}}, folder / "good.pt")
    config["checkpoint"] = str(folder / "good.pt")
    check_config(config)


def test_what_fairchem_would_stumble_over_is_filled_in(config):
    del config["optim"]["num_workers"], config["evaluation_metrics"], config["task"]
    config["outputs"] = {"energy": {}, "forces": None}
    check_config(config)
    assert config["optim"]["num_workers"] == 0
    assert config["outputs"]["forces"] == {"level": "atom", "train_on_free_atoms": True, "eval_on_free_atoms": True}
    assert config["outputs"]["energy"] == {"level": "system"}
    assert config["evaluation_metrics"]["metrics"]["forces"]
    assert config["evaluation_metrics"]["primary_metric"] == "energy_forces_within_threshold"
    assert config["task"] == {}


def test_parts_of_a_decomposition_are_outputs_too(config):
    config["outputs"]["stress"] = {
        "level": "system",
        "decomposition": {"stress_isotropic": {"irrep_dim": 0}, "stress_anisotropic": {"irrep_dim": 2}},
    }
    config["loss_functions"].append({"stress_anisotropic": {"fn": "mae", "coefficient": 1}})
    config["evaluation_metrics"]["metrics"]["stress_isotropic"] = ["mae"]
    check_config(config)


def test_keys_of_other_peoples_trainers_and_formats_are_their_business(config):
    config["trainer"] = "mlip_trainer"
    config["optim"]["whatever"] = 1
    config["something"] = {}
    check_config(config)


def test_configurations_in_the_old_form_are_left_to_fairchem(config):
    for key in ("outputs", "loss_functions", "evaluation_metrics"):
        del config[key]
    config["trainer"] = "forces"
    config["task"] = {"dataset": "trajectory_lmdb", "description": "", "type": "regression", "metric": "mae"}
    config["optim"] |= {"force_coefficient": 30, "loss_forces": "l2mae"}
    before = copy.deepcopy(config)
    check_config(config)
    assert config == before


def lookups(pattern: str, *folders: str) -> set[str]:
    """Keys that fairchem's source looks up."""
    import fairchem.core

    root = Path(inspect.getfile(fairchem.core)).parent
    files = [file for folder in folders for file in (root / folder).rglob("*.py")]
    return {key for file in files for key in re.findall(pattern, file.read_text())}


@pytest.mark.parametrize(
    ("known", "pattern", "folders"),
    [
        (known_keys.OPTIM, r'\["optim"\](?:\.get\(|\[)\s*"(\w+)"', ("trainers", "models", "common")),
        (known_keys.TASK, r'\["task"\](?:\.get\(|\[)\s*"(\w+)"', ("trainers", "models", "common")),
        (known_keys.DATASET, r'(?<!\w)(?:self\.)?config(?:\.get\(|\[)\s*"(\w+)"', ("datasets",)),
        (known_keys.DATASET, r'split_config(?:\.get\(|\[)\s*"(\w+)"', ("datasets",)),
        (known_keys.OUTPUT, r'output_targets\[\w+\](?:\.get\(|\[)\s*"(\w+)"', ("trainers",)),
        (known_keys.TOP, r'(?<![\w.])(?:self\.)?config(?:\.get\(|\[)\s*"(\w+)"', ("tasks",)),
    ],
)
def test_every_key_that_fairchem_reads_is_known(known, pattern, folders):
    found = lookups(pattern, *folders)
    assert found
    assert found <= known


def arguments(*words: str) -> tuple[Any, list[str]]:
    return main._parser().parse_known_args(["--config-yml", "config.yml", *words])


def test_prepared_configurations_are_complete(config, folder):
    args, overrides = arguments("logger=none", "seed=3")
    (prepared,) = main.prepare_configs(args, overrides)
    assert prepared["mode"] == "train"
    assert prepared["logger"] == "null"
    assert prepared["seed"] == 3
    if not torch.cuda.is_available():
        assert prepared["cpu"]
        assert prepared["distributed_backend"] == "gloo"


def test_run_names_are_unique_unless_given(config):
    names = {main.prepare_configs(*arguments())[0]["timestamp_id"] for _ in range(3)}
    assert len(names) == 3
    (given,) = main.prepare_configs(*arguments("--timestamp-id", "mine"))
    assert given["timestamp_id"] == "mine"


def test_sweeps_make_a_run_of_every_combination(config, folder):
    (folder / "sweep.yml").write_text("optim: {lr_initial: [0.1, 0.2]}\nmodel: {cutoff: [4, 5]}\n")
    configs = main.prepare_configs(*arguments("--sweep-yml", "sweep.yml", "--timestamp-id", "ignored"))
    assert [(c["optim"]["lr_initial"], c["model"]["cutoff"]) for c in configs] == [
        *((0.1, 4), (0.1, 5)),
        *((0.2, 4), (0.2, 5)),
    ]
    assert [c["timestamp_id"] for c in configs] == [
        f"sweep-lr_initial={rate}-cutoff={cutoff}" for rate in (0.1, 0.2) for cutoff in (4, 5)
    ]


def test_a_sweep_may_bring_its_configurations(config, folder):
    (folder / "own.sweep.yml").write_text(
        "config: config.yml\nruns: [{name: a}, {name: b, config: other.yml, set: {optim.lr_initial: 0.5}}]\n"
    )
    (folder / "other.yml").write_text((folder / "config.yml").read_text().replace("cutoff: 5.0", "cutoff: 4.5"))
    args, overrides = main._parser().parse_known_args(["--sweep-yml", str(folder / "own.sweep.yml"), "--identifier=x"])
    runs = main.prepare_runs(args, [*overrides, "optim.lr_initial=0.25"])
    found = [
        (run.config["timestamp_id"], run.config["model"]["cutoff"], run.config["optim"]["lr_initial"]) for run in runs
    ]
    assert found == [("x-own.sweep-a", 5.0, 0.25), ("x-own.sweep-b", 4.5, 0.5)]
    assert [Path(run.config_yml).name for run in runs] == ["config.yml", "other.yml"]


def test_errors_in_a_sweep_name_the_run(config, folder):
    (folder / "bad.sweep.yml").write_text("runs: [{name: good}, {name: bad, set: {optim.lr_inital: 1}}]\n")
    with pytest.raises(
        ConfigError, match=r"run bad\.sweep-bad: optim\.lr_inital: unknown key \(did you mean 'lr_initial'"
    ):
        main.prepare_configs(*arguments("--sweep-yml", str(folder / "bad.sweep.yml")))


def test_a_dry_run_starts_nothing_and_prints_the_runs(config, folder, capsys):
    (folder / "rates.sweep.yml").write_text("optim: {lr_initial: [0.1, 0.2]}\n")
    before = sorted(folder.rglob("*"))
    words = [
        "--config-yml",
        "config.yml",
        "--sweep-yml",
        "rates.sweep.yml",
        "--dry-run",
        "--num-gpus=4",
        "--num-nodes=2",
    ]
    assert main.run_main([*words, "--slurm-timeout", "3"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"rates\.sweep-lr_initial=0\.1 .* 8 .* 24", said), said
    assert re.search(r"rates\.sweep-lr_initial=0\.2 ", said)
    assert "48" in said.splitlines()[-1]
    assert sorted(folder.rglob("*")) == before


def test_submitting_where_there_is_no_slurm(config, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"there is no SLURM on this machine"):
        main.run_main(["--config-yml", "config.yml", "--submit", "--logdir", str(tmp_path / "logs")])
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-gpus", "0"], "--num-gpus 0"),
        (["--sweep-yml", "none.yml"], "none.yml"),
        (["stray"], "write key=value"),
    ],
)
def test_a_command_line_that_makes_no_sense(config, words, message):
    with pytest.raises(EScAIPError, match=message):
        main.prepare_configs(*arguments(*words))


def test_duplicate_keys_in_a_file_are_refused(config, folder):
    (folder / "double.yml").write_text("model: {name: a}\nmodel: {name: b}\n")
    args, overrides = main._parser().parse_known_args(["--config-yml", "double.yml"])
    with pytest.raises(ConfigError, match=r"double\.yml: Duplicate Key: 'model'"):
        main.prepare_configs(args, overrides)


def test_cluster_flags_reach_submitit(config):
    words = ["--submit", "--slurm-partition", "long", "--num-gpus", "4", "optim.num_workers=3", "--slurm-timeout=72"]
    args, overrides = arguments(*words)
    (prepared,) = main.prepare_configs(args, overrides)
    assert not prepared["cpu"]  # the machine that submits needs no GPU
    prepared["slurm"] = {"partition": "short", "time": "30", "qos": "mine"}
    parameters = cluster_request(args, main.given_flags(words), [prepared]).parameters
    assert parameters["slurm_partition"] == "long"
    assert parameters["slurm_qos"] == "mine"
    assert parameters["timeout_min"] == 72 * 60  # given, though it is the default
    assert parameters["tasks_per_node"] == parameters["slurm_gpus_per_node"] == 4
    assert parameters["slurm_cpus_per_task"] == 4


def test_a_sites_file_stands_behind_the_configuration(config, folder):
    (folder / "my.site.yml").write_text("slurm: {partition: theirs, constraint: a100}\n")
    words = ("--submit", "--slurm-yml", str(folder / "my.site.yml"), "slurm.partition=mine")
    (prepared,) = main.prepare_configs(*arguments(*words))
    assert prepared["slurm"] == {"partition": "mine", "constraint": "a100"}


def test_runs_of_one_array_cannot_ask_for_different_things(config, folder):
    (folder / "sites.sweep.yml").write_text("slurm.partition: [a, b]\n")
    args, overrides = arguments("--submit", "--sweep-yml", str(folder / "sites.sweep.yml"))
    configs = main.prepare_configs(args, overrides)
    with pytest.raises(ConfigError, match="slurm: differs between runs of the sweep"):
        cluster_request(args, set(), configs)


def test_flags_of_our_own_leave_fairchem_s_as_they_are():
    from fairchem.core.common.flags import flags

    main._parser()
    assert "--dry-run" not in flags.get_parser().format_help()
    assert main.given_flags(["--cpu", "--num-gpus", "1", "a.b=1"]) == {"cpu", "num_gpus"}


def test_a_folder_with_a_training_is_not_begun_anew_from_elsewhere(config, tmp_path):
    own, other = tmp_path / "checkpoints/run/checkpoint.pt", tmp_path / "first.pt"
    other.touch()
    config |= {"run_dir": str(tmp_path), "timestamp_id": "run", "checkpoint": str(other)}
    check_folder(config)
    own.parent.mkdir(parents=True)
    own.touch()
    with pytest.raises(
        RunFolderError, match=r"--timestamp-id run: .*checkpoint.pt is of an earlier training.*first.pt"
    ):
        check_folder(config)
    for allowed in ({"checkpoint": None}, {"checkpoint": str(own)}, {"timestamp_id": "new"}, {"mode": "validate"}):
        check_folder(config | allowed)
