"""Errors of checkpoints on data sets: worked out by hand, equal to validation, faults named."""

from __future__ import annotations

import copy
import csv
import pickle
from pathlib import Path
from typing import Any

import ase.db
import lmdb
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from evaluation_cases import KnownModel, known_checkpoint, known_set, structure, write_samples
from fairchem.core.datasets import LmdbDataset
from trainer_cases import build, config, rattled_slabs, write_lmdb

from escaip_fairchem.cli.main import main
from escaip_fairchem.errors import CheckpointError, ConfigError, DataError, EScAIPError
from escaip_fairchem.evaluate.errors import evaluate_sets
from escaip_fairchem.plugin.evaluation_sets import Reading, SetSource, open_set
from escaip_fairchem.plugin.inference import open_checkpoint
from escaip_fairchem.plugin.set_errors import EVERYTHING, ErrorTotals, measure

BY_HAND = {
    "structures": 3,
    "atoms": 6,
    "energy_mae": 1000 * (0.01 + 1 + 0.3) / 3,
    "energy_per_atom_mae": 1000 * (0.005 + 1 + 0.1) / 3,
    "forces_mae": 1000 * (0.02 + 0.2 + 0.2) / 15,
    "forces_cosine_similarity": (1 + 0.1 / 0.0104**0.5 - 1 + 0 + 1) / 5,
    "energy_forces_within_threshold": 100 / 3,
}


def errors_of(checkpoint: Path, src: Path, **reading: Any) -> dict[str, ErrorTotals]:
    inference = open_checkpoint(checkpoint, cpu=True)
    labels = [name for name in ("energy", "forces", "stress") if name in inference.outputs]
    return measure(inference, open_set(SetSource(name="set", src=src), inference, Reading(labels=labels, **reading)))


def row_of(checkpoint: Path, src: Path, **reading: Any) -> dict[str, Any]:
    table = evaluate_sets(open_checkpoint(checkpoint, cpu=True), [SetSource(name="set", src=src)], Reading(**reading))
    return dict(table.rows[0].values)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_errors_worked_out_by_hand(batch_size, tmp_path):
    """The fixed atom's wild label does not count; batches do not matter."""
    data = write_samples(tmp_path / "set.lmdb", known_set())
    found = row_of(known_checkpoint(tmp_path / "known.pt"), data, batch_size=batch_size)
    assert found == pytest.approx(BY_HAND, rel=1e-5)


def test_fixed_atoms_count_where_the_configuration_says_so(tmp_path):
    data = write_samples(tmp_path / "set.lmdb", known_set())
    outputs = {"energy": {"level": "system"}, "forces": {"level": "atom", "eval_on_free_atoms": False}}
    found = row_of(known_checkpoint(tmp_path / "known.pt", outputs=outputs), data)
    assert found["forces_mae"] == pytest.approx(1000 * (0.42 + 8.9 + 9 + 9) / 18, rel=1e-5)
    assert found["energy_mae"] == pytest.approx(BY_HAND["energy_mae"], rel=1e-5)


def test_stress_and_only_stress(tmp_path):
    tensors = [torch.full((1, 9), value) for value in (0.001, -0.002, 0.006)]
    data = write_samples(tmp_path / "set.lmdb", known_set(stress=tensors))
    found = row_of(known_checkpoint(tmp_path / "known.pt", outputs={"stress": {"level": "system"}}), data)
    assert found == pytest.approx({"structures": 3, "atoms": 6, "stress_mae": 3.0}, rel=1e-5)


def test_groups_add_up_to_the_whole(tmp_path):
    data = write_samples(tmp_path / "set.lmdb", known_set(subset=["odd", "even", "odd"]))
    checkpoint = known_checkpoint(tmp_path / "known.pt")
    groups = errors_of(checkpoint, data, group_by="subset", batch_size=2)
    assert list(groups) == ["odd", "even"]
    assert [(part.structures, part.atoms) for part in groups.values()] == [(2, 5), (1, 1)]
    assert groups["even"].mean("energy_mae") == pytest.approx(1.0)
    assert groups["even"].mean("forces_cosine_similarity") == pytest.approx(-1.0)
    assert groups["odd"].mean("energy_forces_within_threshold") == pytest.approx(0.5)
    assert groups["odd"].mean("forces_mae") == pytest.approx((0.02 + 0.2) / 12, rel=1e-5)
    (whole,) = errors_of(checkpoint, data).values()
    summed = ErrorTotals.sum(groups.values())
    assert summed.counts == whole.counts
    assert summed.totals == pytest.approx(whole.totals, rel=1e-5)


