"""What the documents say about data and commands agrees with what the code does."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from escaip_fairchem.cli import data
from escaip_fairchem.data.checks import Reason
from escaip_fairchem.data.report import COLUMNS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DATASETS = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def test_installing_fairchem_again_cannot_bring_another_major_version():
    requirements = re.findall(r"pip install [^`\n]*?(fairchem-core[^\s`]*)", README)
    assert requirements
    for requirement in map(Requirement, requirements):
        assert not requirement.specifier.contains("2.0.0"), requirement


def test_the_commands_that_evaluate_are_those_that_find_a_cpu():
    """Only `fairchem main` falls back to the CPU; upstream's own form wants to talk to a GPU."""
    commands = re.findall(r"^fairchem .*--mode.*$", README, flags=re.MULTILINE)
    assert [re.findall(r"--mode (\S+)", command) for command in commands] == [["validate"], ["predict"]]
    assert all(command.startswith("fairchem main ") for command in commands)
    assert "dataset.test.src=" in commands[1]


def test_every_reason_and_column_is_described():
    for reason in Reason:
        assert re.search(rf"^\|.*\b{reason.value.removeprefix('missing ')}", DATASETS, flags=re.MULTILINE), reason
    heading = next(line for line in DATASETS.splitlines() if line.startswith("split  structures"))
    assert heading.split() == ["split", *" ".join(title for title, _ in COLUMNS).split()]
    assert "mean |F|" not in DATASETS.replace("\\", "")  # the numbers are means over components


@pytest.mark.parametrize("name", ["oc20", "oc22", "spice", "mptrj", "md22", "rmd17"])
def test_published_files_lie_where_the_page_of_benchmarks_puts_them(name: str):
    commands = re.findall(rf"^escaip data {name} ([^#\n]+)", DATASETS, flags=re.MULTILINE)
    assert commands
    shown = {tuple(command.split()) for command in re.findall(rf"escaip data {name} ([^`\n]+)", BENCHMARKS)}
    outputs = {words[-1]: words for words in shown}
    for words in (command.split(" --")[0].split() for command in commands):
        assert all(path == f"raw/{name}" or path.startswith(f"raw/{name}/") for path in words[:-1]), words
        assert (
            outputs.get(words[-1], tuple(words)) == tuple(words) or name == "md22"
        )  # other molecules, by their own names
    assert outputs or name == "rmd17"  # which the paper has no benchmark of


def test_every_option_that_is_described_exists():
    """In a section about a command, named in its heading, with that command; elsewhere with `convert`."""
    parser = argparse.ArgumentParser()
    data.add_parser(parser.add_subparsers())
    commands = parser._subparsers._group_actions[0].choices["data"]._subparsers._group_actions[0].choices
    described = set()
    for section in re.split(r"^#+ ", DATASETS, flags=re.MULTILINE):
        heading = section.split("\n", maxsplit=1)[0]
        names = re.findall(r"`escaip data (\w+)`", heading) or ["convert"]
        described |= set(names)
        for name in names:
            words = re.sub(r"^(fairchem|escaip evaluate) .*$", "", section, flags=re.MULTILINE)  # which run in a test
            options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", words))
            assert options <= set(commands[name]._option_string_actions), (heading, name)
    assert {"spice", "mptrj", "md22", "rmd17"} <= described
