"""`escaip data oc22`: prebuilt files checked, and energies per element that fairchem really applies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fairchem_side import open_split
from oc_files import decoded_content, natoms_of, oc22_graph, write_lmdb

from escaip_fairchem.data.linear_references import NormalEquations, read_references
from escaip_fairchem.data.oc22 import OC22Options, prepare_oc22
from escaip_fairchem.data.schema import FrameTable, Structure
from escaip_fairchem.data.statistics import fit_element_references
from escaip_fairchem.data.tally import Moments, Tally
from escaip_fairchem.errors import DataError

ROOT = Path(__file__).parents[2]
OPTIONS = OC22Options()
OXYGEN, TITANIUM, IRIDIUM = 8, 22, 77


def sections(folder: Path) -> dict[str, Any]:
    """The dataset section of the configurations for OC22, with paths of a test."""
    found = yaml.safe_load((ROOT / "configs" / "oc22" / "base.yml").read_text(encoding="utf-8"))["dataset"]
    for name, split in found.items():
        split["src"] = str(folder / {"val": "val_id"}.get(name, name))
    found["train"]["transforms"]["element_references"]["energy"]["file"] = str(folder.parent / "linear_references.npz")
    return found


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Energies of exactly −5 eV per oxygen and −8 eV per titanium atom in training, 0.5 eV off in validation."""
    folder = tmp_path / "downloaded" / "data" / "oc22" / "s2ef-total"
    train = [[8, 22], [8, 8, 22], [8, 22, 22, 22], [22]]
    energies = [-13.0, -18.0, -29.0, -8.0]
    graphs = [oc22_graph(k, k + 10, numbers, energies[k]) for k, numbers in enumerate(train)]
    write_lmdb(folder / "train" / "data.0000.lmdb", graphs[:3])
    write_lmdb(folder / "train" / "data.0001.lmdb", graphs[3:])
    for number, names in enumerate(["0,random0\n1,clean\n2,random2\n", "3,clean\n"]):
        (folder / "train" / f"data.000{number}.txt").write_text(names)
    write_lmdb(folder / "val_id" / "data.0000.lmdb", [oc22_graph(9, 0, [8, 22, 77], -12.5)])
    write_lmdb(folder / "test_id" / "data.0000.lmdb", [oc22_graph(5, 0, [22, 22], None)])
    return tmp_path / "downloaded"


def references_in(path: Path) -> dict[int, float]:
    with np.load(path) as saved:
        (name,) = saved.files
        assert name == "element_references"
        return {number: pytest.approx(saved[name][number]) for number in np.flatnonzero(saved[name]).tolist()}


def test_references_are_fitted_and_applied_by_fairchem(tmp_path: Path, raw: Path):
    import fairchem.core.datasets.oc22_lmdb_dataset  # noqa: F401 (registers it, as fairchem's command does)
    from fairchem.core.datasets.lmdb_dataset import data_list_collater
    from fairchem.core.modules.normalization.element_references import load_references_from_config

    out = tmp_path / "data" / "oc22" / "s2ef-total"
    summary = prepare_oc22(str(raw), out, OPTIONS)
    assert references_in(out.parent / "linear_references.npz") == {OXYGEN: -5.0, TITANIUM: -8.0}
    assert summary["elements_without_reference"] == ["Ir"]
    assert any("Ir (sid 9, fid 0 in val_id/data.0000.lmdb)" in note for note in summary["notes"])
    assert summary["splits"]["train"]["referenced_energy_eV"] == {
        "mean": pytest.approx(0.0, abs=1e-9),
        "spread": pytest.approx(0.0, abs=1e-5),
    }
    assert summary["splits"]["val_id"]["referenced_energy_eV"]["mean"] == pytest.approx(0.5)  # −12.5 + 5 + 8 + 0
    config = sections(out)
    datasets = {name: open_split(config, name) for name in config}
    assert {name: natoms_of(out / name) for name in ("train", "val_id", "test_id")} == {
        "train": [2, 3, 4, 1],
        "val_id": [3],
        "test_id": [2],
    }
    assert [data.natoms for data in datasets["train"]] == [2, 3, 4, 1]
    loaded = load_references_from_config(config["train"]["transforms"]["element_references"], None)["energy"]
    for name, expected in (("train", [0.0] * 4), ("val", [0.5])):
        batch = data_list_collater(list(datasets[name]), otf_graph=True)
        energy = batch.energy.view(-1, 1).float()
        taken_off = loaded.dereference(energy, batch)
        torch.testing.assert_close(taken_off.view(-1), torch.tensor(expected), atol=2e-6, rtol=0)
        torch.testing.assert_close(loaded(taken_off, batch), energy)