def test_groups_may_be_numbers(tmp_path):
    data = write_samples(tmp_path / "set.lmdb", known_set(oc22=[0, torch.tensor(1), torch.tensor([1])]))
    groups = errors_of(known_checkpoint(tmp_path / "known.pt"), data, group_by="oc22")
    assert {group: part.structures for group, part in groups.items()} == {"0": 1, "1": 2}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_groups_by_what_the_model_reads_leave_it_alone(batch_size, tmp_path):
    """The model's energies are 0.5 eV per atom, by `natoms`."""
    data = write_samples(tmp_path / "set.lmdb", known_set())
    groups = errors_of(known_checkpoint(tmp_path / "known.pt"), data, group_by="natoms", batch_size=batch_size)
    assert list(groups) == ["2", "1", "3"]
    assert [part.mean("energy_mae") for part in groups.values()] == pytest.approx([0.01, 1.0, 0.3], rel=1e-4)
    assert [part.atoms for part in groups.values()] == [2, 1, 3]


def test_groups_by_what_the_model_reads_in_ase_databases(tmp_path):
    data = labelled_molecules(tmp_path / "set.aselmdb")
    groups = errors_of(known_checkpoint(tmp_path / "known.pt"), data, group_by="natoms")
    assert {group: part.atoms for group, part in groups.items()} == {"2": 2, "1": 1, "3": 3}


