"""Formation energies per atom beside relaxed structures, with numbers worked out by hand."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import ase.io
import pytest
from ase import Atoms
from simulation_cases import crystals, emt, evaluate

from escaip_fairchem.errors import ConfigError, DataError
from escaip_fairchem.evaluate.formation_energies import FormationEnergies
from escaip_fairchem.evaluate.relaxation_pool import RelaxationOptions
from escaip_fairchem.evaluate.relaxation_table import COLUMNS, LINES, TABLE, RowFile, read_table, write_table
from escaip_fairchem.evaluate.relaxations import Part, RunOptions, relax_files
from escaip_fairchem.evaluate.structure_files import Item, StructureFiles

ELEMENTS = {"Cu": -4.0, "O": -5.0}
METALS = {"Cu": -1.0, "Ag": 0.5, "Au": 0.25, "Pd": 0.0}


def formation(**changes: Any) -> FormationEnergies:
    return FormationEnergies(**{"model_name": "ours", "references": ELEMENTS, **changes})


def test_by_hand() -> None:
    # Four copper and two oxygen atoms cost 4·4 + 2·5 = 26 eV as elements; -29 + 26 = -3 eV in six atoms.
    assert formation().per_atom("a", "Cu4O2", -29.0) == pytest.approx(-0.5)
    # Corrections are of the whole structure: -0.6 eV more in six atoms.
    corrected = formation(corrections={"a": -0.6, "b": 0.0})
    assert corrected.per_atom("a", "Cu4O2", -29.0) == pytest.approx(-0.6)
    assert corrected.per_atom("b", "Cu4O2", -29.0) == pytest.approx(-0.5)
    assert formation().per_atom("a", "Cu", -4.0) == 0.0, "an element in its reference state"


def row(identifier: str, formula: str | None, energy: float | None) -> dict[str, Any]:
    known = {"material_id": identifier, "formula": formula, "energy": energy, "n_steps": 3}
    return {name: known.get(name) for name in COLUMNS} | {"converged": energy is not None}


def test_the_tables_have_a_column_for_it_beside_the_structure(tmp_path: Path) -> None:
    rows = RowFile(tmp_path / "rows")
    rows.append(0, row("a", "Cu4O2", -29.0))
    rows.append(1, row("b", None, None))
    write_table(rows, tmp_path, {"energy": "escaip_energy"}, formation())
    lines = [json.loads(line) for line in gzip.decompress((tmp_path / LINES).read_bytes()).splitlines()]
    assert [line["e_form_per_atom_ours"] for line in lines] == [pytest.approx(-0.5), None]
    assert list(lines[0])[-2:] == ["e_form_per_atom_ours", "structure"]
    with gzip.open(tmp_path / TABLE, "rt", newline="") as file:
        table = list(csv.DictReader(file))
    assert [one["e_form_per_atom_ours"] for one in table] == ["-0.5", ""]
    assert table[0]["escaip_energy"] == "-29.0"
    back = list(read_table(tmp_path / LINES, {"energy": "escaip_energy"}, ["e_form_per_atom_ours"]))
    assert set(back[0]) == set(COLUMNS)


def relax(inputs: Path, out: Path, *, potential: Any = None, **run: Any) -> dict[str, Any]:
    files = StructureFiles([str(inputs)], exclude=out)
    options = RelaxationOptions(fmax=0.2, max_steps=4)
    return relax_files(lambda: potential or emt(), files, out, options, RunOptions(**run))


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress((out / LINES).read_bytes()).splitlines()]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    ase.io.write(tmp_path / "in.extxyz", crystals(4))
    return tmp_path / "in.extxyz"


def test_relaxed_structures_have_them(inputs: Path, tmp_path: Path) -> None:
    summary = relax(inputs, tmp_path / "out", formation=formation(references=METALS))
    for line in lines_of(tmp_path / "out"):
        element = line["structure"]["sites"][0]["species"][0]["element"]
        assert line["e_form_per_atom_ours"] == pytest.approx(line["energy_per_atom"] - METALS[element])
    assert summary["formation_energies"]["element_references"] == METALS
    assert summary["formation_energies"]["corrections_sha256"] is None


def test_parts_are_joined_whatever_columns_they_had(inputs: Path, tmp_path: Path) -> None:
    relax(inputs, tmp_path / "whole", formation=formation(references=METALS))
    out = tmp_path / "out"
    relax(inputs, out, part=Part(number=1, of=2), formation=formation(references=METALS, model_name="first"))
    relax(inputs, out, part=Part(number=2, of=2))
    relax(inputs, out, formation=formation(references=METALS))
    assert (out / LINES).read_bytes() == (tmp_path / "whole" / LINES).read_bytes()


@pytest.mark.parametrize("part", [None, Part(number=2, of=2)])
def test_a_finished_run_gets_other_columns_without_being_done_again(
    part: Part | None, inputs: Path, tmp_path: Path
) -> None:
    relax(inputs, tmp_path / "whole", part=part, formation=formation(references=METALS))
    out = tmp_path / "out"
    first = relax(inputs, out, part=part)
    folder = out if part is None else part.folder(out)
    before = lines_of(folder)

    def never() -> Any:
        raise AssertionError("all is relaxed")

    files = StructureFiles([str(inputs)], exclude=out)
    options = RelaxationOptions(fmax=0.2, max_steps=4)
    # An element that lacks its reference changes nothing that is there.
    lacking = RunOptions(part=part, formation=formation(references={"Cu": -1.0}))
    with pytest.raises(DataError, match="holds Ag"):
        relax_files(never, files, out, options, lacking)
    assert lines_of(folder) == before
    for model in ("ours", "theirs", "ours"):
        run = RunOptions(part=part, formation=formation(references=METALS, model_name=model))
        again = relax_files(never, files, out, options, run)
        assert f"e_form_per_atom_{model}" in lines_of(folder)[0]
    expected = tmp_path / "whole" if part is None else part.folder(tmp_path / "whole")
    assert (folder / LINES).read_bytes() == (expected / LINES).read_bytes()
    assert again["seconds"] == first["seconds"]
    with pytest.raises(DataError, match=r"fmax: 0.2 there, 0.1 now.*--overwrite"):
        relax_files(never, files, out, RelaxationOptions(fmax=0.1, max_steps=4), run)


def item(identifier: str, atoms: Atoms | None) -> Item:
    return Item(number=0, identifier=identifier, place="in.extxyz:3", atoms=atoms)


def test_what_is_missing_is_told_before_anything_is_relaxed(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"in.extxyz:3: 'wbm-1-1' holds Fe, for which --element-references .*\(.*Cu, O"):
        formation().check(item("wbm-1-1", Atoms("CuFeO")))
    formation().check(item("wbm-1-1", Atoms("CuO")))
    formation(corrections={}).check(item("x", None))  # one that cannot be read has a row without an energy
    with pytest.raises(DataError, match=r"--energy-corrections has nothing for 'wbm-1-1' among its 1 ids; give 0"):
        formation(corrections={"wbm-1-2": 0.0}).check(item("wbm-1-1", Atoms("CuO")))

    class Never:
        has_stress = True

        def evaluate(self, structures: Any) -> Any:
            raise AssertionError("too late")

    with pytest.raises(DataError, match=r"'m-1' holds Ag"):
        relax(inputs, tmp_path / "out", potential=Never(), formation=formation())
    assert not (tmp_path / "out/.partial").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("e.yml", "Cu: -4.0\nO: -5\nY: -6.4  # no yes\nN: -1e-3\n"),
        ("e.json", '{"Cu": -4.0, "O": -5, "Y": -6.4, "N": -0.001}'),
    ],
)
def test_files_of_references(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "c.yml").write_text("wbm-1-1: -0.6\n")
    found = FormationEnergies.read(tmp_path / name, model_name="ours", corrections=tmp_path / "c.yml")
    assert found.references == {"Cu": -4.0, "O": -5.0, "Y": -6.4, "N": -0.001}
    assert found.corrections == {"wbm-1-1": -0.6}
    assert found.column == "e_form_per_atom_ours"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Xx: 1.0", "'Xx' is no element"),
        ("Cu: low", "'Cu': 'low' is no energy"),
        ("Cu: .nan", "'Cu': nan is no energy"),
        ("Cu: true", "'Cu': True is no energy"),
        ("- Cu", "holds list"),
        ("", "holds NoneType"),
        ("Cu: [", "is neither YAML nor"),
    ],
)
def test_files_that_hold_something_else(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "e.yml").write_text(text)
    with pytest.raises(ConfigError, match=rf"--element-references .*e\.yml: {message}"):
        FormationEnergies.read(tmp_path / "e.yml", model_name="ours")


def test_words_that_contradict_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "e.yml").write_text("Cu: -4.0")
    (tmp_path / "model.pt").touch()
    references = ("--element-references", tmp_path / "e.yml")
    for words, message in (
        (("--model-name", "x"), "--model-name: formation energies need --element-references FILE too"),
        (("--energy-corrections", "c.yml"), "--energy-corrections: formation energies need"),
        (("--element-references", "none.yml"), "--element-references none.yml: cannot be read"),
        ((*references, "--model-name", "a b"), "--model-name 'a b'"),
        ((*references, "--columns", "energy=e_form_per_atom_escaip"), "would be called 'e_form_per_atom_escaip'"),
    ):
        assert evaluate("relax", tmp_path / "model.pt", tmp_path / "in", tmp_path / "out", *words) == 2
        assert message in capsys.readouterr().err
