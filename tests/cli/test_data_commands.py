"""`escaip data` as users call it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from escaip_fairchem.cli import data
from escaip_fairchem.cli.main import main


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Ten structures, one without forces."""
    structures = []
    for number in range(10):
        atoms = Atoms("CO", [[0, 0, 0], [0, 0, 1.1 + 0.01 * number]])
        results = {"energy": -10.0 - number, "forces": [[0, 0, 0.1], [0, 0, -0.1]]}
        if number == 3:
            del results["forces"]
        atoms.calc = SinglePointCalculator(atoms, **results)
        structures.append(atoms)
    write(tmp_path / "in.extxyz", structures)
    return tmp_path / "in.extxyz"


def test_convert_prints_what_it_wrote_and_what_it_skipped(frames: Path, capsys: pytest.CaptureFixture[str]):
    out = frames.parent / "out"
    assert main(["data", "convert", str(frames), str(out), "--workers", "1", "--split", "0.8", "0.1", "0.1"]) == 0
    printed = capsys.readouterr()
    assert "10 structures read, 9 usable, 1 skipped, 0 not needed" in printed.out
    assert "missing forces" in printed.out
    assert "in.extxyz:3" in printed.out
    assert str(out / "dataset.yml") in printed.out
    assert "reading: 1 chunks" in printed.err  # plain lines, because this is no terminal
    assert "\r" not in printed.err
    for name in ("dataset.yml", "dataset_conservative.yml", "element_references.npz", "summary.json", "report.txt"):
        assert (out / name).is_file()


def test_nothing_usable_is_exit_status_2_with_the_reasons(frames: Path, capsys: pytest.CaptureFixture[str]):
    out = frames.parent / "out"
    assert main(["data", "convert", str(frames), str(out), "--require", "stress", "--workers", "1"]) == 2
    printed = capsys.readouterr()
    assert "missing stress" in printed.err
    assert "Traceback" not in printed.err
    # and the folder is free for the next attempt
    assert main(["data", "convert", str(frames), str(out), "--require", "energy", "--workers", "1"]) == 0


def test_every_option_reaches_the_conversion():
    words = (
        "--format extxyz --limit 7 --energy-key E --forces-key F --stress-key S --id-key mp_id --energy-units kcal/mol "
        "--force-units kcal/mol/Ang --stress-units GPa --negate-stress --require energy --min-distance 0.1 "
        "--max-force inf --split 5 2 --split-by mp_id --seed 4 --no-shuffle --subtract-references --shard-size 9"
    )
    options = data._convert_options(_parse("convert", "a", "b", "out", *words.split()))
    assert options.form == "extxyz"
    assert (options.limit, options.shard_rows, options.split_by) == (7, 9, "mp_id")
    labels = options.labels
    assert (labels.energy_key, labels.forces_key, labels.stress_key, labels.id_key) == ("E", "F", "S", "mp_id")
    assert (labels.energy_units, labels.force_units, labels.stress_units) == ("kcal/mol", "kcal/mol/Ang", "GPa")
    assert labels.negate_stress
    assert options.limits.require == ("energy",)
    assert (options.limits.min_distance, options.limits.max_force) == (0.1, float("inf"))
    assert (options.split.parts, options.split.seed, options.split.shuffle) == ((5, 2), 4, False)
    assert options.subtract_references
    assert options.linear_references


def test_the_defaults_of_the_command_are_those_of_the_functions():
    from escaip_fairchem.data.demo_set import DemoOptions
    from escaip_fairchem.data.options import ConvertOptions

    assert data._convert_options(_parse("convert", "in", "out")) == ConvertOptions()
    args = _parse("demo", "out")
    assert DemoOptions(train=args.n_train, val=args.n_val, test=args.n_test, seed=args.seed) == DemoOptions()


def _parse(*words: str) -> object:
    import argparse

    parser = argparse.ArgumentParser()
    data.add_parser(parser.add_subparsers())
    return parser.parse_args(["data", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convert", "absent.xyz", "out"], "no file matches 'absent.xyz'"),
        (["convert", "in.extxyz", "out", "--energy-units", "kcal"], "unknown unit 'kcal'"),
        (["convert", "in.extxyz", "out", "--require", "force"], "did you mean 'forces'?"),
        (["convert", "in.extxyz", "out", "--split", "0.5", "0.1"], "fractions must add up to 1"),
        (["convert", "in.extxyz", "out", "--no-linear-references", "--subtract-references"], "needs references"),
        (["convert", "in.extxyz", "in.extxyz"], "is a file; the last argument is the folder to write into"),
        (["convert", "in.extxyz", "in.extxyz/out"], "cannot write into OUT"),
        (["convert", "in.extxyz", "out", "--seed", "-1"], "--seed must be a whole number, 0 or above"),
        (["convert", "in.extxyz", "out", "--format", "extxy"], "did you mean 'extxyz'?"),
        (["convert", "in.extxyz", "out", "--require", "forces", "--subtract-references"], "add energy to --require"),
        (["demo", "out", "--n-train", "0"], "at least one training frame"),
        (["demo", "out", "--seed", "-1"], "--seed must be a whole number, 0 or above"),
        (["demo", "in.extxyz"], "is a file"),
    ],
)
def test_mistakes_are_one_message_and_exit_status_2(
    frames: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(frames.parent)
    assert main(["data", *words]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not (frames.parent / "out").exists()


def test_demo_prints_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["data", "demo", str(tmp_path / "set"), "--n-train", "3", "--n-val", "1", "--n-test", "0", "--workers", "1"]
    assert main([*words, "--formats", "aselmdb"]) == 0
    printed = capsys.readouterr().out
    assert "train" in printed
    assert str(tmp_path / "set" / "aselmdb" / "dataset.yml") in printed
    assert not (tmp_path / "set" / "lmdb").exists()


def test_help_does_not_wait_for_heavy_imports():
    code = (
        "import sys; from escaip_fairchem.cli import data; import argparse; "
        "data.add_parser(argparse.ArgumentParser().add_subparsers()); "
        "sys.exit(bool({'torch', 'ase', 'numpy', 'lmdb'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
