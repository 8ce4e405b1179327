"""Sweep files: both forms, names, what is refused, and the sweeps that come with the package."""

from __future__ import annotations

import collections
import collections.abc
import copy
import itertools
import re
from pathlib import Path

import pytest
import yaml

from escaip_fairchem.cli.config_files import is_sweep, locate_config
from escaip_fairchem.errors import ConfigError
from escaip_fairchem.plugin.launch.sweep_names import short_keys, value_names
from escaip_fairchem.plugin.launch.sweeps import Sweep, apply_changes, check_known, read_sweep

CONFIGS = Path(__file__).parents[2] / "configs"
BASE = {
    "identifier": "x",
    "optim": {"lr_initial": 0.1, "batch_size": 4, "scheduler_params": {"lr_min_factor": 0.5}, "optimizer_params": None},
    "model": {"name": "hydra", "empty": {}, "backbone": {"num_layers": 2, "lmax_list": [6]}},
    "dataset": {"train": {"src": "data"}},
    "loss_functions": [{"energy": {"fn": "mae", "coefficient": 4}}, {"forces": {"fn": "l2mae", "coefficient": 100}}],
}


@pytest.fixture
def sweep_of(tmp_path):
    """Read a sweep from its text; two configurations are beside it."""
    for name in ("small.yml", "large.yml"):
        (tmp_path / name).write_text("model: {name: escaip}\n")

    def read(text: str, name: str = "study.yml") -> Sweep:
        (tmp_path / name).write_text(text)
        return read_sweep(tmp_path / name)

    return read


def names(sweep: Sweep) -> list[str]:
    return [run.name for run in sweep.runs]


def changes(sweep: Sweep) -> list[dict]:
    return [run.changes for run in sweep.runs]


UPSTREAM = """
optim:
  lr_initial: [0.1, 0.2]
  scheduler_params.lr_min_factor: [0.5, 0.25]
model:
  backbone:
    lmax_list: [[4], [6]]
  backbone.num_layers: [1, 2, 3]
dataset.train: [{src: a, seed: 1}, {src: b}]
"""


@pytest.mark.parametrize("text", [UPSTREAM, "optim: {lr_initial: [0.1]}", "model.backbone.lmax_list: [[4, 2]]"])
def test_the_upstream_form_makes_the_runs_that_fairchem_makes(sweep_of, tmp_path, monkeypatch, text):
    from fairchem.core.common.utils import create_grid

    monkeypatch.setattr(collections, "MutableMapping", collections.abc.MutableMapping, raising=False)
    sweep = sweep_of(text)
    theirs = create_grid(BASE, str(tmp_path / "study.yml"))
    ours = [copy.deepcopy(BASE) for _ in sweep.runs]
    for config, run in zip(ours, sweep.runs, strict=True):
        apply_changes(config, run.changes)
    assert ours == [{**config, "identifier": "x"} for config in theirs]
    assert sweep.config is None
    assert {run.config for run in sweep.runs} == {None}
    assert len(set(names(sweep))) == len(theirs) == {UPSTREAM: 48}.get(text, 1)


def test_nested_and_dotted_keys_are_the_same(sweep_of):
    nested = sweep_of("optim: {scheduler_params: {lr_min_factor: [0.1, 0.2]}}")
    dotted = sweep_of("optim.scheduler_params: {lr_min_factor: [0.1, 0.2]}")
    assert nested == dotted
    assert changes(nested) == [{"optim.scheduler_params.lr_min_factor": value} for value in (0.1, 0.2)]


def test_everything_combines_in_the_files_order(sweep_of, tmp_path):
    sweep = sweep_of("""
name: all
config: small.yml
set: {optim: {max_epochs: 3}, dataset.train.src: [a, b]}
grid: {optim: {lr_initial: [0.1, 0.2], batch_size: [4, 8]}}
zip: {model: {backbone: {hidden_size: [16, 32], num_heads: [1, 2]}}}
runs:
  - {name: plain}
  - {name: big, config: large.yml, set: {model: {backbone.num_layers: 9}}}
""")
    assert sweep.path == tmp_path / "study.yml"
    assert sweep.config == tmp_path / "small.yml"
    assert [run.config for run in sweep.runs] == [None] * 8 + [tmp_path / "large.yml"] * 8
    expected = [
        {
            "optim.max_epochs": 3,
            "dataset.train.src": ["a", "b"],
            "optim.lr_initial": rate,
            "optim.batch_size": batch,
            "model.backbone.hidden_size": size,
            "model.backbone.num_heads": heads,
            **own,
        }
        for own, rate, batch, (size, heads) in itertools.product(
            ({}, {"model.backbone.num_layers": 9}), (0.1, 0.2), (4, 8), ((16, 1), (32, 2))
        )
    ]
    assert changes(sweep) == expected
    assert names(sweep)[0] == "all-plain-lr_initial=0.1-batch_size=4-hidden_size=16-num_heads=1"
    assert names(sweep)[-1] == "all-big-lr_initial=0.2-batch_size=8-hidden_size=32-num_heads=2"
    assert len(set(names(sweep))) == 16