def test_files_are_linked_and_lists_beside_them_are_not(tmp_path: Path, raw: Path):
    out = tmp_path / "s2ef-total"
    prepare_oc22(str(raw), out, OPTIONS)
    assert not list((out / "train").glob("*.txt"))
    assert (out / "train" / "data.0001.lmdb").samefile(
        raw / "data" / "oc22" / "s2ef-total" / "train" / "data.0001.lmdb"
    )


def test_the_order_in_which_files_are_finished_changes_nothing(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
):
    """As with several workers, which the tests for OC20 start."""
    from escaip_fairchem.data import shard_sets

    prepare_oc22(str(raw), tmp_path / "one" / "s2ef", OPTIONS)
    monkeypatch.setattr(shard_sets, "ordered_map", lambda function, items, workers: map(function, items[::-1]))
    prepare_oc22(str(raw), tmp_path / "two" / "s2ef", OPTIONS)
    assert decoded_content(tmp_path / "one") == decoded_content(tmp_path / "two")


def coefficients(path: Path, key: str = "coeff", **values: float) -> Path:
    array = np.zeros(85)
    for symbol, value in values.items():
        array[{"O": OXYGEN, "Ti": TITANIUM, "Ir": IRIDIUM}[symbol]] = value
    np.savez(path, **{key: array})
    return path


@pytest.mark.parametrize("key", ["coeff", "element_references"])
def test_references_can_be_given(tmp_path: Path, raw: Path, key: str):
    file = coefficients(tmp_path / "coeffs.npz", key, O=-7.0, Ti=-9.0, Ir=-10.0)
    out = tmp_path / "out" / "s2ef"
    summary = prepare_oc22(str(raw), out, OC22Options(references=file))
    assert references_in(out.parent / "linear_references.npz") == {OXYGEN: -7.0, TITANIUM: -9.0, IRIDIUM: -10.0}
    assert references_in(out / "linear_references.npz").keys() == {OXYGEN, TITANIUM, IRIDIUM}
    # residuals: −13 + 16, −18 + 23, −29 + 34, −8 + 9
    assert summary["splits"]["train"]["referenced_energy_eV"]["mean"] == pytest.approx(3.5)
    assert summary["splits"]["train"]["referenced_energy_eV"]["spread"] == pytest.approx(2.75**0.5)


@pytest.mark.parametrize("absent", [0.0, float("nan")])
def test_elements_without_a_given_reference_are_an_error(tmp_path: Path, raw: Path, absent: float):
    file = coefficients(tmp_path / "coeffs.npz", O=-7.0, Ti=absent, Ir=absent)
    out = tmp_path / "out" / "s2ef"
    with pytest.raises(
        DataError, match=r"coeffs\.npz has no energy .*: Ti \(sid 5, fid 0 in test_id.*\), Ir \(sid 9, fid 0 in val_id"
    ):
        prepare_oc22(str(raw), out, OC22Options(references=file))
    assert not (out.parent / "linear_references.npz").exists()
    assert prepare_oc22(str(raw), out, OPTIONS)["usable"] == 6  # what was read serves the next attempt


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"energies": np.zeros(9)}, "holds energies, and neither coeff nor element_references"),
        ({"coeff": np.ones((3, 3))}, r"coeff has shape \(3, 3\); expected one finite energy"),
        ({"coeff": np.ones(200)}, "at most 119"),
        ({"coeff": np.full(9, np.inf)}, "expected one finite energy"),
        ({"coeff": np.array([{"O": 1}], dtype=object)}, "cannot be read as an .npz file of numbers"),
        (None, "cannot be read as an .npz file of numbers"),
        (b"text", "cannot be read as an .npz file of numbers"),
    ],
)
def test_files_that_hold_no_references_are_refused(tmp_path: Path, content: Any, message: str):
    file = tmp_path / "refs.npz"
    if isinstance(content, dict):
        np.savez(file, **content)
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_references(file)


