"""Lists of relaxations: every structure gets its row, however the work is cut, stopped or shared out."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.constraints import FixInternals
from ase.db import connect
from simulation_cases import converted, crystals, emt, molecule

from escaip_fairchem.errors import ConfigError, DataError
from escaip_fairchem.evaluate.potentials import CalculatorPotential, Result
from escaip_fairchem.evaluate.relaxation_pool import RelaxationOptions
from escaip_fairchem.evaluate.relaxation_table import COLUMNS, LINES, TABLE, RowFile, parse_columns, read_table
from escaip_fairchem.evaluate.relaxations import Part, RunOptions, relax_files
from escaip_fairchem.evaluate.structure_dictionary import from_dictionary, to_dictionary
from escaip_fairchem.evaluate.structure_files import StructureFiles

OPTIONS = RelaxationOptions(fmax=0.2, max_steps=12)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "in.extxyz"
    ase.io.write(path, crystals(6))
    return path


def relax(
    inputs: Path, out: Path, *, potential: Any = None, options: RelaxationOptions = OPTIONS, **run: Any
) -> dict[str, Any]:
    files = StructureFiles([str(inputs)], exclude=out)
    return relax_files(lambda: potential or emt(), files, out, options, RunOptions(**run))


def rows(out: Path) -> list[dict[str, Any]]:
    return list(read_table(out / LINES, {}))


def table(out: Path) -> tuple[bytes, bytes]:
    return (out / LINES).read_bytes(), (out / TABLE).read_bytes()


def test_rows_hold_what_a_relaxation_gives(inputs: Path, tmp_path: Path) -> None:
    summary = relax(inputs, tmp_path / "out")
    found = rows(tmp_path / "out")
    assert [row["material_id"] for row in found] == [f"m-{index}" for index in range(6)]
    assert tuple(found[0]) == COLUMNS
    assert summary["structures"] == 6
    assert summary["converged"] == sum(row["converged"] for row in found) > 0
    for row in found:
        atoms = from_dictionary(row["structure"])
        atoms.calc = EMT()
        assert row["energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        assert row["energy_per_atom"] == pytest.approx(row["energy"] / row["n_atoms"])
        assert row["energy"] <= row["first_energy"]
        assert row["n_frames"] == row["n_steps"] + 1
        assert (row["fmax"] < 0.2) == row["converged"]
        assert bool(row["reason"]) != row["converged"]
        assert row["path_length"] > 0
    csv = gzip.decompress((tmp_path / "out" / TABLE).read_bytes()).decode().splitlines()
    assert csv[0].split(",") == [name for name in COLUMNS if name != "structure"]
    assert len(csv) == 7
    assert json.loads((tmp_path / "out/summary.json").read_text())["fmax"] == 0.2


def test_pool_size_changes_nothing(inputs: Path, tmp_path: Path) -> None:
    for name, batch_atoms in (("one", 1), ("some", 9), ("all", 1000)):
        relax(inputs, tmp_path / name, batch_atoms=batch_atoms)
    assert table(tmp_path / "one") == table(tmp_path / "some") == table(tmp_path / "all")


def test_one_evaluation_per_step_serves_all_and_the_pool_is_refilled(inputs: Path, tmp_path: Path) -> None:
    batches: list[list[int]] = []

    class Counting(CalculatorPotential):
        def evaluate(self, structures: Sequence[Atoms]) -> list[Result]:
            batches.append([len(atoms) for atoms in structures])
            return super().evaluate(structures)

    relax(inputs, tmp_path / "out", potential=Counting(EMT), batch_atoms=9)
    assert all(sum(batch) <= 9 for batch in batches)
    assert max(map(len, batches)) > 1
    evaluations = sum(row["n_frames"] for row in rows(tmp_path / "out"))
    assert sum(map(len, batches)) == evaluations
    assert len({tuple(batch) for batch in batches}) > 2, "structures came and went"


class Poisoned(CalculatorPotential):
    """Fails for silver, in the ways a model does."""

    def __init__(self, how: str) -> None:
        super().__init__(EMT)
        self.how = how

    def evaluate(self, structures: Sequence[Atoms]) -> list[Result]:
        found = super().evaluate(structures)
        for row, atoms in enumerate(structures):
            if "Ag" in atoms.symbols:
                if self.how == "error":
                    raise DataError("batch: silver is unknown")
                forces = np.full_like(found[row].forces, {"nan": np.nan, "huge": 1e5}[self.how])
                found[row] = replace(found[row], forces=forces)
        return found


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("error", "DataError: batch: silver is unknown"),
        ("nan", "predicted forces not finite"),
        ("huge", "above the limit of 1000"),
    ],
)
def test_a_poisoned_structure_is_a_row_and_stops_no_other(how: str, reason: str, inputs: Path, tmp_path: Path) -> None:
    relax(inputs, tmp_path / "good")
    summary = relax(inputs, tmp_path / "out", potential=Poisoned(how))
    for row, expected in zip(rows(tmp_path / "out"), rows(tmp_path / "good"), strict=True):
        if "Ag" in expected["formula"]:
            assert row["status"] == "failed"
            assert reason in row["reason"]
            assert row["energy"] is row["structure"] is None
        else:
            assert row == expected
    assert summary["failed"] == 2


@pytest.mark.parametrize(
    "error", [AssertionError("no edges"), IndexError("index 0 is out of bounds"), KeyError(47), RuntimeError("shape")]
)
def test_whatever_a_model_raises_for_one_structure_is_a_row(error: Exception, inputs: Path, tmp_path: Path) -> None:
    """Models of fairchem refuse by assertions and by indices that do not exist."""

    class Asserting(CalculatorPotential):
        def evaluate(self, structures: Sequence[Atoms]) -> list[Result]:
            if any("Ag" in atoms.symbols for atoms in structures):
                raise error
            return super().evaluate(structures)

    summary = relax(inputs, tmp_path / "out", potential=Asserting(EMT))
    assert summary["failed"] == 2
    reasons = [row["reason"] for row in rows(tmp_path / "out") if row["status"] == "failed"]
    assert all(reason.startswith(f"{type(error).__name__}: ") for reason in reasons)


@pytest.mark.parametrize("text", ["CUDA error: device-side assert triggered", "cuDNN error: EXECUTION_FAILED"])
def test_errors_of_the_device_stop_a_run(text: str, inputs: Path, tmp_path: Path) -> None:
    class Faulty(CalculatorPotential):
        def evaluate(self, structures: Sequence[Atoms]) -> list[Result]:
            raise RuntimeError(text)

    with pytest.raises(RuntimeError, match=text):
        relax(inputs, tmp_path / "out", potential=Faulty(EMT))


def test_a_cell_that_explodes_fails(tmp_path: Path) -> None:
    class Swelling(CalculatorPotential):
        def evaluate(self, structures: Sequence[Atoms]) -> list[Result]:
            stress = np.array([-1.0, -1.0, -1.0, 0.0, 0.0, 0.0])
            return [Result(energy=0.0, forces=np.zeros((len(atoms), 3)), stress=stress) for atoms in structures]

    ase.io.write(tmp_path / "in.extxyz", crystals(2))
    options = RelaxationOptions(max_volume_change=1.5)
    summary = relax(tmp_path / "in.extxyz", tmp_path / "out", potential=Swelling(EMT), options=options)
    assert summary["failed"] == 2
    assert "beyond the limit of 1.5" in rows(tmp_path / "out")[0]["reason"]


def test_structures_that_cannot_be_relaxed_say_why(tmp_path: Path) -> None:
    good, nan, constrained = crystals(3)
    nan.positions[0, 0] = np.nan
    constrained.set_constraint(FixInternals(bonds=[[2.5, [0, 1]]]))
    lonely = molecule()
    database = connect(tmp_path / "in.db")
    for number, atoms in enumerate((good, lonely)):
        database.write(atoms, material_id=f"x-{number}")
    relax(tmp_path / "in.db", tmp_path / "out")
    assert [row["material_id"] for row in rows(tmp_path / "out")] == ["x-0", "x-1"]
    assert "--no-cell" in rows(tmp_path / "out")[1]["reason"]
    ase.io.write(tmp_path / "in.traj", [nan, constrained, good])
    relax(tmp_path / "in.traj", tmp_path / "out2")
    assert [row["reason"] for row in rows(tmp_path / "out2")][:2] == [
        "positions or cell not finite",
        "constraint FixInternals: only fixed atoms are supported",
    ]
    assert rows(tmp_path / "out2")[2]["material_id"] == "m-0"


KILLED = """
import os, signal, sys
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from simulation_cases import emt
from escaip_fairchem.evaluate import relaxations
from escaip_fairchem.evaluate.relaxation_pool import RelaxationOptions
from escaip_fairchem.evaluate.structure_files import StructureFiles

