"""`escaip data spice`, `mptrj`, `md22` and `rmd17` as users call them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from raw_cases import mptrj_entry, sgdml_arrays, spice_group, write_spice

from escaip_fairchem.cli import data, data_molecules
from escaip_fairchem.cli.main import main
from escaip_fairchem.data.options import ConvertOptions
from escaip_fairchem.data.published_sets import MoleculeOptions, MPtrjOptions, SpiceOptions
from escaip_fairchem.data.splits import SplitOptions

COMMON = {
    "min_distance": 0.4,
    "max_force": 30.0,
    "limit": 7,
    "shard_rows": 9,
    "split": SplitOptions(parts=(5, 2), seed=4),
}
WORDS = "--min-distance 0.4 --max-force 30 --limit 7 --shard-size 9 --split 5 2 --seed 4"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One file of each set, in the working folder."""
    monkeypatch.chdir(tmp_path)
    write_spice(Path("s.hdf5"), {f"m{k}": spice_group(f"C{'C' * k}", [6], frames=3, seed=k) for k in range(8)})
    entries = {f"mp-{k}": {f"mp-{k}-0-0": mptrj_entry(f"mp-{k}", energy=-10.0 - k)} for k in range(8)}
    Path("m.json").write_text(json.dumps(entries))
    np.savez("md22_DHA.npz", **sgdml_arrays(20))
    np.savez("md22_AT-AT.npz", **sgdml_arrays(20))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "sets"),
    [
        (["spice", "s.hdf5", "out"], ["out"]),
        (["mptrj", "m.json", "out", "--split", "0.5", "0.25", "0.25"], ["out"]),
        (["md22", "md22_DHA.npz", "md22_AT-AT.npz", "out", "--split", "10", "5"], ["out/dha", "out/at_at"]),
        (["rmd17", ".", "out", "--name", "a", "b"], ["out/a", "out/b"]),
        (["convert", "m.json", "out", "--format", "mptrj", "--energy-key", "corrected_total_energy"], ["out"]),
    ],
)
def test_commands_write_data_sets_and_print_their_reports(
    folder: Path, words: list[str], sets: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(["data", *words, "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    for out in sets:
        assert (folder / out / "train/data.0000.aselmdb").is_file()
        assert (folder / out / "normalizers/forces.npz").is_file()
        assert f"dataset section: {out}/dataset.yml" in printed
    assert main(["data", *words, "--workers", "1"]) == 0  # complete, and left alone


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["spice", "absent.hdf5", "out"], "no file of the format spice matches 'absent.hdf5'"),
        (["mptrj", "s.hdf5", "out"], "no JSON object"),
        (["mptrj", "m.json", "out", "--split-by", "nothing"], "no structure has an entry 'nothing'"),
        (["md22", "md22_DHA.npz", "out", "--split", "30", "5"], "asks for 35 structures, and 20 are usable"),
        (["md22", "md22_DHA.npz", "out", "--name", "a", "b"], "--name gives 2 names for 1 files"),
        (["spice", "s.hdf5", "out", "--split", "0.5"], "fractions must add up to 1"),
    ],
)
def test_mistakes_are_one_message_and_exit_status_2(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["data", *words, "--workers", "1"]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["spice"], SpiceOptions()),
        (["mptrj"], MPtrjOptions()),
        (["md22"], MoleculeOptions(form="md22")),
        (["rmd17"], MoleculeOptions(form="rmd17")),
        (
            ["spice", *WORDS.split(), "--energy", "total", "--selection", "all", "--subtract-references"],
            SpiceOptions(energy="total", selection="all", subtract_references=True, **COMMON),
        ),
        (
            ["mptrj", *WORDS.split(), "--energy", "uncorrected", "--split-by", "sid"],
            MPtrjOptions(energy="uncorrected", split_by="sid", **COMMON),
        ),
        (
            ["md22", *WORDS.split(), "--no-subtract-references"],
            MoleculeOptions(form="md22", subtract_references=False, **COMMON),
        ),
    ],
)
def test_every_option_reaches_the_conversion(words: list[str], options: SpiceOptions | MPtrjOptions | MoleculeOptions):
    parser = argparse.ArgumentParser()
    data.add_parser(parser.add_subparsers())
    args = parser.parse_args(["data", words[0], "in", "out", *words[1:]])
    made = data_molecules._molecule_options(args) if words[0] in ("md22", "rmd17") else args.options_of(args)
    assert made == options
    converted: ConvertOptions = made.convert_options()
    assert (converted.limits.max_force, converted.split) == (options.max_force, options.split)
    assert (converted.limit, converted.shard_rows) == (options.limit, options.shard_rows)