def test_a_column_of_references_is_as_good_as_a_row(tmp_path: Path):
    np.savez(tmp_path / "refs.npz", coeff=np.array([[0.0], [-1.0]]))
    assert read_references(tmp_path / "refs.npz")[:2].tolist() == [pytest.approx(np.nan, nan_ok=True), -1.0]


def test_splits_can_be_prepared_one_by_one(tmp_path: Path, raw: Path):
    """OUT is the folder of the one split then, and references still lie beside the folder of all."""
    splits, out = raw / "data" / "oc22" / "s2ef-total", tmp_path / "oc22" / "s2ef-total"
    summary = prepare_oc22(str(splits / "val_id"), out / "val_id", OPTIONS)
    assert summary["notes"] == ["energies per element are fitted to the split train, which is not among these"]
    assert [path.name for path in sorted((tmp_path / "oc22").iterdir())] == ["s2ef-total"]
    prepare_oc22(str(splits / "train"), out / "train", OPTIONS)
    assert references_in(tmp_path / "oc22" / "linear_references.npz") == {OXYGEN: -5.0, TITANIUM: -8.0}
    assert natoms_of(out / "train") == [2, 3, 4, 1]
    assert natoms_of(out / "val_id") == [3]
    assert sorted(path.name for path in (out / "train").glob("data.*")) == [
        "data.0000.lmdb",
        "data.0001.lmdb",
    ]
    prepare_oc22(str(splits / "test_id"), out / "test_id", OPTIONS)
    assert natoms_of(out / "test_id") == [2]


def test_the_same_references_can_be_given_for_every_split(tmp_path: Path, raw: Path):
    splits, out = raw / "data" / "oc22" / "s2ef-total", tmp_path / "oc22" / "s2ef-total"
    file = coefficients(tmp_path / "coeffs.npz", O=-7.0, Ti=-9.0, Ir=-10.0)
    for split in ("train", "val_id"):
        prepare_oc22(str(splits / split), out / split, OC22Options(references=file))
    other = coefficients(tmp_path / "other.npz", O=-7.0, Ti=-9.5, Ir=-10.0)
    with pytest.raises(DataError, match=r"linear_references\.npz is there already"):
        prepare_oc22(str(splits / "test_id"), out / "test_id", OC22Options(references=other))


def test_one_split_writes_outside_of_its_folder_only_where_it_belongs_or_was_told_to(tmp_path: Path, raw: Path):
    train = raw / "data" / "oc22" / "s2ef-total" / "train"
    for out in (tmp_path / "a" / "b" / "mine", tmp_path / "a" / "s2ef-total" / "mine", tmp_path / "a" / "b" / "train"):
        prepare_oc22(str(train), out, OPTIONS)
        assert references_in(out / "linear_references.npz") == {OXYGEN: -5.0, TITANIUM: -8.0}
    assert {path.parent for path in (tmp_path / "a").rglob("linear_references.npz")} == {
        tmp_path / "a" / "b" / "mine",
        tmp_path / "a" / "s2ef-total" / "mine",
        tmp_path / "a" / "b" / "train",
    }
    told = tmp_path / "new" / "folder" / "energies.npz"
    prepare_oc22(str(train), tmp_path / "a" / "b" / "mine", OC22Options(references_out=told))  # complete already
    assert references_in(told) == {OXYGEN: -5.0, TITANIUM: -8.0}