def test_errors_are_measured_without_gradients(tmp_path, monkeypatch):
    data = write_samples(tmp_path / "set.lmdb", known_set())
    checkpoint = known_checkpoint(tmp_path / "known.pt")
    enabled = []
    forward = KnownModel.forward
    monkeypatch.setattr(
        KnownModel, "forward", lambda self, data: enabled.append(torch.is_grad_enabled()) or forward(self, data)
    )
    errors_of(checkpoint, data, batch_size=2)
    assert enabled == [False, False]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A short training with averaged weights, its checkpoint, and what validation finds for it."""
    folder = tmp_path_factory.mktemp("trained")
    paths = {
        "train": write_lmdb(folder / "train.lmdb", rattled_slabs(8, 0)),
        "val": write_lmdb(folder / "val.lmdb", rattled_slabs(11, 1)),
    }
    metrics = {
        "energy": ["mae", "per_atom_mae"],
        "forces": ["mae", "cosine_similarity"],
        "misc": ["energy_forces_within_threshold"],
    }
    settings = config(**paths, optimizer__max_epochs=2, evaluation_metrics={"metrics": metrics})
    trainer = build(settings, folder, timestamp_id="run")
    trainer.train(disable_eval_tqdm=True)
    trainer.close()
    checkpoint = folder / "checkpoints/run/checkpoint.pt"
    # What `fairchem --mode validate` does: a new trainer loads the checkpoint.
    validator = build(settings, folder / "again", timestamp_id="validated")
    validator.load_checkpoint(str(checkpoint))
    validation = {name: entry["metric"] for name, entry in validator.validate(disable_tqdm=True).items()}
    validator.close()
    return {"checkpoint": checkpoint, "validation": validation, **paths}


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (4, 0), (16, 2)])
def test_errors_are_those_of_validation(trained, batch_size, workers):
    totals = errors_of(trained["checkpoint"], trained["val"], batch_size=batch_size, workers=workers)[EVERYTHING]
    assert (totals.structures, totals.atoms) == (11, sum(map(len, rattled_slabs(11, 1))))
    for name in totals.counts:
        assert totals.mean(name) == pytest.approx(trained["validation"][name], rel=1e-5), name
    assert len(totals.counts) == 5


def test_the_best_checkpoint_has_the_errors_that_validation_wrote_into_it(trained):
    best = trained["checkpoint"].with_name("best_checkpoint.pt")
    recorded = torch.load(best, weights_only=True)["val_metrics"]
    totals = errors_of(best, trained["val"])[EVERYTHING]
    for name in totals.counts:
        assert totals.mean(name) == pytest.approx(recorded[name]["metric"], rel=1e-5), name


def test_the_latest_checkpoint_predicts_with_the_averaged_weights(trained):
    latest = errors_of(trained["checkpoint"], trained["val"])[EVERYTHING]
    raw = copy.deepcopy(torch.load(trained["checkpoint"], weights_only=True))
    raw["ema"] = None
    torch.save(raw, trained["checkpoint"].with_name("raw.pt"))
    assert errors_of(trained["checkpoint"].with_name("raw.pt"), trained["val"])[EVERYTHING].totals != latest.totals


def test_opening_a_checkpoint_leaves_generators_and_folders_alone(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state()
    open_checkpoint(trained["checkpoint"], cpu=True)
    assert torch.equal(before, torch.get_rng_state())
    assert not list(tmp_path.iterdir())


def labelled_molecules(path: Path, *, subset: bool = True, stress: bool = False) -> Path:
    """ASE-LMDB with the labels of `known_set`, more or less."""
    with ase.db.connect(str(path), type="aselmdb") as database:
        for row, sample in enumerate(known_set()):
            atoms = Atoms(f"H{int(sample.natoms)}", positions=sample.pos.numpy())
            results: dict[str, Any] = {"energy": float(sample.energy), "forces": sample.forces.numpy()}
            if stress:
                results["stress"] = np.zeros(6)
            atoms.calc = SinglePointCalculator(atoms, **results)
            data = {"sid": sample.sid, "fid": 0, "subset_family": ["odd", "even"][row % 2]}
            database.write(atoms, data=data if subset else {"sid": sample.sid, "fid": 0})
    return path


@pytest.mark.parametrize("configured", [{"format": "lmdb"}, {"format": "ase_db", "a2g_args": {"r_energy": True}}])
def test_ase_databases_are_read_whatever_format_was_trained_on(configured, tmp_path, capsys):
    data = labelled_molecules(tmp_path / "set.aselmdb")
    checkpoint = known_checkpoint(tmp_path / "known.pt", dataset={"src": "nowhere", **configured})
    words = ["evaluate", "metrics", str(checkpoint), f"test={data}", "--cpu", "--table", "spice"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "SPICE by subset" in printed
    assert "without a logarithm" in printed  # beside the published ones, which are called log-weighted
    with (tmp_path / "out/metrics.csv").open() as file:
        rows = {row["subset_family"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["even", "odd", "weighted mean"]
    assert float(rows["even"]["energy_per_atom_mae_meV_per_atom"]) == pytest.approx(1000)
    assert float(rows["odd"]["energy_per_atom_mae_meV_per_atom"]) == pytest.approx(52.5, rel=1e-5)
    assert float(rows["weighted mean"]["energy_per_atom_mae_meV_per_atom"]) == pytest.approx(
        BY_HAND["energy_per_atom_mae"], rel=1e-5
    )
    assert (tmp_path / "out/metrics.tex").read_text().count(r"\\") == 4


def test_classic_names_are_mapped_where_the_training_had_another_format(tmp_path):
    samples = known_set()
    for sample in samples:
        sample.y, sample.force = sample.energy, sample.forces
        del sample.energy, sample.forces
    data = write_samples(tmp_path / "set.lmdb", samples)
    checkpoint = known_checkpoint(tmp_path / "known.pt", dataset={"src": "x", "format": "ase_db"})
    assert row_of(checkpoint, data)["energy_mae"] == pytest.approx(BY_HAND["energy_mae"], rel=1e-5)


def test_oc22_files_and_the_checkpoint_s_own_keys(tmp_path):
    samples = known_set(oc22=[1, 1, 1], nads=[1, 1, 1])
    for sample in samples:
        sample.y, sample.force = sample.energy, sample.forces
        del sample.energy, sample.forces
    data = write_samples(tmp_path / "set.lmdb", samples)
    dataset = {"src": "x", "format": "oc22_lmdb", "key_mapping": {"y": "energy", "force": "forces"}, "first_n": 1}
    found = row_of(known_checkpoint(tmp_path / "known.pt", dataset=dataset, val_dataset={"first_n": 2}), data)
    assert found == pytest.approx(BY_HAND, rel=1e-5)  # all of it, not the first ones


def test_a_configuration_in_place_of_the_checkpoint_s(tmp_path):
    data = write_samples(tmp_path / "set.lmdb", known_set())
    settings = {
        "model": {"name": "evaluation_cases.KnownModel"},
        "outputs": {"energy": {"level": "system"}, "forces": {"level": "atom", "eval_on_free_atoms": False}},
        "dataset": {"train": {"format": "lmdb", "src": "x"}, "val": {"src": "y"}},
        "loss_functions": [{"energy": {"fn": "mae", "coefficient": 1}}],
        "optim": {},
    }
    (tmp_path / "other.yml").write_text(yaml.safe_dump(settings))
    words = ["evaluate", "metrics", str(known_checkpoint(tmp_path / "known.pt")), f"a={data}", "--cpu"]
    assert main([*words, "--config", str(tmp_path / "other.yml"), "--out", str(tmp_path)]) == 0
    with (tmp_path / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["forces_mae_meV_per_A"]) == pytest.approx(1000 * (0.42 + 26.9) / 18, rel=1e-5)


def test_means_over_named_sets(tmp_path, capsys):
    known = known_set()
    sets = {name: write_samples(tmp_path / f"{name}.lmdb", rows) for name, rows in (("x", known), ("y", known[:1]))}
    words = ["evaluate", "metrics", str(known_checkpoint(tmp_path / "known.pt")), "--cpu", "--batch-size", "2"]
    assert main([*words, *(f"{name}={path}" for name, path in sets.items())]) == 0
    out = capsys.readouterr().out
    line = next(line.split() for line in out.splitlines() if line.startswith("mean "))
    assert line[1:4] == ["4", "8", f"{(BY_HAND['energy_mae'] + 10) / 2:.1f}"]


def faults(tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    """Words after `escaip evaluate metrics`, and what is said."""
    known = str(known_checkpoint(tmp_path / "known.pt"))
    energies = str(known_checkpoint(tmp_path / "energies.pt", outputs={"energy": {"level": "system"}}))
    charges = str(known_checkpoint(tmp_path / "charges.pt", outputs={"charge": {"level": "system"}}))
    stress = {name: {"level": level} for name, level in (("energy", "system"), ("stress", "system"))}
    stressed = str(known_checkpoint(tmp_path / "stressed.pt", outputs=stress))
    (tmp_path / "text.pt").write_text("no checkpoint")
    write_samples(tmp_path / "good.lmdb", known_set())
    write_samples(tmp_path / "empty.lmdb", [])
    (tmp_path / "broken.lmdb").write_bytes(b"x" * 5000)
    (tmp_path / "folder").mkdir()
    write_samples(tmp_path / "bare.lmdb", [*known_set()[:1], structure("bare", None, [([0.0] * 3, False)])])
    nan = structure("nan", float("nan"), [([0.0] * 3, False)])
    write_samples(tmp_path / "nan.lmdb", [*known_set(), nan])
    labelled_molecules(tmp_path / "plain.aselmdb", subset=False)
    for suffix, whole in ((".lmdb", "good.lmdb"), (".aselmdb", "plain.aselmdb")):
        content = (tmp_path / whole).read_bytes()
        (tmp_path / f"half{suffix}").write_bytes(content[: len(content) // 2])
    good = f"a={tmp_path}/good.lmdb"
    return {
        "no checkpoint": ([f"{tmp_path}/none.pt", good], "none.pt: no such checkpoint file"),
        "text": ([f"{tmp_path}/text.pt", good], "text.pt: not a readable checkpoint"),
        "no set": ([known, f"a={tmp_path}/none.lmdb"], "none.lmdb: does not exist"),
        "empty": ([known, f"a={tmp_path}/empty.lmdb"], "empty.lmdb: is empty"),
        "broken": ([known, f"a={tmp_path}/broken.lmdb"], "broken.lmdb: cannot be read as lmdb"),
        "cut off": ([known, f"a={tmp_path}/half.lmdb"], "half.lmdb: was cut off: "),
        "cut off, ASE's": ([known, f"a={tmp_path}/half.aselmdb"], "half.aselmdb: was cut off: "),
        "empty folder": ([known, f"a={tmp_path}/folder"], "folder: cannot be read as lmdb, or is empty"),
        "no label": ([known, f"a={tmp_path}/bare.lmdb"], "structure 1 (sid bare): has no label 'energy'"),
        "no stress": ([stressed, f"a={tmp_path}/plain.aselmdb"], 'structure 0: The property "stress" is not available'),
        "NaN": ([known, f"a={tmp_path}/nan.lmdb"], "the label 'energy' is not finite for sid 'nan'"),
        "no subset": (
            [known, f"a={tmp_path}/plain.aselmdb", "--table", "spice"],
            "structure 0: has no 'subset_family'",
        ),
        "no group": ([known, good, "--group-by", "kind"], "structure 0 (sid a): has no 'kind' in its data"),
        "table": ([known, good, "--table", "oc21"], "unknown table 'oc21' (did you mean"),
        "name": ([known, good, "--table", "oc20"], "'a': not in the table OC20"),
        "columns": ([energies, good, "--table", "spice"], "the model does not predict forces"),
        "outputs": ([charges, good], "predicts none of energy, forces and stress"),
        "twice": ([known, good, good], "'a': named twice"),
        "no name": ([known, f"{tmp_path}/good.lmdb"], "is no NAME=SRC"),
        "format": ([known, good, "--format", "lmbd"], "unknown format 'lmbd' (did you mean 'lmdb'?)"),
        "batch": ([known, good, "--batch-size", "0"], "--batch-size 0"),
    }


def test_faults_name_what_is_wrong(tmp_path, capsys):
    for name, (words, message) in faults(tmp_path).items():
        assert main(["evaluate", "metrics", *words, "--cpu"]) == 2, name
        error = capsys.readouterr().err
        assert error.startswith("escaip evaluate: error: "), name
        assert message in error, name


def with_rows(path: Path, **rows: bytes) -> Path:
    """Replace rows of a set by other bytes; names of rows are ``row_1``, …"""
    with lmdb.open(str(path), subdir=False, lock=False, map_size=2**24) as database, database.begin(write=True) as put:
        for name, content in rows.items():
            put.put(name.removeprefix("row_").encode(), content)
    return path


def damaged(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Sets with a row that cannot be used, and what is said of it."""
    anonymous = known_set()[1]
    del anonymous.sid
    sized = known_set()[1]
    sized.natoms = 7
    unsized = known_set()[1]
    del unsized.natoms
    contents = {
        "garbage": (b"no pickle at all", "structure 1: cannot be read as lmdb (UnpicklingError"),
        "truncated": (pickle.dumps(known_set()[1], protocol=-1)[:50], "structure 1: cannot be read as lmdb ("),
        "empty": (b"", "structure 1: cannot be read as lmdb (EOFError"),
        "a text": (pickle.dumps("text"), "structure 1: cannot be read as lmdb (AttributeError"),
        "no sid": (pickle.dumps(anonymous), "sid None: has no 'sid', but sid 'a' beside it does"),
        "other size": (pickle.dumps(sized), "sid 'b': natoms is 7, but there are 1 positions"),
        "no size": (pickle.dumps(unsized), "structure 1 (sid b): has no 'natoms'"),
    }
    return {
        name: (with_rows(write_samples(tmp_path / f"{name}.lmdb", known_set()), row_1=row), message)
        for name, (row, message) in contents.items()
    }