def test_later_layers_win(sweep_of):
    fixed = "set: {a.x: 0, a.y: 0, a.z: 0, a.w: 0}\n"
    sweep = sweep_of(fixed + "grid: {a.x: [1, 2]}\nzip: {a.y: [3]}\nruns: [{name: r, set: {a.z: 4}}]")
    assert changes(sweep) == [{"a.x": x, "a.y": 3, "a.z": 4, "a.w": 0} for x in (1, 2)]


def test_a_section_can_be_replaced_and_then_changed(sweep_of):
    """What a layer gives again has that layer's place in the order, so that it is not replaced."""
    sweep = sweep_of("set: {m.a.b: 0}\ngrid: {m.a: [{c: 1}, {c: 2}]}\nruns: [{name: r, set: {m.a.b: 5}}]")
    config = {"m": {"a": {"old": 1}}}
    apply_changes(config, changes(sweep)[1])
    assert config == {"m": {"a": {"c": 2, "b": 5}}}


def test_in_set_lists_are_values_and_nothing_is_an_axis(sweep_of):
    sweep = sweep_of("set: {model.lmax_list: [4, 6], model.none: null, model.empty: {}}\nruns: [{name: a}]")
    assert changes(sweep) == [{"model.lmax_list": [4, 6], "model.none": None, "model.empty": {}}]


def test_runs_share_no_values(sweep_of):
    sweep = sweep_of("set: {a: [1]}\ngrid: {b: [[2], [3]], c: [{d: 1}, {d: 2}]}")
    first, second, *_ = sweep.runs
    first.changes["a"].append(9)
    first.changes["b"].append(9)
    assert (second.changes["a"], second.changes["b"]) == ([1], [2])
    config = {"m": {}}
    apply_changes(config, {"m.x": first.changes["a"]})
    config["m"]["x"].append(5)
    assert first.changes["a"] == [1, 9]