@pytest.mark.parametrize("target", ["file/linear_references.npz", "folder"])
def test_where_references_cannot_go_is_said_before_anything_is_read(
    tmp_path: Path, raw: Path, target: str, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr("escaip_fairchem.data.oc22.verify", None)
    with pytest.raises(DataError, match=rf"cannot be written to .*{target}.*name another file with --references-out"):
        prepare_oc22(str(raw), tmp_path / "out", OC22Options(references_out=tmp_path / target))
    assert not (tmp_path / "out").exists()


def test_what_one_split_is_for_is_told_by_its_own_folder_or_by_the_option(tmp_path: Path, raw: Path):
    splits = raw / "data" / "oc22" / "s2ef-total"
    summary = prepare_oc22(str(splits / "test_id"), tmp_path / "mine", OPTIONS)  # whose records have no labels
    assert summary["splits"]["test_id"]["with_energy"] == 0
    assert not prepare_oc22(str(splits / "val_id"), tmp_path / "train", OPTIONS)["element_references_eV"]
    (splits / "train").rename(splits / "everything")
    with pytest.raises(
        DataError, match=r"everything is for cannot be told by the name 'everything': give --split train"
    ):
        prepare_oc22(str(splits / "everything"), tmp_path / "val_id", OPTIONS)
    summary = prepare_oc22(str(splits / "everything"), tmp_path / "val_id", OC22Options(split="train"))
    assert summary["element_references_eV"] == {"O": pytest.approx(-5), "Ti": pytest.approx(-8)}
    with pytest.raises(DataError, match="--split is for a RAW that is one split"):
        prepare_oc22(str(splits), tmp_path / "all", OC22Options(split="train"))


def test_a_broken_file_of_references_is_not_blamed_on_the_option(tmp_path: Path, raw: Path):
    file = coefficients(tmp_path / "coeffs.npz", O=-7.0, Ti=-9.0, Ir=-10.0)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linear_references.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"data/linear_references\.npz is there already") as caught:
        prepare_oc22(str(raw), tmp_path / "data" / "s2ef", OC22Options(references=file))
    assert "--references " not in str(caught.value)


def test_the_report_says_where_energies_per_element_are_from(tmp_path: Path, raw: Path):
    file = coefficients(tmp_path / "coeffs.npz", O=-7.0, Ti=-9.0, Ir=-10.0)
    for name, options, origin in (
        ("fitted", OPTIONS, "fitted to the training split:"),
        ("read", OC22Options(references=file), f"read from {file}:"),
    ):
        prepare_oc22(str(raw), tmp_path / name / "s2ef", options)
        report = (tmp_path / name / "s2ef" / "report.txt").read_text(encoding="utf-8")
        assert f"energy references (eV per atom), {origin}" in report
        assert ("fitted to" in report) == (name == "fitted")