@pytest.mark.parametrize("workers", ["0", "1"])
def test_damaged_rows_are_one_message(workers, tmp_path, capsys):
    """From workers, too, whose errors torch would hand on with the text of a traceback."""
    checkpoint = str(known_checkpoint(tmp_path / "known.pt"))
    for name, (data, message) in damaged(tmp_path).items():
        assert main(["evaluate", "metrics", checkpoint, f"a={data}", "--cpu", "--workers", workers]) == 2, name
        error = capsys.readouterr().err
        assert error.startswith("escaip evaluate: error: "), name
        assert message in error, name
        assert "Traceback" not in error, name


def test_damaged_pages_of_a_set_are_one_message(tmp_path, monkeypatch, capsys):
    data = write_samples(tmp_path / "set.lmdb", known_set())

    def corrupted(self, row):
        raise lmdb.CorruptedError("located page was of wrong type")

    monkeypatch.setattr(LmdbDataset, "__getitem__", corrupted)
    checkpoint = str(known_checkpoint(tmp_path / "known.pt"))
    assert main(["evaluate", "metrics", checkpoint, f"a={data}", "--cpu"]) == 2
    assert "structure 0: cannot be read as lmdb (CorruptedError: located page" in capsys.readouterr().err


def test_checkpoints_without_a_configuration_say_what_to_give(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "bare.pt")
    with pytest.raises(CheckpointError, match=r"bare\.pt: holds no configuration.*--config FILE"):
        open_checkpoint(tmp_path / "bare.pt", cpu=True)
    assert issubclass(CheckpointError, EScAIPError)