@pytest.mark.parametrize("section", ["grid: {a.b: [1]}", "zip: {a.b: [1]}", "runs: [{name: a}]"])
def test_each_section_alone_makes_a_run(sweep_of, section):
    assert len(sweep_of(section).runs) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # what is no sweep
        ("[1, 2]", "holds [1, 2] where keys with lists of values are needed"),
        ("", "holds None where"),
        ("{}", "holds {} where"),
        ("a: [1", "not valid YAML"),
        ("a: &x {b: *x}", "contains itself"),
        # keys
        ("a: [1]\na: [2]", "a: given twice, in line 1 and in line 2"),
        ("m: {a: [1], a: [2]}", "a: given twice, in line 1 and in line 1"),
        ("runs: [{name: a, name: b}]", "name: given twice"),
        ("a.b: [1]\na: {b: [2]}", "a.b: given twice, nested and with dots"),
        ("grid: {a.b: [1], a: {b: [2]}}", "grid.a.b: given twice, nested and with dots"),
        ("a..b: [1]", "a..b: a part of this key is empty"),
        ("grid: {true: [1]}", "grid.True: this key is not text but True; quote it"),
        ("gird: {a: [1]}\nset: {b: 1}", "gird: unknown key (did you mean 'grid'?)"),
        ("optim: {lr: [1]}\nname: x", "optim: unknown key (known: config, grid, name, runs, set, zip); settings go"),
        ("set: {a: 1}", "makes no runs"),
        ("config: small.yml", "makes no runs"),
        # axes
        ("optim: {lr: 0.1}", "optim.lr: 0.1 is no list of values; write [0.1] for one value, or put it below `set:`"),
        ("optim: {name: adam}", "optim.name: 'adam' is no list of values; write ['adam'] for one value"),
        ("grid: {optim.lr: 0.1}", "grid.optim.lr: 0.1 is no list of values; write [0.1]"),
        ("zip: {optim.lr: 0.1}", "zip.optim.lr: 0.1 is no list of values; write [0.1]"),
        ("optim:", "optim: None is no list of values"),
        ("optim: {a: {}}", "optim.a: {} is no list of values"),
        ("optim: {lr: []}", "optim.lr: [] holds no value"),
        ("zip: {a: [], b: []}", "zip.a: [] holds no value"),
        ("grid: {}", "grid: {} is given where keys with values are needed"),
        ("grid: [1]", "grid: [1] is given where keys with values are needed"),
        ("zip:", "zip: None is given where keys with values are needed"),
        ("set: 3\ngrid: {a: [1]}", "set: 3 is given where keys with values are needed"),
        ("zip: {a: [1, 2], m: {b: [1, 2, 3]}}", "zip.a has 2 values and zip.m.b has 3; they advance together"),
        ("grid: {m.a: [1]}\nzip: {m: {a: [1]}}", "m.a: is an axis of `grid:` and of `zip:`"),
        ("grid: {m.a: [1]}\nruns: [{name: r, set: {m: {a: 1}}}]", "runs.0.set.m.a: it is an axis"),
        ("zip: {m.a: [1]}\nruns: [{name: r}, {name: s, set: {m.a: 1}}]", "runs.1.set.m.a: it is an axis"),
        ("set: {m.a.b: 1}\ngrid: {m.a: [{c: 1}]}", "m.a: replaces all that is below it, m.a.b included"),
        ("grid: {m.a.b: [1], m.a: [{c: 1}]}", "m.a: replaces all that is below it, m.a.b included"),
        # runs
        ("runs: []", "runs: [] is given where a list is needed"),
        ("runs: {name: a}", "runs: {'name': 'a'} is given where a list is needed"),
        ("runs: [a]", "runs.0: 'a' is given where keys are needed"),
        ("runs: [{name: a}, {set: {b: 1}}]", "runs.1: has no name"),
        ("runs: [{name: a, sett: {b: 1}}]", "runs.0.sett: unknown key (did you mean 'set'?)"),
        ("runs: [{name: 3}]", "runs.0.name: 3 is no text; quote it"),
        ("runs: [{name: a b}]", "runs.0.name: 'a b' becomes a folder's name"),
        ("runs: [{name: ../a}]", "runs.0.name: '../a' becomes a folder's name"),
        (f"runs: [{{name: {'a' * 65}}}]", "becomes a folder's name; write at most 64"),
        ("runs: [{name: a}, {name: b, set: {x: 1}}, {name: a, set: {x: 2}}]", "runs.0 and runs.2 are both called 'a'"),
        ("runs: [{name: a, set: []}]", "runs.0.set: [] is given where keys with values are needed"),
        ("name: [a]\ngrid: {a: [1]}", "name: ['a'] is no text"),
        ("name: ''\ngrid: {a: [1]}", "name: '' becomes a folder's name"),
        # files
        ("config: smal.yml\ngrid: {a: [1]}", "smal.yml does not exist (did you mean 'small.yml'?)"),
        ("config: [a]\ngrid: {a: [1]}", "config: ['a'] is no file"),
        ("runs: [{name: a, config: larg.yml}]", "larg.yml does not exist (did you mean 'large.yml'?)"),
        ("runs: [{name: a, config: nowhere/x.yml}]", "nowhere/x.yml does not exist"),
        # twins
        ("optim.lr: [0.1, 0.2, 0.1]", "run 0 (study-lr=0.1) and run 2 (study-lr=0.1) have the same settings"),
        ("zip: {a: [1, 1], b: [2, 2]}", "run 0 (study-a=1-b=2) and run 1 (study-a=1-b=2) have the same settings"),
        ("runs: [{name: a}, {name: b}]", "run 0 (study-a) and run 1 (study-b) have the same settings"),
        (
            "config: small.yml\nruns: [{name: a}, {name: b, config: small.yml}]",
            "run 0 (study-a) and run 1 (study-b) have the same settings",
        ),
    ],
)
def test_what_is_refused(sweep_of, tmp_path, text, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        sweep_of(text)
    assert str(caught.value).startswith(f"{tmp_path / 'study.yml'}: ")


def test_two_runs_of_one_name_are_both_told(sweep_of):
    """The axes' part of one name can read like another entry's own."""
    with pytest.raises(ConfigError, match="would both be called s-a-x=1-x=1") as caught:
        sweep_of("name: s\ngrid: {x: [1, 1-x=1]}\nruns: [{name: a}, {name: a-x=1, set: {y: 1}}]")
    assert "run 1 ({'x': '1-x=1'})" in str(caught.value)
    assert "run 2 ({'x': 1, 'y': 1})" in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yml: cannot be read"):
        read_sweep(tmp_path / "none.yml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim.lr_initial: [0.0004, 1.0e-5]", ["study-lr_initial=0.0004", "study-lr_initial=1e-05"]),
        ("a.size: [1]\nb.size: [2]", ["study-a.size=1-b.size=2"]),
        ("a.c.size: [1]\nb.c.size: [2]\nd: [3]", ["study-a.c.size=1-b.c.size=2-d=3"]),
        ("lmax_list: [[4], [4, 6]]", ["study-lmax_list=4", "study-lmax_list=4-6"]),
        ("flag: [true, null]", ["study-flag=true", "study-flag=null"]),
        ("src: [data/a b, c]", ["study-src=data_a_b", "study-src=c"]),
        ("src: [a/b, a b, c]", ["study-src=0", "study-src=1", "study-src=c"]),
        ("m: [{a: 1}, {a: 2}]", ["study-m=0", "study-m=1"]),
        (f"src: [{'x' * 25}, {'y' * 24}]", ["study-src=0", f"study-src={'y' * 24}"]),
        ("n: [1, {a: 1}, 3]", ["study-n=0", "study-n=1", "study-n=2"]),
        ("n: ['', []]", ["study-n=0", "study-n=1"]),
        ("n: [1, '1']", ["study-n=0", "study-n=1"]),
        ("zip: {a: [1, 1], b: [3, 4]}", ["study-a=1-b=3", "study-a=1-b=4"]),
        ("runs: [{name: r}]", ["study-r"]),
        ("runs: [{name: r}]\nname: pre", ["pre-r"]),
        ("runs: [{name: r}]\ngrid: {x: [1]}", ["study-r-x=1"]),
        # more than fits: numbers of the combinations, as fairchem does
        ("\n".join(f"key_number_{k}: [long_value_{k}]" for k in range(5)), ["study-0"]),
    ],
)
def test_names(sweep_of, text, expected):
    assert names(sweep_of(text)) == expected
    assert all(re.fullmatch(r"[A-Za-z0-9._=+-]{1,200}", name) for name in expected)


