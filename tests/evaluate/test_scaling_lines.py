"""Which trainings a figure of error against cost joins by a line."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from escaip_fairchem.evaluate.plots import plot_scaling
from escaip_fairchem.evaluate.result_table import ResultTable
from escaip_fairchem.evaluate.scaling import Run, figure_lines, scaling_table
from escaip_fairchem.evaluate.scaling_lines import ScalingLine, short_numbers
from escaip_fairchem.plugin.run_facts import RunFacts

SIZES = {"small": 83_299_466, "medium": 146_200_000, "large": 311_800_000}
DATA = {"500k": 500_000, "1m": 1_000_000, "2m": 2_000_000}


def run(name: str, **changes: Any) -> Run:
    family, hours = changes.pop("family", "EScAIP"), changes.pop("gpu_hours", None)
    facts: dict[str, Any] = {
        "name": name, "folder": Path(name), "family": family, "parameters": 100, "structures": 10, "steps": 1,
        "batch_size": 1, "processes": 1, "on_gpu": True, "validation": "all/val_id", "validation_limit": 30_000,
        "energy_mae": 0.3, "forces_mae": 0.02,
    }  # fmt: skip
    return Run(facts=RunFacts(**{**facts, **changes}), family=family, gpu_hours=hours, unknown=())


def study() -> list[Run]:
    """Three sizes of the model by three of the data, as they are listed: by name. Larger is better, in both."""
    names = sorted(product(DATA, SIZES))
    return [
        run(
            f"escaip_{data}_{size}",
            parameters=SIZES[size],
            structures=DATA[data],
            gpu_hours=1e-12 * SIZES[size] * DATA[data],
            forces_mae=1e3 / SIZES[size] + 1e2 / DATA[data],
        )
        for data, size in names
    ]


def drawn(lines: list[ScalingLine]) -> dict[str, list[str]]:
    return {line.label: [point.name.removeprefix("escaip_") for point in line.points] for line in lines}


def test_against_parameters_there_is_a_line_for_each_number_of_structures() -> None:
    lines = figure_lines(study(), "parameters")
    assert drawn(lines) == {
        "EScAIP, 500k training structures": ["500k_small", "500k_medium", "500k_large"],
        "EScAIP, 1M training structures": ["1m_small", "1m_medium", "1m_large"],
        "EScAIP, 2M training structures": ["2m_small", "2m_medium", "2m_large"],
    }
    for line in lines:
        assert line.joined
        assert [point.x for point in line.points] == list(SIZES.values())
        errors = [point.forces for point in line.points]
        assert errors == sorted(errors, reverse=True), "no zigzag"


def test_against_data_there_is_a_line_for_each_number_of_parameters() -> None:
    lines = figure_lines(study(), "data")
    assert drawn(lines) == {
        "EScAIP, 83.3M parameters": ["500k_small", "1m_small", "2m_small"],
        "EScAIP, 146M parameters": ["500k_medium", "1m_medium", "2m_medium"],
        "EScAIP, 312M parameters": ["500k_large", "1m_large", "2m_large"],
    }
    assert all(line.joined and [point.x for point in line.points] == list(DATA.values()) for line in lines)


def test_against_gpu_hours_there_is_a_line_for_each_number_of_structures() -> None:
    lines = figure_lines(study(), "gpu-hours")
    assert list(drawn(lines).values())[2] == ["2m_small", "2m_medium", "2m_large"]
    assert [len(line.points) for line in lines] == [3, 3, 3]


def test_families_have_lines_of_their_own_and_names_of_users_count() -> None:
    runs = [run("a", parameters=1), run("b", parameters=2, family="EquiformerV2, more AT"), run("c", parameters=3)]
    assert drawn(figure_lines(runs, "parameters")) == {
        "EScAIP, 10 training structures": ["a", "c"],
        "EquiformerV2, more AT, 10 training structures": ["b"],
    }


def test_several_trainings_at_one_cost_are_points_without_a_line() -> None:
    """By what they differ is not known; a line would go up and down between them."""
    runs = [run("a", parameters=1), run("b", parameters=1, forces_mae=0.01), run("c", parameters=2)]
    (line,) = figure_lines(runs, "parameters")
    assert not line.joined
    assert not figure_lines(runs[:1], "parameters")[0].joined


def test_errors_on_different_structures_are_not_joined() -> None:
    """As where a folder holds the trainings of several benchmarks."""
    runs = [
        run("oc20", parameters=1),
        run("oc20 large", parameters=2),
        run("spice", parameters=3, validation="spice/val", validation_limit=None),
    ]
    assert drawn(figure_lines(runs, "parameters")) == {
        "EScAIP, 10 training structures, on at most 30,000 structures of all/val_id": ["oc20", "oc20 large"],
        "EScAIP, 10 training structures, on all of spice/val": ["spice"],
    }
    assert "different structures" in notes(scaling_table(runs))
    assert "on at most 30,000 structures of all/val_id" in notes(scaling_table(runs[:2]))


def notes(table: ResultTable) -> str:
    return " ".join(table.notes)


def test_the_table_says_what_was_evaluated() -> None:
    runs = [run("part"), run("all", validation_limit=None), run("old", validation=None, validation_limit=None)]
    values = [row.values for row in scaling_table(runs).rows]
    assert [(row["validation_set"], row["validation_limit"]) for row in values] == [
        ("all/val_id", 30_000),
        ("all/val_id", "all"),
        ("not known", "not known"),
    ]


def test_what_is_not_known_is_left_out_or_has_a_line_of_its_own() -> None:
    runs = [run("a", structures=None), run("b", energy_mae=None), run("c", structures=None, parameters=7)]
    assert drawn(figure_lines(runs, "parameters")) == {"EScAIP, training structures not known": ["c", "a"]}
    assert figure_lines(runs, "data") == []


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([83_299_466, 311_800_000], ["83.3M", "312M"]),
        ([500_000, 2_000_000, 999_999, 999_499], ["500k", "2M", "1M", "999k"]),
        ([83_299_466, 83_306_288], ["83,299,466", "83,306,288"]),
        ([4, 1_500, 2_500_000_000], ["4", "1.5k", "2.5B"]),
    ],
)
def test_numbers_are_short_unless_they_would_look_alike(values: list[int], texts: list[str]) -> None:
    assert list(short_numbers(values).values()) == texts


def test_the_figure_has_lines_labels_names_and_says_what_errors_these_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("escaip_fairchem.evaluate.plots._save", lambda figure, path: seen.append(figure) or path)
    plot_scaling(figure_lines(study(), "parameters"), "parameters", "on 30,000 structures", tmp_path / "x.png")
    (figure,) = seen
    energy, forces = figure.axes
    for panel in (energy, forces):
        assert [list(line.get_xdata()) for line in panel.lines] == [list(SIZES.values())] * 3
        assert all(line.get_linestyle() == "-" for line in panel.lines)
        assert sorted(text.get_text() for text in panel.texts) == sorted(one.facts.name for one in study())
    assert [text.get_text() for text in figure.legends[0].get_texts()][2] == "EScAIP, 2M training structures"
    assert figure.get_suptitle() == "on 30,000 structures"
    many = [run(f"r{number}", parameters=number + 1) for number in range(13)]
    plot_scaling(figure_lines(many, "parameters"), "parameters", "", tmp_path / "y.png")
    assert not seen[1].axes[0].texts, "too many to be named"