def test_a_submission_holds_free_atoms_of_all_sets_in_fairchem_s_layout(tmp_path, capsys):
    """Labels are not needed. `np.split(forces, chunk_idx)` gives the structures back."""
    samples = known_set()
    for sample in samples:
        del sample.energy, sample.forces
    rest = [structure(f"{n}", None, [([0.0] * 3, False)]) for n in range(10)]
    names = ("id", "ood_ads", "ood_cat", "ood_both")
    words = [f"{name}={write_samples(tmp_path / f'{name}.lmdb', samples if name == 'id' else rest)}" for name in names]
    out = tmp_path / "deep/file.npz"
    checkpoint = str(
        known_checkpoint(tmp_path / "known.pt", dataset={"format": "lmdb", "key_mapping": {"y": "energy"}})
    )
    assert main(["evaluate", "submission", checkpoint, *words, "--cpu", "--out", str(out), "--batch-size", "2"]) == 0
    assert "id: 3 structures, forces of 5 free atoms" in capsys.readouterr().out
    with np.load(out) as found:
        assert set(found) == {f"{name}_{key}" for name in names for key in ("ids", "energy", "forces", "chunk_idx")}
        assert found["id_ids"].tolist() == ["a_0", "b_0", "c_0"]
        assert found["id_energy"].ravel().tolist() == [1.0, 0.5, 1.5]
        assert found["id_chunk_idx"].tolist() == [2, 3]
        assert [len(part) for part in np.split(found["id_forces"], found["id_chunk_idx"])] == [2, 1, 2]
        assert found["id_forces"].dtype == np.float32
        np.testing.assert_allclose(found["id_forces"], [[0.1, 0, 0]] * 5)
        assert found["ood_cat_ids"].tolist() == [f"{n}_0" for n in range(10)]  # in the order of the file
    again = tmp_path / "half.npz"
    assert main(["evaluate", "submission", checkpoint, *words, "--cpu", "--out", str(again), "--dtype", "float16"]) == 0
    with np.load(again) as found:
        assert found["ood_both_forces"].dtype == np.float16