def test_a_file_name_becomes_a_folder_name(sweep_of):
    assert names(sweep_of("a: [1]", "my (first) study.yml")) == ["my__first__study-a=1"]
    assert names(sweep_of("a: [1]", f"{'long' * 25}.yml")) == [f"{'long' * 16}-a=1"]


def test_keys_are_shortened_as_far_as_they_differ():
    assert short_keys(["a.x", "b.x", "b.y", "x"]) == {"a.x": "a.x", "b.x": "b.x", "b.y": "y", "x": "x"}
    assert short_keys(["optim.lr"]) == {"optim.lr": "lr"}
    assert short_keys(["a.rate", "b.my_rate"]) == {"a.rate": "rate", "b.my_rate": "my_rate"}


def test_equal_values_have_equal_names_and_different_ones_different():
    assert value_names([1, {"a": 1}, 1, {"a": 1}]) == ["0", "1", "0", "1"]
    assert value_names(["x", {"a": 1}, "x", {"a": 1}]) == ["x", "1", "x", "1"]
    assert value_names([{1: 0, "a": 0}, "b"]) == ["0", "b"]


@pytest.mark.parametrize(
    "key",
    [
        "optim.lr_initial",
        "optim.scheduler_params.T_max",  # new, in a section that is there
        "optim.optimizer_params.amsgrad",  # empty there
        "model.backbone.whatever",
        "seed",
        "task.strict_load",  # optional sections
        "slurm.partition",
        "dataset.val.src",
        "dataset.train.rotations.copies",
        "loss_functions.energy.coefficient",
        "loss_functions.1.forces.coefficient",
    ],
)
def test_what_a_configuration_can_take(key):
    before = copy.deepcopy(BASE)
    check_known(BASE, {key: 3})
    assert before == BASE
    config = copy.deepcopy(BASE)
    apply_changes(config, {key: 3})
    node = config
    for part in key.split("."):
        node = node[int(part)] if part.isdigit() else node[0][part] if isinstance(node, list) else node[part]
    assert node == 3


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("optm.lr_initial", "cannot set optm.lr_initial: the configuration has no 'optm' (did you mean 'optim'?)"),
        ("model.backbnoe.num_layers", "model has no 'backbnoe' (did you mean 'backbone'?)"),
        ("optim.schedler_params.x", "optim has no 'schedler_params' (did you mean 'scheduler_params'?)"),
        ("dataset.trian.src", "dataset has no 'trian' (did you mean 'train'?)"),
        ("dataset.train.rotatons.copies", "dataset.train has no 'rotatons'"),
        ("model.empty.a.b", "cannot set model.empty.a.b: model.empty has no 'a'"),
        ("loss_functions.energy.parms.x", "has no 'parms'"),
        ("optim.lr_initial.x", "cannot set optim.lr_initial.x: optim.lr_initial is 0.1, which has no keys"),
        ("optim.lr_initial.x.y", "is 0.1, which has no keys"),
        ("loss_functions.enrgy.coefficient", "'enrgy' is neither a position in that list nor a key in it"),
        ("loss_functions.2.energy", "'2' is neither a position in that list nor a key in it"),
    ],
)
def test_what_a_configuration_cannot_take(key, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_known(BASE, {key: 3})


def test_changes_are_checked_one_after_the_other():
    check_known(BASE, {"model.extra": {}, "model.extra.x": 1})
    with pytest.raises(ConfigError, match="model has no 'extra'"):
        check_known(BASE, {"model.extra.x": 1})


SHIPPED = [path for path in sorted(CONFIGS.rglob("*.yml")) if is_sweep(path)]


def test_the_shipped_sweeps_are_these():
    found = {path.relative_to(CONFIGS).as_posix() for path in SHIPPED}
    assert found == {
        "oc20/equiformer_v2_scaling/sweep.yml",
        "oc20/scaling/sweep.yml",
        "oc20/learning_rates.sweep.yml",
    }


@pytest.mark.parametrize("folder", ["oc20/equiformer_v2_scaling", "oc20/scaling"])
def test_a_folders_sweep_has_each_of_its_trainings_once(folder):
    sweep = read_sweep(CONFIGS / folder / "sweep.yml")
    files = [path for path in sorted((CONFIGS / folder).glob("*.yml")) if not path.name.startswith("base")]
    trainings = [path for path in files if not is_sweep(path)]
    assert sorted(run.config for run in sweep.runs) == trainings
    assert len(trainings) == {"oc20/equiformer_v2_scaling": 28, "oc20/scaling": 9}[folder]
    prefix = {"oc20/equiformer_v2_scaling": "ablation", "oc20/scaling": "scaling"}[folder]
    assert names(sweep) == [f"{prefix}-{run.config.stem}" for run in sweep.runs]
    assert not any(run.changes for run in sweep.runs)


def test_the_learning_rates_fit_their_configuration():
    from escaip_fairchem.plugin.info import read_config

    sweep = read_sweep(CONFIGS / "oc20/learning_rates.sweep.yml")
    assert sweep.config is not None
    config = read_config(sweep.config)
    published = []
    for run in sweep.runs:
        check_known(config, run.changes)
        changed = copy.deepcopy(config)
        apply_changes(changed, run.changes)
        published.append(changed == config)
    assert len(published) == 10
    assert published.count(True) == 1
    assert len({run.changes["optim.lr_initial"] for run in sweep.runs}) == 5
    assert "learning_rates-lr_initial=0.0001-lr_min_factor=0.5" in names(sweep)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_sweeps_say_what_they_are(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) <= 120
    assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize(
    ("name", "expected"), [("sweep.yml", True), ("a.sweep.yml", True), ("a_sweep.yml", True), ("sweeps.yml", False)]
)
def test_sweeps_are_told_by_their_names(name, expected):
    assert is_sweep(Path("configs") / name) is expected


def test_no_sweep_is_suggested_as_a_configuration():
    with pytest.raises(ConfigError) as caught:
        locate_config(Path("configs/oc20/learning_rate.sweep.yml"))
    assert "sweep" not in str(caught.value).partition("(did you mean")[2].partition("(known")[2]
    assert "'configs/oc20/learning_rates.sweep.yml'" not in str(caught.value)


def test_info_tells_sweeps_from_configurations(capsys, tmp_path):
    from escaip_fairchem.cli import main as command

    (tmp_path / "base.yml").write_text("optim: {max_epochs: 3}\n")
    (tmp_path / "sweep.yml").write_text("optim.lr_initial: [0.1]\n")
    assert command.main(["info", "--table", str(tmp_path)]) == 0
    *_, sweeps, parts = capsys.readouterr().out.splitlines()
    assert sweeps == f"left out, because they are sweeps over other files: {tmp_path / 'sweep.yml'}"
    assert parts == f"left out, because they are parts of other files: {tmp_path / 'base.yml'}"
    assert command.main(["info", str(tmp_path / "sweep.yml")]) == ConfigError.EXIT_STATUS
    assert "is a sweep, not one configuration" in capsys.readouterr().err
