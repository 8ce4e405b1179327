"""The table of ``--dry-run``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.plugin import info
from escaip_fairchem.plugin.info import read_config
from escaip_fairchem.plugin.launch.sweep_table import PlannedRun, sweep_table
from escaip_fairchem.plugin.launch.sweeps import apply_changes

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def built(monkeypatch) -> list[dict]:
    """Sections of the models that were built; stand-ins have as many parameters as the section's size says."""
    sections: list[dict] = []

    def build(section, path):
        sections.append(section)
        return torch.nn.Linear(section["size"], 1, bias=False)

    monkeypatch.setattr(info, "build_model", build)
    return sections


def planned(name: str, changes: dict | None = None, **further) -> PlannedRun:
    config = {
        "model": {"name": "m", "size": 1200},
        "optim": {"batch_size": 12, "max_epochs": 30, "lr_initial": 0.1},
        "losses": [{"energy": {"coefficient": 4}}],
        **further.pop("config", {}),
    }
    apply_changes(config, changes or {})
    defaults = {"config_file": Path("configs/a.yml"), "processes": 8, "nodes": 2, "hours": 72.0}
    return PlannedRun(name=name, changes=changes or {}, config=config, **{**defaults, **further})


def cells(table: str) -> list[list[str]]:
    """Cells of the lines before the empty one: columns are at least two spaces apart."""
    return [re.split(r" {2,}", line.strip()) for line in table.split("\n\n")[0].splitlines()]


NUMBERS = ["parameters", "GPUs", "structures per step", "epochs", "hours", "GPU-hours at most"]


def test_a_single_run(built):
    table = sweep_table([planned("only", {"optim.lr_initial": 0.2})])
    assert cells(table) == [["run", *NUMBERS], ["only", "1,200", "16 (2 × 8)", "192", "30", "72", "1,152"]]
    assert table.splitlines()[-2:] == ["", "1 run: 16 GPUs if all run at once, 1,152 GPU-hours at most"]


def test_only_what_differs_has_a_column(built):
    fixed = {"optim.max_epochs": 5}
    runs = [
        planned("a", {**fixed, "optim.lr_initial": 0.1, "model.size": 100}),
        planned("b", {**fixed, "optim.lr_initial": 0.2, "model.size": 200}),
        planned("c", {**fixed, "optim.lr_initial": 0.2, "model.size": 200, "losses.energy.coefficient": 9}, hours=0.5),
    ]
    assert cells(sweep_table(runs)) == [
        ["run", "lr_initial", "size", "coefficient", *NUMBERS],
        ["a", "0.1", "100", "4", "100", "16 (2 × 8)", "192", "5", "72", "1,152"],
        ["b", "0.2", "200", "4", "200", "16 (2 × 8)", "192", "5", "72", "1,152"],
        ["c", "0.2", "200", "9", "200", "16 (2 × 8)", "192", "5", "0.5", "8"],
    ]
    assert sweep_table(runs).endswith("\n\n3 runs: 48 GPUs if all run at once, 2,312 GPU-hours at most")


def test_a_model_is_built_once(built):
    runs = [planned(str(rate), {"optim.lr_initial": rate}) for rate in (0.1, 0.2, 0.3)]
    sweep_table([*runs, planned("other", {"model.size": 7})])
    assert [section["size"] for section in built] == [1200, 7]


def test_configurations_have_a_column_where_they_differ(built):
    files = ["configs/a.yml", Path("configs/deep/b.yml"), "configs/a.yml"]
    runs = [planned(str(index), config_file=file) for index, file in enumerate(files)]
    assert [row[:2] for row in cells(sweep_table(runs))] == [
        ["run", "config"], ["0", "a.yml"], ["1", "deep/b.yml"], ["2", "a.yml"],
    ]  # fmt: skip
    same = [planned("0"), planned("1", config_file=Path("configs/a.yml").absolute())]
    assert cells(sweep_table(same))[0] == ["run", *NUMBERS]


def test_columns_are_aligned(built):
    table = sweep_table([planned("a", {"model.x": 7}), planned("long_name", {"model.x": 777}, nodes=16)])
    heading, first, second, *_ = table.splitlines()
    assert len(heading) == len(first) == len(second)  # the last column is aligned to the right
    assert heading.index("x ") == first.index("7 ") == second.index("777 ") == len("long_name  ")
    for line in (first, second):
        assert heading.index("parameters") + len("parameters") == line.index("1,200") + len("1,200")


def test_settings_with_long_or_equal_labels(built):
    runs = [
        planned(
            name,
            {"a.epochs": value, "b.text": text, "c.text": value},
            config={"a": {}, "b": {}, "c": {}},
        )
        for name, value, text in (("a", [1, 2], "x" * 60), ("b", None, "y"))
    ]
    heading, first, second = cells(sweep_table(runs))
    assert heading[:4] == ["run", "a.epochs", "b.text", "c.text"]
    assert heading[4:] == NUMBERS  # the setting called "epochs" has not taken the other column's place
    assert first[1:4] == ["[1, 2]", "x" * 39 + "…", "[1, 2]"]
    assert second[1:4] == ["null", "y", "null"]


def test_a_setting_that_one_run_lacks(built):
    rows = cells(
        sweep_table([planned("a", {"optim.clip": 1}), planned("b"), planned("c", config={"optim": {"clip": 2}})])
    )
    assert [row[1] for row in rows] == ["clip", "1", "-", "2"]


def test_processors_are_no_gpus(built):
    table = sweep_table([planned("a", config={"cpu": True}), planned("b", nodes=1)])
    rows = cells(table)
    assert rows[1][2:4] == ["0", "192"]
    assert rows[1][-1] == "0"
    assert rows[2][2:4] == ["8 (1 × 8)", "96"]
    assert "2 runs: 8 GPUs if all run at once, 576 GPU-hours" in table


def test_graph_parallelism_shares_batches(built):
    assert planned("a", config={"gp_gpus": 4}).structures == 12 * 16 // 4
    assert planned("a", config={"gp_gpus": None}).structures == 12 * 16


def test_missing_numbers(built):
    rows = cells(sweep_table([planned("a", config={"optim": {}})]))
    assert rows[1][3:5] == ["-", "-"]


def test_a_model_that_cannot_be_made_names_the_run_and_the_file():
    config = read_config(CONFIGS / "demo/escaip_demo.yml")
    config["model"]["backbone"]["num_layer"] = 3
    with pytest.raises(ConfigError, match=r"run bad: configs/a\.yml: .*did you mean 'num_layers'"):
        sweep_table([planned("bad", config=config)])


def test_real_models_are_counted():
    config = read_config(CONFIGS / "demo/escaip_demo.yml")
    rows = cells(sweep_table([planned("demo", config=config)]))
    assert rows[1][1] == "384,770"
