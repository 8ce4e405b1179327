"""Every command of docs/benchmarks.md and docs/ablations.md runs, on the benchmarks' data in little.

Downloads are left out; files of the published formats take their place. Sizes are overridden, and simulations cut.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_data import CONVERSIONS, WRITERS
from config_runs import run_command
from test_every_config import SIZES, TRAINING

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]

DOCUMENTS = Path(__file__).parents[2] / "docs"
LEFT_OUT = ("curl ", "mkdir ")
SHORTER = {"--steps 200000": "--steps 20"}


def sections(document: str) -> dict[str, list[str]]:
    """Commands of a document by the heading above them, downloads left out."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"^## ", (DOCUMENTS / document).read_text(), flags=re.MULTILINE):
        blocks = re.findall(r"^```sh\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
        commands = [line for block in blocks for line in block.splitlines() if not line.startswith(LEFT_OUT)]
        if commands:
            found[section.splitlines()[0]] = commands
    return found


def shortened(command: str) -> tuple[str, list[str]]:
    """Program and words of a command, with sizes at which it takes seconds."""
    for long, short in SHORTER.items():
        command = command.replace(long, short)
    program, *words = shlex.split(command)
    if words[0] == "main":
        kind = "equiformer" if "equiformer" in command else "escaip"
        words += ["--cpu", *(f"model.backbone.{key}={value}" for key, value in SIZES[kind].items())]
        epochs = {"max_epochs": 2} if "--checkpoint" in words else {}  # one more than the training that it continues
        words += [f"optim.{key}={value}" for key, value in {**TRAINING, **epochs}.items()]
    elif words[0] == "evaluate":
        words.append("--cpu")
        if words[1] == "relax":  # by a model that knows nothing yet, crystals would soon collapse
            words += ["--steps", "1"]
    return program, words


BENCHMARKS = sections("benchmarks.md")


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
        kinds = [" ".join(command.split()[:2]) for command in commands if not command.startswith("python ")]
        assert list(dict.fromkeys(kinds)) == ["escaip data", "fairchem main", "escaip evaluate"], name


def test_what_is_downloaded_goes_to_folders_that_are_made_before():
    text = (DOCUMENTS / "benchmarks.md").read_text()
    for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        if "curl " in block:
            target = re.search(r"(?:-C|-o) (raw/\w+)", block)
            assert target, block
            assert block.startswith(f"mkdir -p {target[1]}\n"), block


@pytest.mark.parametrize("name", BENCHMARKS)
def test_its_commands_run(name: str, tmp_path: Path):
    for folder in {"oc20", "oc22", "spice", "mptrj", "md22", "wbm"}:
        WRITERS[folder](tmp_path / "raw" / folder)
    for command in BENCHMARKS[name]:
        if command.startswith("python "):
            subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=tmp_path, check=True)
            continue
        program, words = shortened(command)
        result = run_command(program, words, tmp_path)
        assert result.status == 0, f"{command}\n{result.text[-4000:]}"
        if "--out" in words:
            written = tmp_path / words[words.index("--out") + 1]
            assert list(written.glob("*.csv")), command
            if words[:2] == ["evaluate", "metrics"]:
                assert "nan" not in (written / "metrics.csv").read_text()


def test_the_ablations_commands_run(tmp_path: Path):
    WRITERS["oc20"](tmp_path / "raw" / "oc20")
    for words in CONVERSIONS[:3]:
        assert run_command("escaip", words.split(), tmp_path).status == 0
    (commands,) = sections("ablations.md").values()
    assert [" ".join(command.split()[:2]) for command in commands] == [
        "fairchem main",
        "escaip evaluate",
        "escaip plot",
    ]
    for command in commands:
        program, words = shortened(command)
        result = run_command(program, words, tmp_path)
        assert result.status == 0, result.text[-4000:]
    assert (tmp_path / "results/ablation/l2_both/metrics.csv").is_file()
    assert (tmp_path / "results/ablation/scaling_parameters.png").is_file()
