"""What is given to read: never written to, never waited for, never held in memory, and reported where it is odd."""

from __future__ import annotations

import os
import sqlite3
import weakref
from pathlib import Path

import pytest
from ase.db import connect
from ase.io import write
from structure_cases import slab

from escaip_fairchem.data import staging
from escaip_fairchem.data.convert import convert
from escaip_fairchem.data.options import ConvertOptions
from escaip_fairchem.data.sources import Chunk, Source, find_files, read_chunk
from escaip_fairchem.data.splits import SplitOptions
from escaip_fairchem.errors import DataError

ALL = SplitOptions(parts=(1.0,), shuffle=False)


def skips_of(folder: Path, out: Path, form: str | None = None) -> dict[str, tuple[str, str]]:
    summary = convert([str(folder)], out, ConvertOptions(split=ALL, form=form))
    return {Path(skip["file"]).name: (skip["reason"], skip["detail"]) for skip in summary["skipped"]}


@pytest.mark.parametrize("form", [None, "db"])
def test_databases_of_other_programs_are_not_written_to(tmp_path: Path, form: str | None):
    folder = tmp_path / "in"
    folder.mkdir()
    with sqlite3.connect(folder / "photos.db") as foreign:
        foreign.execute("CREATE TABLE photos (name TEXT)")
    foreign.close()
    (folder / "empty.db").touch()
    with connect(folder / "good.db") as database:
        database.write(slab(0))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    skips = skips_of(folder, tmp_path / "out", form)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert set(skips) == {"photos.db", "empty.db"}
    assert skips["photos.db"] == (
        "unreadable file",
        "an SQLite file, but no database of ASE: it has no table 'systems'",
    )


def test_links_to_nothing_and_devices_are_reported(tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "good.extxyz", slab(0))
    (folder / "gone.extxyz").symlink_to(tmp_path / "nowhere")
    (folder / "loop.extxyz").symlink_to(folder / "loop.extxyz")
    os.mkfifo(folder / "pipe.extxyz")  # to open it would wait for ever
    odd = {"gone.extxyz", "loop.extxyz", "pipe.extxyz"}
    for number, given in enumerate([folder, folder / "*.extxyz"]):
        skips = skips_of(given, tmp_path / f"out{number}")
        assert set(skips) == odd
        assert {reason for reason, _ in skips.values()} == {"unreadable file"}
        assert all("neither a file nor a folder" in detail for _, detail in skips.values())


@pytest.mark.parametrize("given", ["gone", "/dev/null"])
def test_nothing_but_such_names_is_one_message(tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("gone").symlink_to("nowhere")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        convert([given], tmp_path / "out", ConvertOptions())


def test_folders_that_a_pattern_matches_are_searched(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / "in" / name / "deep").mkdir(parents=True)
        write(tmp_path / "in" / name / "deep" / "x.extxyz", slab(0))
    found = find_files([str(tmp_path / "in" / "*")], exclude=tmp_path / "out")
    assert [source.name for source in found] == ["a/deep/x.extxyz", "b/deep/x.extxyz"]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("extxy", r"ASE knows no format 'extxy' \(did you mean 'extxyz'\?\)"),
        ("png", "ASE writes 'png', but cannot read it"),
    ],
)
def test_a_format_that_cannot_be_read_is_no_fault_of_the_files(form: str, words: str):
    with pytest.raises(DataError, match=words):
        ConvertOptions(form=form)
    assert [ConvertOptions(form=known).form for known in ("vasp-out", "db", "aselmdb")] == ["vasp-out", "db", "aselmdb"]


def test_references_cannot_be_subtracted_from_energies_that_may_be_missing():
    from escaip_fairchem.data.checks import Limits

    with pytest.raises(DataError, match="needs the energy of every structure: add energy to --require"):
        ConvertOptions(subtract_references=True, limits=Limits(require=("forces",)))


def test_structures_are_let_go_of_as_soon_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "in.extxyz.gz", [slab(k) for k in range(30)], format="extxyz")  # one chunk, however large
    made: list[weakref.ref] = []
    alive: list[int] = []
    original = staging.to_structure

    def watching(*arguments):
        alive.append(sum(reference() is not None for reference in made))
        structure = original(*arguments)
        made.append(weakref.ref(structure))
        return structure

    monkeypatch.setattr(staging, "to_structure", watching)
    convert([str(tmp_path / "in.extxyz.gz")], tmp_path / "out", ConvertOptions(split=ALL))
    assert len(made) == 30
    assert max(alive) <= 2


OUTCAR_HEAD = """ vasp.6.4.2
   VRHFIN =He:
   TITEL  = PAW_PBE He 05Jan2001
 POTCAR:    PAW_PBE He 05Jan2001
   ions per type =               1
   ISPIN  =      1    spin polarized calculation?
"""
OUTCAR_STEP = """----------------------------- Iteration      {number}(   1)  -----------------------------
      direct lattice vectors                 reciprocal lattice vectors
     5.000000000  0.000000000  0.000000000     0.200000000  0.000000000  0.000000000
     0.000000000  5.000000000  0.000000000     0.000000000  0.200000000  0.000000000
     0.000000000  0.000000000  5.000000000     0.000000000  0.000000000  0.200000000

 POSITION                                       TOTAL-FORCE (eV/Angst)
 -----------------------------------------------------------------------------------
      0.00000      0.00000      0.00000         0.100000      0.000000      {force}
 -----------------------------------------------------------------------------------
  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)
  ---------------------------------------------------
  free  energy   TOTEN  =        -1.00000000 eV

  energy  without entropy=       -1.00000000  energy(sigma->0) =       -1.00000000
"""


def test_an_outcar_is_read_step_by_step(tmp_path: Path):
    """ASE's reader of whole files would keep all steps in memory, and lose those before a broken one."""
    path = tmp_path / "OUTCAR"
    steps = [OUTCAR_STEP.format(number=number, force=force) for number, force in ((1, "0.2"), (2, "0.3"), (3, "oops"))]
    path.write_text(OUTCAR_HEAD + "".join(steps))
    chunk = Chunk(number=0, source=Source(path=path, name="OUTCAR"), kind="other", form="vasp-out")
    first, second, broken = read_chunk(chunk)
    assert [atoms.get_forces()[0, 2] for atoms in (first, second)] == pytest.approx([0.2, 0.3])
    assert "oops" in broken.detail