def test_faulty_files_are_read_again(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patched, pytest.raises(DataError, match="prebuilt files cannot be used"):
        patched.setattr("escaip_fairchem.data.prebuilt.decode_record", lambda _: {})
        prepare_oc22(str(raw), tmp_path / "out" / "s2ef", OPTIONS)
    assert prepare_oc22(str(raw), tmp_path / "out" / "s2ef", OPTIONS)["usable"] == 6


def test_the_way_to_the_input_does_not_matter(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch):
    first = prepare_oc22(str(raw), tmp_path / "out" / "s2ef", OPTIONS)
    monkeypatch.chdir(raw)
    assert prepare_oc22(".", tmp_path / "out" / "s2ef", OPTIONS) == first


def test_references_of_someone_else_are_not_replaced(tmp_path: Path, raw: Path):
    coefficients(tmp_path / "out.npz", O=1.0)
    beside = tmp_path / "data" / "linear_references.npz"
    beside.parent.mkdir()
    (tmp_path / "out.npz").rename(beside)
    before = beside.read_bytes()
    with pytest.raises(DataError, match=r"linear_references\.npz is there already, with other content"):
        prepare_oc22(str(raw), tmp_path / "data" / "s2ef", OPTIONS)
    assert beside.read_bytes() == before
    summary = prepare_oc22(str(raw), tmp_path / "data" / "s2ef", OPTIONS, overwrite=True)
    assert references_in(beside) == {OXYGEN: -5.0, TITANIUM: -8.0}
    beside.unlink()
    assert prepare_oc22(str(raw), tmp_path / "data" / "s2ef", OPTIONS) == summary  # and is put back
    assert references_in(beside) == {OXYGEN: -5.0, TITANIUM: -8.0}


def test_an_interrupted_run_checks_only_what_is_missing(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch):
    from escaip_fairchem.data import oc22

    seen: list[int] = []
    original = oc22.verify

    def failing(unit: Any, contract: Any) -> Any:
        seen.append(unit.number)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(unit, contract)

    monkeypatch.setattr(oc22, "verify", failing)
    out = tmp_path / "out" / "s2ef"
    with pytest.raises(KeyboardInterrupt):
        prepare_oc22(str(raw), out, OPTIONS)
    assert not (out / "train").exists()
    prepare_oc22(str(raw), out, OPTIONS)
    assert seen == [0, 1, 2, 2, 3]
    assert not (out / ".partial").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"oc22": 0}, "oc22 is 0 instead of 1"),
        ({"nads": None}, "has no nads"),
        ({"oc22": None}, "has no oc22"),
    ],
)
def test_records_of_another_format_are_named(tmp_path: Path, change: dict[str, Any], message: str):
    write_lmdb(tmp_path / "raw" / "train" / "a.lmdb", [oc22_graph(1, 0, [8, 22], -13.0, **change)])
    with pytest.raises(DataError, match=rf"train/a\.lmdb:0: malformed record: {message}"):
        prepare_oc22(str(tmp_path / "raw"), tmp_path / "out" / "s2ef", OPTIONS)


def test_labels_have_the_published_names_because_the_reader_knows_no_others(tmp_path: Path):
    record = oc22_graph(1, 0, [8, 22], None, forces=torch.zeros(2, 3))
    record.energy = -13.0
    write_lmdb(tmp_path / "raw" / "train" / "a.lmdb", [record])
    with pytest.raises(DataError, match=r"train/a\.lmdb:0: malformed record: has no y, force\n"):
        prepare_oc22(str(tmp_path / "raw"), tmp_path / "out" / "s2ef", OPTIONS)


def test_stored_edges_do_not_matter_because_the_reader_drops_them(tmp_path: Path):
    edges = torch.zeros((2, 1), dtype=torch.long)
    graphs = [oc22_graph(1, 0, [8, 22], -13.0), oc22_graph(1, 1, [8, 22], -13.0, edge_index=edges)]
    write_lmdb(tmp_path / "raw" / "train" / "a.lmdb", graphs)
    assert prepare_oc22(str(tmp_path / "raw"), tmp_path / "out" / "s2ef", OPTIONS)["usable"] == 2


@pytest.mark.parametrize(
    ("folders", "raw_folder", "out", "message"),
    [
        (["a/train", "b/train"], ".", "out", "would both be the split train"),
        ([], ".", "out", r"holds no \*\.lmdb file"),
        (["s2ef/train"], "s2ef", "s2ef", "lies in OUT"),
        (["s2ef/train"], "s2ef/train", "s2ef", "lies in OUT"),
    ],
)
def test_folders_that_make_no_sense_are_refused(
    tmp_path: Path, folders: list[str], raw_folder: str, out: str, message: str
):
    for folder in folders:
        write_lmdb(tmp_path / "in" / folder / "a.lmdb", [oc22_graph(1, 0, [8, 22], -13.0)])
    (tmp_path / "in").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=message):
        prepare_oc22(str(tmp_path / "in" / raw_folder), tmp_path / "in" / out, OPTIONS)