steps, out = int(sys.argv[3]), Path(sys.argv[4])
step = relaxations.RelaxationPool.step
def counted(pool):
    global steps
    steps -= 1
    if steps < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(pool)
relaxations.RelaxationPool.step = counted
files = StructureFiles([sys.argv[2]], exclude=out)
run = relaxations.RunOptions(batch_atoms=9, save_every=float(sys.argv[5]))
relaxations.relax_files(emt, files, out, RelaxationOptions(fmax=0.2, max_steps=12), run)
"""


@pytest.mark.parametrize("save_every", ["0", "1e9"])
def test_killed_and_continued_gives_the_same_table(save_every: str, inputs: Path, tmp_path: Path) -> None:
    relax(inputs, tmp_path / "whole", batch_atoms=9)
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(inputs)]
    out = tmp_path / "out"
    killed = subprocess.run([*command, "18", str(out), save_every], check=False, env=dict(os.environ))
    assert killed.returncode == -signal.SIGKILL
    staged = out / ".partial/read/rows.jsonl"
    assert 0 < len(RowFile(staged)) < 6
    assert (out / ".partial/read/pool.npz").is_file() == (save_every == "0")
    with staged.open("ab") as file:
        file.write(b'{"number": 5, "mater')  # a line that was being written
    relax(inputs, out, batch_atoms=9)
    assert table(out) == table(tmp_path / "whole")
    assert not (out / ".partial").exists()


def test_a_finished_folder_is_left_alone_and_another_setting_is_refused(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = relax(inputs, out)

    def never() -> Any:
        raise AssertionError("nothing is left to do")

    files = StructureFiles([str(inputs)], exclude=out)
    assert relax_files(never, files, out, OPTIONS, RunOptions()) == first
    with pytest.raises(DataError, match=r"fmax: 0.2 there, 0.1 now.*--overwrite"):
        relax(inputs, out, options=RelaxationOptions(fmax=0.1))
    assert relax(inputs, out, options=RelaxationOptions(fmax=0.1), overwrite=True)["fmax"] == 0.1


def test_parts_make_the_table_of_the_whole(inputs: Path, tmp_path: Path) -> None:
    relax(inputs, tmp_path / "whole")
    out = tmp_path / "out"
    relax(inputs, out, part=Part(number=1, of=4))
    with pytest.raises(DataError, match="part 2 of 4 is not finished; run it with --part 2/4"):
        relax(inputs, out)
    for number in (2, 3, 4):
        relax(inputs, out, part=Part(number=number, of=4), columns={"energy": f"energy_{number}"})
    with pytest.raises(DataError, match=r"part-1-of-4 was made differently \(fmax"):
        relax(inputs, out, options=RelaxationOptions(fmax=0.3))
    relax(inputs, out)
    assert table(out) == table(tmp_path / "whole")
    with pytest.raises(ConfigError, match="--part 5/4"):
        Part.parse("5/4")
    with pytest.raises(ConfigError, match="write K/N"):
        Part.parse("half")


def test_columns_are_renamed(inputs: Path, tmp_path: Path) -> None:
    relax(inputs, tmp_path / "out", columns=parse_columns(["energy=energy_escaip", "structure=relaxed"]))
    line = json.loads(gzip.decompress((tmp_path / "out" / LINES).read_bytes()).splitlines()[0])
    assert "energy_escaip" in line
    assert "sites" in line["relaxed"]
    assert "energy" not in line
    for words, message in (
        (["energi=e"], "did you mean 'energy'"),
        (["energy"], "write name=renamed"),
        (["energy=fmax"], "two columns would be called 'fmax'"),
        (["energy=a", "energy=b"], "renamed twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_columns(words)


def test_structures_come_from_lines_and_archives(tmp_path: Path) -> None:
    structures = crystals(3)
    lines = [
        json.dumps({"material_id": atoms.info["material_id"], "n": 1, "initial_structure": to_dictionary(atoms)})
        for atoms in structures
    ]
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress("\n".join([*lines, "", "{broken"]).encode()))
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for atoms in structures:
            ase.io.write(tmp_path / "one.extxyz", atoms)
            archive.write(tmp_path / "one.extxyz", f"wbm/{atoms.info['material_id']}.extxyz")
    for name in ("in.jsonl.gz", "in.zip"):
        items = list(StructureFiles([str(tmp_path / name)], exclude=tmp_path / "out"))
        assert [item.identifier for item in items[:3]] == ["m-0", "m-1", "m-2"]
        for item, atoms in zip(items, structures, strict=False):
            assert item.atoms is not None
            np.testing.assert_allclose(item.atoms.positions, atoms.positions, atol=1e-7)
            np.testing.assert_allclose(item.atoms.cell.array, atoms.cell.array, atol=1e-7)
            assert (item.atoms.numbers == atoms.numbers).all()
    broken = list(StructureFiles([str(tmp_path / "in.jsonl.gz")], exclude=tmp_path / "out"))[3]
    assert broken.atoms is None
    assert "unreadable" in broken.problem


def test_pymatgen_reads_the_structures() -> None:
    core = pytest.importorskip("pymatgen.core")
    for atoms in (*crystals(2), molecule()):
        kind = core.Structure if atoms.pbc.any() else core.Molecule
        theirs = kind.from_dict(to_dictionary(atoms))
        np.testing.assert_allclose(theirs.cart_coords, atoms.positions, atol=1e-10)
        assert [site.specie.symbol for site in theirs] == list(atoms.symbols)
        back = from_dictionary(json.loads(json.dumps(theirs.as_dict())))
        np.testing.assert_allclose(back.positions, atoms.positions, atol=1e-10)
        np.testing.assert_allclose(back.cell.array, atoms.cell.array, atol=1e-10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sites": [{"xyz": [0, 0, 0]}]}, "KeyError: 'species'"),
        ({"sites": [{"xyz": [0, 0, 0], "species": [{"element": "Xx"}]}]}, "'Xx', which is no element"),
        ({"sites": [{"xyz": [0, 0, 0], "species": [{"element": "O", "occu": 0.5}]}]}, "fully occupied"),
        ({"sites": [], "lattice": {"matrix": [1, 2]}}, "ValueError"),
    ],
)
def test_damaged_structures_say_what_is_wrong(content: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_dictionary(content)


def test_a_file_that_cannot_be_read_is_one_row_among_those_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    good = crystals(4)
    ase.io.write(folder / "a.extxyz", good[:2])
    (folder / "b.cif").write_text("not a crystal")
    line = json.dumps({"material_id": "m-2", "structure": to_dictionary(good[2])})
    (folder / "d.zip").write_bytes(b"PK")
    ase.io.write(folder / "e.traj", good[3])
    (folder / "f.db").symlink_to(tmp_path / "nowhere.db")
    (folder / "g.extxyz").write_text("2\n\nCu 0 0 0\n")
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(f"{line}\n".encode())[:-4])  # its end is missing
    summary = relax(folder, tmp_path / "out")
    found = rows(tmp_path / "out")
    assert [row["material_id"] for row in found if row["status"] != "failed"] == ["m-0", "m-1", "m-2", "m-3"]
    failed = {row["material_id"]: row["reason"] for row in found if row["status"] == "failed"}
    assert [name.removeprefix("in/") for name in failed] == [
        "b.cif:0",
        "c.jsonl.gz:1",
        "d.zip:0",
        "nowhere.db:0",
        "g.extxyz:0",
    ]
    assert all("cannot be read" in reason for reason in failed.values())
    assert summary["failed"] == 5


def test_the_only_file_has_to_be_whole(tmp_path: Path) -> None:
    """The part of a list that was downloaded would pass for all of it."""
    ase.io.write(tmp_path / "in.extxyz", crystals(3))
    lines = (tmp_path / "in.extxyz").read_text().splitlines()
    (tmp_path / "in.extxyz").write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match="cannot be read"):
        relax(tmp_path / "in.extxyz", tmp_path / "out")


def test_packed_files_with_a_flipped_bit_say_so(inputs: Path, tmp_path: Path) -> None:
    line = json.dumps({"material_id": "m", "structure": to_dictionary(crystals(1)[0])}) + "\n"
    packed = bytearray(gzip.compress(line.encode() * 50))
    packed[20:24] = b"\xff\xff\xff\xff"
    (tmp_path / "in.jsonl.gz").write_bytes(packed)
    with pytest.raises(zlib.error):
        gzip.decompress(bytes(packed))
    with pytest.raises(DataError, match=r"in\.jsonl\.gz: cannot be read \(on\)"):
        relax(tmp_path / "in.jsonl.gz", tmp_path / "out")
    relax(inputs, tmp_path / "done")
    path = tmp_path / "done" / LINES
    path.write_bytes(path.read_bytes()[:20] + b"\xff\xff\xff\xff" + path.read_bytes()[24:])
    with pytest.raises(DataError, match="make it again with --overwrite"):
        rows(tmp_path / "done")


def test_a_folder_of_converted_data_is_relaxed(tmp_path: Path) -> None:
    folder = converted(crystals(8), tmp_path / "data")
    (folder / "data.0000.aselmdb-lock").touch()
    (folder / "notes.txt").write_text("ours")
    assert (folder / "metadata.npz").is_file()
    summary = relax(folder, tmp_path / "out")
    assert summary["failed"] == 0
    assert summary["structures"] == len(connect(folder / "data.0000.aselmdb", readonly=True, use_lock_file=False)) > 3


def test_an_attempt_that_fails_at_once_leaves_the_folder_to_any_options(tmp_path: Path) -> None:
    """What the message advises would otherwise be refused as work of another run."""
    ase.io.write(tmp_path / "in.extxyz", crystals(3))
    with pytest.raises(ConfigError, match="--no-cell"):
        relax(tmp_path / "in.extxyz", tmp_path / "out", potential=emt(has_stress=False))
    positions = replace(OPTIONS, relax_cell=False)
    summary = relax(tmp_path / "in.extxyz", tmp_path / "out", potential=emt(has_stress=False), options=positions)
    assert summary["structures"] == 3
    ase.io.write(tmp_path / "twice.extxyz", [crystals(1)[0], crystals(1)[0]])
    with pytest.raises(DataError, match="--ids"):
        relax(tmp_path / "twice.extxyz", tmp_path / "ids")
    assert relax(tmp_path / "in.extxyz", tmp_path / "ids")["structures"] == 3


def test_work_of_an_earlier_attempt_survives_one_that_fails(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    class Tired(CalculatorPotential):
        calls = 0

        def evaluate(self, structures: Sequence[Atoms]) -> list[Result]:
            self.calls += 1
            if self.calls > 9:
                raise MemoryError
            return super().evaluate(structures)

    with pytest.raises(MemoryError):
        relax(inputs, out, potential=Tired(EMT), batch_atoms=5)
    kept = (out / ".partial/read/rows.jsonl").read_bytes()
    assert kept
    files = StructureFiles([str(inputs)], exclude=out)

    def absent() -> Any:
        raise ConfigError("no such model")

    with pytest.raises(ConfigError):
        relax_files(absent, files, out, OPTIONS, RunOptions(batch_atoms=5))
    assert (out / ".partial/read/rows.jsonl").read_bytes() == kept


def test_folders_named_almost_like_parts_are_not_parts(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in (1, 2):
        relax(inputs, out, part=Part(number=number, of=2))
    for name in ("part-1-of-2-bak", "part-x-of-2", "part-1-of-2.old", "part-of-it"):
        (out / name).mkdir()
    assert relax(inputs, out)["structures"] == 6


def test_ids_have_to_be_there_and_differ(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "in.extxyz", [crystals(1)[0], crystals(1)[0]])
    with pytest.raises(DataError, match=r"in.extxyz:1: id 'm-0' is that of in.extxyz:0 too.*--ids"):
        relax(tmp_path / "in.extxyz", tmp_path / "out")
    with pytest.raises(DataError, match=r"no entry 'material' to identify it \(did you mean 'material_id'"):
        StructureFiles([str(tmp_path / "in.extxyz")], exclude=tmp_path / "out", ids="material").count()
    (tmp_path / "in.extxyz").write_text("2\n\nCu 0 0 0\n")
    with pytest.raises(DataError, match="cannot be read"):
        StructureFiles([str(tmp_path / "in.extxyz")], exclude=tmp_path / "out").count()
