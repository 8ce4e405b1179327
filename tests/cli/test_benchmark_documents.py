"""Every command of docs/benchmarks.md and docs/ablations.md runs, on the benchmarks' data in little.

Downloads are left out; files of the published formats take their place. Sizes are overridden, and simulations cut.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from benchmark_data import CONVERSIONS, WRITERS
from config_runs import run_command
from test_every_config import smaller

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]

DOCUMENTS = Path(__file__).parents[2] / "docs"
LEFT_OUT = ("curl ", "tar ", "mkdir ")
SHORTER = {"--steps 200000": "--steps 20"}
BLOCK = re.compile(r"^```sh\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
LOOP = re.compile(r"^for (\w+) in ([^;]+); do\n(.*?)^done\n", flags=re.MULTILINE | re.DOTALL)
SETS = {"oc20": ["id", "ood_ads", "ood_cat", "ood_both"], "oc22": ["id", "ood"]}
"""Sets of a benchmark's table of errors."""


def written_out(block: str) -> list[str]:
    """Commands of a block as a shell would run them one after the other: loops turn by turn, broken lines joined."""

    def turns(loop: re.Match[str]) -> str:
        name, values, body = loop.groups()
        return "".join(re.sub(rf"\${name}\b", value, body) for value in values.split())

    return [line.strip() for line in LOOP.sub(turns, block.replace("\\\n", "")).splitlines()]


