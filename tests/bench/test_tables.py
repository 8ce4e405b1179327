"""Tables: what people and programs read."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from escaip_fairchem.bench.requirements import MISSED, NOT_MEASURED, REACHED, Finding, Requirement, requirements_table
from escaip_fairchem.bench.tables import Table, format_number, text_of
from escaip_fairchem.bench.timing import Spread

TABLE = Table(
    title="Times",
    columns=("model", "time (s)", "remark"),
    rows=[{"model": "a", "time (s)": 0.123456789}, {"model": "b|c", "remark": "dropped: no time"}],
    notes=["a note"],
)


def test_a_table_is_markdown_with_its_notes():
    assert TABLE.markdown().splitlines() == [
        "## Times",
        "",
        "| model | time (s) | remark           |",
        "|-------|----------|------------------|",
        "| a     | 0.1235   |                  |",
        "| b/c   |          | dropped: no time |",
        "",
        "- a note",
    ]


def test_a_table_as_csv_keeps_all_digits(tmp_path: Path):
    path = TABLE.write_csv(tmp_path / "new" / "times.csv")
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows == [
        {"model": "a", "time (s)": "0.123456789", "remark": ""},
        {"model": "b|c", "time (s)": "", "remark": "dropped: no time"},
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0000"), (1.5, "1.50"), (12.34, "12.3"), (1234.5, "1,234"), (1.23e-6, "1.23e-06"), (5e7, "5.00e+07")],
)
def test_numbers_have_the_digits_that_matter(value: float, text: str):
    assert format_number(value) == text


def test_what_is_missing_is_empty():
    assert [text_of(cell) for cell in (None, math.nan, True, 83299466)] == ["", "", "yes", "83,299,466"]


def test_a_spread_of_nothing_is_not_a_number():
    assert math.isnan(Spread.of([]).median)
    assert Spread.of([1.0, 2.0, 6.0]) == Spread(mean=3.0, std=pytest.approx(2.1602469), median=2.0, count=3)


FASTER = Requirement(what="faster", device="cpu", bound=1.5)
SMALLER = Requirement(what="smaller", device="cuda", bound=5.0, unit="%", at_most=True)
EQUAL = Requirement(what="faster and equal", device="cpu", bound=1.5, also="equal")


@pytest.mark.parametrize(
    ("finding", "verdict"),
    [
        (Finding(requirement=FASTER, value=1.5), REACHED),
        (Finding(requirement=FASTER, value=1.49), MISSED),
        (Finding(requirement=FASTER), NOT_MEASURED),
        (Finding(requirement=SMALLER, value=5.0), REACHED),
        (Finding(requirement=SMALLER, value=5.1), MISSED),
        (Finding(requirement=EQUAL, value=9.0, holds=True), REACHED),
        (Finding(requirement=EQUAL, value=9.0, holds=False), MISSED),
        (Finding(requirement=EQUAL, value=9.0), NOT_MEASURED),
    ],
)
def test_verdicts(finding: Finding, verdict: str):
    assert finding.verdict == verdict


def test_the_table_of_requirements_shows_target_and_verdict():
    findings = [Finding(requirement=EQUAL, value=2.0, holds=True, how="2 s / 1 s"), Finding(requirement=SMALLER)]
    rows = requirements_table(findings, []).rows
    assert rows[0] == {
        "what": "faster and equal", "where": "CPU", "wanted": "at least 1.5×, equal", "measured": "2.00×",
        "verdict": REACHED, "from": "2 s / 1 s",
    }  # fmt: skip
    assert rows[1]["where"] == "GPU"
    assert rows[1]["wanted"] == "at most 5%"
    assert rows[1]["measured"] == rows[1]["verdict"] == NOT_MEASURED