def test_a_submission_is_what_prediction_writes(trained, tmp_path):
    """Beside the trainer's own file with the forces of free atoms."""
    data = trained["val"]
    words = [f"{name}={data}" for name in ("id", "ood")]
    assert (
        main(["evaluate", "submission", str(trained["checkpoint"]), *words, "--cpu", "--out", str(tmp_path / "s.npz")])
        == 0
    )
    settings = config(trained["train"], test=data, task={"predict_free_atoms_only": True})
    trainer = build(settings, tmp_path, timestamp_id="predicted")
    trainer.load_checkpoint(str(trained["checkpoint"]))
    trainer.predict(trainer.test_loader, results_file="predictions", disable_tqdm=True)
    trainer.close()
    with np.load(tmp_path / "s.npz") as ours, np.load(tmp_path / "results/predicted/ocp_predictions.npz") as theirs:
        assert set(ours) == {f"{split}_{key}" for split in ("id", "ood") for key in theirs}
        for key in ("ids", "chunk_idx"):
            np.testing.assert_array_equal(ours[f"id_{key}"], theirs[key])
        for key in ("energy", "forces"):
            assert (ours[f"id_{key}"].shape, ours[f"id_{key}"].dtype) == (theirs[key].shape, theirs[key].dtype)
            np.testing.assert_allclose(ours[f"ood_{key}"], theirs[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["id", "ood_ads", "ood_cat"], "'ood_both': missing, a submission for OC20"),
        (["ood"], "'id': missing, a submission for OC22"),
        (["id", "od"], "'od': OC20 has no such test set"),
        (["id", "id", "ood"], "'id': named twice"),
    ],
)
def test_submissions_with_other_sets_are_refused(names, message, tmp_path, capsys):
    words = ["evaluate", "submission", "none.pt", *(f"{name}=x" for name in names), "--out", str(tmp_path / "s.npz")]
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_submissions_that_cannot_be_told_apart_are_refused(tmp_path, capsys):
    data = write_samples(tmp_path / "set.lmdb", [*known_set(), known_set()[1]])
    words = [str(known_checkpoint(tmp_path / "known.pt")), f"id={data}", f"ood={data}", "--cpu", "--out"]
    assert main(["evaluate", "submission", *words, str(tmp_path / "s.npz")]) == 2
    assert "the id b_0 (sid_fid) occurs 2 times" in capsys.readouterr().err
    assert not (tmp_path / "s.npz").exists()
    assert main(["evaluate", "submission", *words, str(tmp_path / "s.csv")]) == 2
    assert ".npz" in capsys.readouterr().err


def test_readings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="--workers -1"):
        Reading(workers=-1)
    with pytest.raises(DataError, match="NAME=SRC"):
        open_set(SetSource(name="a", src=Path("nowhere")), None, Reading())  # type: ignore[arg-type]