def sections(document: str) -> dict[str, list[str]]:
    """Commands of a document by the heading above them, downloads left out."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"^## ", (DOCUMENTS / document).read_text(), flags=re.MULTILINE):
        commands = [line for block in BLOCK.findall(section) for line in written_out(block)]
        commands = [line for line in commands if not line.startswith(LEFT_OUT)]
        if commands:
            found[section.splitlines()[0]] = commands
    return found


def shortened(command: str) -> tuple[str, list[str]]:
    """Program and words of a command, with sizes at which it takes seconds."""
    for long, short in SHORTER.items():
        command = command.replace(long, short)
    program, *words = shlex.split(command)
    if words[0] == "main":
        words += ["--cpu", *smaller(command)]
        if "--checkpoint" in words:  # one epoch more than the training that it continues
            words[words.index("optim.max_epochs=1")] = "optim.max_epochs=2"
    elif words[0] == "data":
        words += ["--workers", "1"]  # others would take longer to start than there is to do
    elif words[0] == "evaluate":
        words.append("--cpu")
        if words[1] == "relax":  # by a model that knows nothing yet, crystals would soon collapse
            words += ["--steps", "1"]
    return program, words


def run_in_turn(commands: Sequence[str], folder: Path) -> None:
    """Run commands in a folder and look at what they leave there."""
    for command in commands:
        program, words = shortened(command)
        result = run_command(program, words, folder)
        assert result.status == 0, f"{command}\n{result.text[-4000:]}"
        check_results(words, folder)


def table_of(words: Sequence[str]) -> str | None:
    """The benchmark whose table a command asks for."""
    return words[words.index("--table") + 1] if "--table" in words else None


def sets_of(words: Sequence[str]) -> list[str]:
    """Names of the data sets in a command."""
    return [name for name, equals, _ in (word.partition("=") for word in words) if equals]


def check_results(words: Sequence[str], folder: Path) -> None:
    """Compare the files that a command was to write with what the benchmark needs."""
    out = folder / words[words.index("--out") + 1] if "--out" in words else None
    if words[:2] == ["evaluate", "metrics"] and out is not None:
        text = (out / "metrics.csv").read_text()
        assert "nan" not in text
        if table_of(words) in SETS:
            names = sets_of(words)
            rows = [row[0] for row in csv.reader(text.splitlines())][1:]
            assert rows == ([*names, "mean"] if names == SETS["oc20"] else names)
    elif words[:2] == ["evaluate", "submission"]:
        assert out is not None
        with np.load(out) as predictions:
            for split in sets_of(words):
                assert len(predictions[f"{split}_ids"]) == len(predictions[f"{split}_energy"]) > 0
    elif words[:2] == ["evaluate", "dynamics"]:
        summary = json.loads((folder / words[4] / "summary.json").read_text())
        assert summary["h_mae_integrated"] is not None
    elif words[:2] == ["evaluate", "relax"]:
        assert (folder / words[4] / "relaxed.jsonl.gz").is_file()
    elif words[:2] == ["plot", "scaling"]:
        assert out is not None
        assert (out / "scaling.csv").is_file()
        assert (out / "scaling_parameters.png").is_file()
    elif out is not None:
        assert list(out.glob("*.csv")), words


BENCHMARKS = sections("benchmarks.md")


def test_blocks_are_written_out():
    block = "for s in a b; do\n  one $s.tar \\\n    --x $s\n  two $s\ndone\nthree\n"
    assert [line.split() for line in written_out(block)] == [
        ["one", "a.tar", "--x", "a"],
        ["two", "a"],
        ["one", "b.tar", "--x", "b"],
        ["two", "b"],
        ["three"],
    ]


@pytest.mark.parametrize("document", ["benchmarks.md", "ablations.md"])
def test_blocks_hold_nothing_else_that_a_shell_would_do(document: str):
    for commands in sections(document).values():
        for command in commands:
            assert command.startswith(("escaip ", "fairchem main ")), command
            assert not set(command) & set("$|&;<>#"), command


def test_the_document_has_all_benchmarks_in_four_steps():
    assert list(BENCHMARKS) == [
        "# The paper's benchmarks, from raw download to results table",
        "OC20",
        "OC22",
        "SPICE",
        "MPtrj",
        "MD22",
    ]
    for name, commands in list(BENCHMARKS.items())[1:]:
        kinds = [" ".join(command.split()[:2]) for command in commands]
        further = ["escaip plot"] if name == "OC20" else []
        assert list(dict.fromkeys(kinds)) == ["escaip data", "fairchem main", "escaip evaluate", *further], name


def test_tables_have_all_sets_of_their_benchmark():
    asked = [shlex.split(command)[1:] for commands in BENCHMARKS.values() for command in commands]
    asked = [words for words in asked if table_of(words) in SETS or "submission" in words]
    assert [table_of(words) for words in asked].count(None) == 2
    for words in asked:
        assert sets_of(words) == SETS[table_of(words) or ("oc22" if "ood" in sets_of(words) else "oc20")], words


def test_what_is_downloaded_goes_to_folders_that_are_made_before():
    for block in BLOCK.findall((DOCUMENTS / "benchmarks.md").read_text()):
        if "curl " in block:
            target = re.search(r"(?:-C|-o) (raw/\w+)", block)
            assert target, block
            assert block.startswith(f"mkdir -p {target[1]}\n"), block
            assert block.count("curl -fL ") == block.count("curl "), block  # an error's page is no archive


def test_lines_are_no_longer_than_those_of_the_code():
    text = re.sub(r"^```.*?^```", "", (DOCUMENTS / "benchmarks.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    for line in text.splitlines():
        assert line.startswith("|") or len(line) <= 120, line


@pytest.mark.parametrize("name", BENCHMARKS)
def test_its_commands_run(name: str, tmp_path: Path):
    for folder in ("oc20", "oc22", "spice", "mptrj", "md22", "wbm"):
        WRITERS[folder](tmp_path / "raw" / folder)
    run_in_turn(BENCHMARKS[name], tmp_path)


def test_the_ablations_commands_run(tmp_path: Path):
    WRITERS["oc20"](tmp_path / "raw" / "oc20")
    for words in CONVERSIONS[:3]:
        assert run_command("escaip", words.split(), tmp_path).status == 0
    (commands,) = sections("ablations.md").values()
    kinds = [" ".join(command.split()[:2]) for command in commands]
    assert kinds == ["fairchem main", "escaip evaluate", "escaip plot"]
    run_in_turn(commands, tmp_path)
    assert (tmp_path / "results/ablation/l2_both/metrics.csv").is_file()
    assert (tmp_path / "results/ablation/scaling_parameters.png").is_file()
