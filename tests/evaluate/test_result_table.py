"""Tables of results: what is printed, and what programs and LaTeX read back."""

from __future__ import annotations

import csv
import io
import re

import pytest

from escaip_fairchem.errors import ConfigError, DataError
from escaip_fairchem.evaluate.error_tables import check_names, errors_table, preset_of
from escaip_fairchem.evaluate.result_table import Column, ResultTable, Row
from escaip_fairchem.plugin.set_errors import EVERYTHING, ErrorTotals


def totals(structures: int, energy: float, forces: float, **more: float) -> ErrorTotals:
    """Errors with these means (eV, eV/Å) over structures of two atoms."""
    means = {"energy_mae": energy, "energy_per_atom_mae": energy / 2, "forces_mae": forces, **more}
    counts = {name: structures * (6 if name.startswith("forces") else 1) for name in means}
    return ErrorTotals(
        structures=structures,
        atoms=2 * structures,
        totals={name: mean * counts[name] for name, mean in means.items()},
        counts=counts,
    )


def oc(structures: int, energy: float, forces: float) -> ErrorTotals:
    return totals(structures, energy, forces, forces_cosine_similarity=0.5, energy_forces_within_threshold=0.25)


FOUND = {
    "ood_ads": {EVERYTHING: oc(10, 0.3, 0.02)},
    "id": {EVERYTHING: oc(30, 0.2, 0.01)},
    "ood_both": {EVERYTHING: oc(20, 0.5, 0.04)},
    "ood_cat": {EVERYTHING: oc(40, 0.4, 0.03)},
}


def cells_of_latex(text: str) -> list[list[str]]:
    """Parse a tabular back."""
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    return [[cell.strip() for cell in line.removesuffix(r"\\").split(" & ")] for line in lines]


def test_oc20_has_four_rows_in_order_and_their_mean():
    table = errors_table(FOUND, preset=preset_of("oc20"), group_by=None)
    assert [row.label for row in table.rows] == ["id", "ood_ads", "ood_cat", "ood_both", "mean"]
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert [float(row["energy_mae_meV"]) for row in rows] == pytest.approx([200, 300, 400, 500, 350])
    assert [float(row["forces_mae_meV_per_A"]) for row in rows] == pytest.approx([10, 20, 30, 40, 25])
    assert [float(row["energy_forces_within_threshold_percent"]) for row in rows] == pytest.approx([25] * 5)
    assert [int(row["structures"]) for row in rows] == [30, 10, 40, 20, 100]
    assert [int(row["atoms"]) for row in rows] == [60, 20, 80, 40, 200]


def test_latex_is_booktabs_and_reads_back():
    table = errors_table(FOUND, preset=preset_of("oc20"), group_by=None)
    text = table.latex()
    assert r"\begin{tabular}{lrrrr}" in text  # numbers of structures and atoms are for the terminal
    for rule in (r"\toprule", r"\bottomrule", r"\end{tabular}"):
        assert text.count(rule) == 1
    assert text.count(r"\midrule") == 2  # below the headings, and above the mean
    header, *rows = cells_of_latex(text)
    assert header == ["data set", "energy MAE (meV)", r"force MAE (meV/\AA{})", "force cosine", r"EFwT (\%)"]
    assert rows[1][0] == r"ood\_ads"
    assert [[float(cell) for cell in row[1:]] for row in rows] == [
        [200.0, 10.0, 0.5, 25.0],
        [300.0, 20.0, 0.5, 25.0],
        [400.0, 30.0, 0.5, 25.0],
        [500.0, 40.0, 0.5, 25.0],
        [350.0, 25.0, 0.5, 25.0],
    ]


def test_some_sets_of_a_benchmark_have_no_mean_and_say_so():
    some = {name: FOUND[name] for name in ("ood_cat", "id")}
    table = errors_table(some, preset=preset_of("oc20"), group_by=None)
    assert [row.label for row in table.rows] == ["id", "ood_cat"]
    assert "not evaluated: ood_ads, ood_both" in table.text()
    both = {"ood": FOUND["id"], "id": FOUND["ood_cat"]}
    assert [row.label for row in errors_table(both, preset=preset_of("oc22"), group_by=None).rows] == ["id", "ood"]