def random_table(count: int, *, elements: tuple[int, ...] = (1, 8, 22, 77)) -> FrameTable:
    random = np.random.default_rng(3)
    structures = []
    for row in range(count):
        numbers = np.repeat(elements, random.integers(1, 30, len(elements)))
        structures.append(
            Structure(
                sid=str(row), fid=0, numbers=numbers, positions=np.zeros((len(numbers), 3)), cell=np.eye(3),
                pbc=np.ones(3, dtype=bool), tags=np.zeros(len(numbers), dtype=int),
                fixed=random.random(len(numbers)) < 0.5, energy=float(-5.0 * len(numbers) + random.normal(0, 20)),
                forces=random.normal(0, 1, (len(numbers), 3)),
            )
        )  # fmt: skip
    return FrameTable.of(structures)


def test_sums_give_the_fit_of_all_structures_at_once():
    table = random_table(400)
    pieces = [table.take(rows) for rows in np.array_split(np.arange(400), 7)]
    equations, tally = NormalEquations.empty(), Tally()
    for piece in pieces:
        equations, tally = equations + NormalEquations.of(piece), tally + Tally.of(piece)
    references = fit_element_references(table.composition, table.energy)
    np.testing.assert_allclose(equations.solve(), references, atol=1e-9)
    left = table.energy - table.composition.astype(float) @ references
    residual = equations.residual(tally, references)
    assert (residual.count, residual.mean) == (400, pytest.approx(left.mean(), abs=1e-9))
    assert residual.squares == pytest.approx(((left - left.mean()) ** 2).sum(), rel=1e-9)


def test_compositions_that_determine_nothing_take_the_least_norm():
    table = random_table(1)
    np.testing.assert_allclose(
        NormalEquations.of(table).solve(), fit_element_references(table.composition, table.energy), atol=1e-9
    )
    assert not NormalEquations.empty().solve().any()


def test_an_element_that_occurs_once_among_millions_is_fitted():
    """Sums of ten million structures, one of which has a single iridium atom: its energy is still found to 1 µeV."""
    products, moments = np.zeros((119, 119), dtype=np.int64), np.zeros(119)
    for times, atoms in ((6_000_000, {8: 60, 22: 30}), (4_000_000, {8: 80, 22: 20}), (1, {8: 60, 22: 30, 77: 1})):
        count = np.zeros(119, dtype=np.int64)
        count[list(atoms)] = list(atoms.values())
        energy = -5.0 * count[8] - 8.0 * count[22] - 11.0 * count[77]
        products += times * np.outer(count, count)
        moments += times * count * energy
    assert NormalEquations(products, moments).solve()[[8, 22, 77]] == pytest.approx([-5, -8, -11], abs=1e-6)


def test_statistics_add_up():
    from escaip_fairchem.data.report import split_summary

    table = random_table(60)
    pieces = [Tally.of(table.take(rows)) for rows in np.array_split(np.arange(60), 7)]
    total = sum(pieces, Tally())
    expected = split_summary(table)
    del expected["with_stress"]
    assert nested(total.described()) == nested(expected)
    again = Tally.from_json(json.loads(json.dumps(total.as_json())))
    assert again.described() == total.described()
    assert Tally().described() == {"structures": 0}
    assert Moments.of(np.array([np.nan])).described() == {"mean": None, "spread": None}


def nested(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: nested(item) for key, item in value.items()}
    return pytest.approx(value, rel=1e-7) if isinstance(value, float) else value


def test_the_command_names_the_references(tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]):
    from escaip_fairchem.cli.main import main

    out = tmp_path / "data" / "s2ef-total"
    assert main(["data", "oc22", str(raw), str(out), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "6 structures read, 6 usable" in printed
    found = f"{out / 'linear_references.npz'} and {tmp_path / 'data' / 'linear_references.npz'}"
    assert f"energies per element: {found}" in printed
    assert "Ti" in (out / "report.txt").read_text(encoding="utf-8")
    file = coefficients(tmp_path / "coeffs.npz", O=-7.0)
    assert main(["data", "oc22", str(raw), str(out), "--references", str(file), "--workers", "1"]) == 2
    assert "references: null there" in capsys.readouterr().err