def test_spice_rows_are_subsets_and_their_mean_is_weighted_by_configurations():
    found = {"test": {"water": totals(10, 0.02, 0.01), "dimers": totals(30, 0.06, 0.05)}}
    table = errors_table(found, preset=preset_of("spice"), group_by="subset_family")
    assert table.label == "subset_family"
    assert [row.label for row in table.rows] == ["dimers", "water", "weighted mean"]
    assert [row.values["energy_per_atom_mae"] for row in table.rows] == pytest.approx([30, 10, 25])
    assert [row.values["forces_mae"] for row in table.rows] == pytest.approx([50, 10, 40])
    assert [column.key for column in table.columns if column.printed] == ["energy_per_atom_mae", "forces_mae"]


def test_groups_are_summed_up_per_set():
    found = {"a": {"x": totals(1, 0.1, 0.1), "y": totals(3, 0.3, 0.1)}, "b": {"x": totals(2, 0.2, 0.1)}}
    table = errors_table(found, preset=None, group_by="kind")
    assert [row.label for row in table.rows] == ["a x", "a y", "a (all)", "b x", "b (all)", "mean"]
    assert [row.values["energy_mae"] for row in table.rows] == pytest.approx([100, 300, 250, 200, 200, 225])
    assert table.rows[2].values["structures"] == 4


def test_mptrj_shows_stress():
    found = {"val": {EVERYTHING: totals(5, 0.02, 0.03, stress_mae=0.0004)}}
    table = errors_table(found, preset=preset_of("mptrj"), group_by=None)
    assert [row.label for row in table.rows] == ["val"]
    assert table.csv().splitlines()[0] == (
        "data_set,structures,atoms,energy_per_atom_mae_meV_per_atom,forces_mae_meV_per_A,stress_mae_meV_per_A3"
    )
    assert r"stress MAE (meV/\AA{}$^3$)" in table.latex()
    assert table.rows[0].values["stress_mae"] == pytest.approx(0.4)


def test_what_is_not_defined_is_a_dash_and_an_empty_cell():
    without_free = ErrorTotals(
        structures=1, atoms=2, totals={"energy_mae": 0.1, "forces_mae": 0.0}, counts={"energy_mae": 1, "forces_mae": 0}
    )
    table = errors_table({"a": {"": without_free}, "b": {"": totals(1, 0.3, 0.2)}}, preset=None, group_by=None)
    assert [row.values.get("forces_mae") for row in table.rows] == [None, pytest.approx(200), None]
    assert table.csv().splitlines()[1].endswith(",")
    assert re.search(r"^a .* –$", table.text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("value", "text"), [(1234.567, "1234.57"), (-0.5, "-0.50"), (0.0, "0.00"), (0.0123, "0.012"), (3.21e-9, "3.2e-09")]
)
def test_small_numbers_keep_two_digits_that_matter(value, text):
    assert Column(key="x", heading="x").text(value) == text


def test_signs_that_latex_reserves_are_escaped():
    table = ResultTable(title="t", label="l", columns=[], rows=[Row(label="a_b & 5% #1 ~^{}\\", values={})])
    assert r"a\_b \& 5\% \#1 \textasciitilde{}\textasciicircum{}\{\}\textbackslash{}" in table.latex()


def test_names_that_make_no_table_are_refused():
    with pytest.raises(ConfigError, match=r"unknown table 'mptrjj' \(did you mean 'mptrj'\?\)"):
        preset_of("mptrjj")
    with pytest.raises(ConfigError, match="'val': named twice"):
        check_names(["val", "x", "val"], None)
    with pytest.raises(ConfigError, match=r"'val_id': not in the table OC20.*did you mean 'id'|known: id, ood_ads"):
        check_names(["val_id"], preset_of("oc20"))
    with pytest.raises(ConfigError, match="the table OC20 S2EF, validation has no groups"):
        preset_of("oc20").grouped_by("subset")
    assert preset_of("spice").grouped_by("family").group_by == "family"
    with pytest.raises(DataError, match="NAME=SRC"):
        errors_table({}, preset=None, group_by=None)


def test_the_outputs_that_a_table_needs():
    assert preset_of("mptrj").outputs == ("energy", "forces", "stress")
    assert preset_of("oc20").outputs == ("energy", "forces")
