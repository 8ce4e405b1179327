"""Shares and orientations of the training set."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from fairchem.core.common import distutils
from fairchem.core.common.utils import cg_change_mat
from fairchem.core.datasets.base_dataset import BaseDataset, Subset, create_dataset
from torch_geometric.data import Data
from trainer_cases import build, config, finish, rattled_slabs, run_python, single_process_group, write_lmdb

from escaip_fairchem.errors import ConfigError, DataError
from escaip_fairchem.plugin.checkpoints import read_checkpoint
from escaip_fairchem.plugin.trainer.training_set import (
    RotatedDataset,
    Rotations,
    TrainingSet,
    limited,
    random_rotation,
    turned,
)

SHARE = "dataset__train__fraction"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("training_set")
    single_process_group(folder)
    write_lmdb(folder / "val.lmdb", rattled_slabs(5, seed=1), first_sid=100)
    yield write_lmdb(folder / "train.lmdb", rattled_slabs(20, seed=0))
    distutils.cleanup()  # other tests in this process are not distributed


def dataset_of(data: Path, **settings: Any) -> Subset:
    return create_dataset({"src": str(data), "format": "lmdb", **settings}, "train")


def names(dataset: BaseDataset[Any]) -> list[str]:
    return [dataset[row].sid for row in range(len(dataset))]


@pytest.mark.parametrize(("fraction", "count"), [(0.25, 5), (0.5, 10), (1.0, 20), (0.001, 1)])
def test_a_share_is_as_large_as_asked_for_and_not_the_first_structures(data, fraction, count):
    taken = names(TrainingSet(fraction=fraction).of(dataset_of(data)))
    assert len(taken) == len(set(taken)) == count
    if 1 < count < 20:
        assert taken != [f"cu{index}" for index in range(count)]


def test_the_share_depends_on_the_seed_alone_and_lies_in_larger_ones(data):
    quarter, half, other = (
        set(names(TrainingSet(fraction=fraction).of(dataset_of(data, seed=seed))))
        for fraction, seed in ((0.25, 3), (0.5, 3), (0.25, 4))
    )
    assert quarter == set(names(TrainingSet(fraction=0.25).of(dataset_of(data, seed=3))))
    assert quarter < half
    assert quarter != other


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0.0}, r"fraction: must be a share above 0 and up to 1, got 0\.0"),
        ({"fraction": 25}, "got 25"),
        ({"fraction": "half"}, "got 'half'"),
        ({"fraction": True}, "got True"),
        ({"fraction": float("nan")}, "got nan"),
        ({"fraction": 0.5, "sample_n": 3}, "as sample_n does; give one of them"),
        ({"fraction": 0.5, "no_shuffle": True}, "as no_shuffle does"),
        ({"rotations": 16}, "rotations: needs the key copies, got 16"),
        ({"rotations": {"copies": 0}}, "copies: must be at least 1, got 0"),
        ({"rotations": {"copis": 4}}, "did you mean 'copies'"),
        ({"rotations": {}}, "copies"),
    ],
)
def test_what_cannot_be_done_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainingSet.from_settings(settings)


def sample() -> Data:
    generator = torch.Generator().manual_seed(5)
    stress = torch.randn(3, 3, generator=generator)
    return Data(
        pos=torch.randn(4, 3, generator=generator),
        cell=torch.randn(1, 3, 3, generator=generator),
        forces=torch.randn(4, 3, generator=generator),
        stress=(stress + stress.T).reshape(1, 9),
        energy=1.5,
        atomic_numbers=torch.tensor([1.0, 6.0, 8.0, 1.0]),
        natoms=4,
        sid="a",
    )


def test_rotations_are_rotations_and_evenly_spread():
    generator = torch.Generator().manual_seed(0)
    rotations = torch.stack([random_rotation(generator) for _ in range(2000)])
    assert torch.allclose(rotations @ rotations.transpose(1, 2), torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(torch.linalg.det(rotations), torch.ones(2000, dtype=torch.float64), atol=1e-12)
    # Every entry has mean 0 and mean square 1/3, and the trace has mean 0.
    assert rotations.mean(0).abs().max() < 0.05
    assert (rotations.square().mean(0) - 1 / 3).abs().max() < 0.03
    assert abs(float(torch.einsum("bii->b", rotations).mean())) < 0.1


def test_everything_with_a_direction_turns_together():
    before, rotation = sample(), random_rotation(torch.Generator().manual_seed(1))
    after = turned(before, rotation)
    single = rotation.float()
    assert torch.allclose(after.pos, before.pos @ single.T, atol=1e-6)
    assert torch.allclose(after.forces, before.forces @ single.T, atol=1e-6)
    assert torch.allclose(after.cell, before.cell @ single.T, atol=1e-6)
    # The work of forces, and of the stress in a strain along a bond, are the same in both orientations.
    work = (before.forces * before.pos).sum()
    assert torch.allclose((after.forces * after.pos).sum(), work, atol=1e-5)
    bonds = [sample.pos[0] - sample.pos[1] for sample in (before, after)]
    strained = [bond @ sample.stress.reshape(3, 3) @ bond for bond, sample in zip(bonds, (before, after), strict=True)]
    assert torch.allclose(*strained, atol=1e-4)
    assert (after.energy, after.sid, after.natoms) == (1.5, "a", 4)
    assert torch.equal(before.pos, sample().pos), "the sample itself is left alone"
    assert all(after[key].dtype == before[key].dtype for key in ("pos", "forces", "cell", "stress"))
    assert after.stress.shape == (1, 9)


class OneSample(BaseDataset[Any]):
    def __init__(self, transforms: dict[str, Any]) -> None:
        super().__init__({"transforms": transforms})
        self.num_samples = 1

    def __getitem__(self, row: int) -> Any:
        return sample()


def test_parts_of_the_stress_are_made_from_the_turned_one():
    parts = {"stress_isotropic": {"irrep_dim": 0}, "stress_anisotropic": {"irrep_dim": 2}}
    decomposition = {"tensor": "stress", "rank": 2, "decomposition": parts}
    turned_sample = RotatedDataset(OneSample({"decompose_tensor": decomposition}), Rotations(copies=3))[2]
    irreps = torch.zeros(1, 9)
    irreps[:, :1], irreps[:, 4:] = turned_sample.stress_isotropic, turned_sample.stress_anisotropic
    assert torch.allclose(irreps @ cg_change_mat(2), turned_sample.stress.reshape(1, 9), atol=1e-5)
    assert not torch.allclose(turned_sample.stress, sample().stress, atol=0.1)


def test_copies_differ_and_are_the_same_again(data):
    made = [TrainingSet(fraction=0.5, rotations=Rotations(copies=4, seed=2)).of(dataset_of(data)) for _ in range(2)]
    assert len(made[0]) == 40
    copies = [made[0][row] for row in range(4)]
    assert len({copy.sid for copy in copies}) == 1
    assert len({tuple(copy.pos.reshape(-1).tolist()) for copy in copies}) == 4
    assert all(torch.equal(made[0][row].pos, made[1][row].pos) for row in (0, 7, 39))
    other = TrainingSet(fraction=0.5, rotations=Rotations(copies=4, seed=3)).of(dataset_of(data))
    assert not torch.equal(made[0][0].pos, other[0].pos)
    distances = [torch.cdist(copy.pos, copy.pos) for copy in copies]
    assert all(torch.allclose(distance, distances[0], atol=1e-4) for distance in distances)


def test_the_trainer_takes_the_share_of_the_training_set_alone(data, tmp_path):
    trainer = build(config(data, data.parent / "val.lmdb", **{SHARE: 0.25}), tmp_path)
    assert (len(trainer.train_dataset), len(trainer.val_dataset)) == (5, 5)
    assert len(trainer.train_loader) == 2
    trainer.train(disable_eval_tqdm=True)
    assert trainer.step == 4


def test_the_trainer_turns_structures_the_same_way_again(data, tmp_path):
    settings = config(data, dataset__train__rotations={"copies": 2}, model__dropout=0.0)
    runs = [build(settings, tmp_path, timestamp_id=name) for name in ("first", "second")]
    for run in runs:
        assert len(run.train_dataset) == 40
        run.train(disable_eval_tqdm=True)
    assert runs[0].logger.losses() == runs[1].logger.losses()
    without = build(config(data, model__dropout=0.0), tmp_path)
    without.train(disable_eval_tqdm=True)
    assert without.logger.losses()[1] != runs[0].logger.losses()[1]


def test_batches_of_copies_are_balanced_by_their_atoms(tmp_path):
    slabs = rattled_slabs(20, seed=0)
    path = write_lmdb(tmp_path / "train.lmdb", slabs)
    np.savez(tmp_path / "metadata.npz", natoms=np.array([len(atoms) for atoms in slabs]))
    dataset = TrainingSet(fraction=0.5, rotations=Rotations(copies=3)).of(dataset_of(path))
    rows = [29, 0, 1, 17]
    assert np.ravel(dataset.get_metadata("natoms", rows)).tolist() == [int(dataset[row].natoms) for row in rows]


def test_evaluations_on_the_way_are_short_and_others_are_not(data, tmp_path):
    settings = config(data, data.parent / "val.lmdb", dataset__val__at_most=2, optimizer__max_epochs=1)
    trainer = build(settings, tmp_path)
    assert len(trainer.val_loader.dataset) == 5
    trainer.train(disable_eval_tqdm=True)
    seen = [trainer.val_dataset[row].sid for row in range(2)]
    assert len(trainer.val_loader.dataset) == len(set(seen)) == 2
    again = build(settings, tmp_path)
    again.train(disable_eval_tqdm=True)
    assert [again.val_dataset[row].sid for row in range(2)] == seen
    many = build(config(data, data.parent / "val.lmdb", dataset__val__at_most=99, optimizer__max_epochs=1), tmp_path)
    many.train(disable_eval_tqdm=True)
    assert len(many.val_loader.dataset) == 5


@pytest.mark.parametrize("limit", [0, 2.5, "all", True])
def test_a_limit_that_is_no_number_is_refused(data, limit):
    with pytest.raises(
        ConfigError, match=f"dataset.val.at_most: must be a number of structures, at least 1, got {limit!r}"
    ):
        limited(dataset_of(data), {"at_most": limit})


def test_other_losses_choose_the_best_checkpoint_anew(data, tmp_path):
    """As the last epochs on MPtrj do: what was best before by other aims must not keep their result from being kept."""
    settings = config(data, data.parent / "val.lmdb", optimizer__eval_every=3, optimizer__checkpoint_every=5)
    first = build(settings, tmp_path, timestamp_id="first")
    first.train(disable_eval_tqdm=True)
    checkpoint = str(tmp_path / "checkpoints/first/checkpoint.pt")
    best = read_checkpoint(checkpoint)["best_val_metric"]
    assert best is not None
    other = [{"energy": {"fn": "mae", "coefficient": 100}}, {"forces": {"fn": "l2mae", "coefficient": 1}}]
    for losses, expected in ((settings["loss_functions"], best), (other, None)):
        second = build({**settings, "loss_functions": losses}, tmp_path, timestamp_id=f"second-{expected}")
        second.load_checkpoint(checkpoint)
        assert second.best_val_metric == expected
        assert second.step == first.step


def test_labels_that_would_stay_behind_are_refused(data, tmp_path):
    path = write_lmdb(tmp_path / "train.lmdb", rattled_slabs(8, seed=0))
    with_labels(path, dipole=torch.zeros(1, 3), charges=torch.zeros(1), total=torch.zeros(1))
    outputs = {"energy": {"level": "system"}, "forces": {"level": "atom"}}
    settings = config(path, dataset__train__rotations={"copies": 2})
    for more, refused in (({}, ""), ({"total": "system"}, ""), ({"dipole": "system"}, "dipole")):
        trainer = build(settings, tmp_path)
        trainer.output_targets = {**outputs, **{name: {"level": level} for name, level in more.items()}}
        if not refused:
            trainer.train_dataset.check_outputs(trainer.output_targets)
            continue
        with pytest.raises(ConfigError, match=r"the output 'dipole' has a direction \(3 components per system\)"):
            trainer.train(disable_eval_tqdm=True)
        assert trainer.step == 0
    made = RotatedDataset(dataset_of(path), Rotations(copies=2))
    with pytest.raises(ConfigError, match="the output 'quadrupole' has a direction"):
        made.check_outputs({"quadrupole": {"level": "system", "irrep_dim": 2}})


def with_labels(path: Path, **labels: torch.Tensor) -> None:
    """Add labels to all structures of a set."""
    with (
        lmdb.open(str(path), subdir=False, lock=False, map_size=2**26) as database,
        database.begin(write=True) as change,
    ):
        for row in range(pickle.loads(change.get(b"length"))):
            graph = pickle.loads(change.get(str(row).encode()))
            for name, value in labels.items():
                graph[name] = value
            change.put(str(row).encode(), pickle.dumps(graph, protocol=-1))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("stress", torch.zeros(1, 6), r"sid 'a': stress has the shape \(1, 6\).*9 components"),
        ("forces", torch.zeros(12), r"sid 'a': forces has the shape \(12,\).*last dimension must be 3"),
    ],
)
def test_labels_of_another_shape_are_named(name, value, message):
    odd = sample()
    odd[name] = value
    with pytest.raises(DataError, match=message):
        turned(odd, random_rotation(torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shape_that_occurs_later_is_named_without_a_traceback(workers, tmp_path):
    path = write_lmdb(tmp_path / "train.lmdb", rattled_slabs(4, seed=0))
    with_labels(path, stress=torch.zeros(1, 6))
    trainer = build(config(path, dataset__train__rotations={"copies": 2}, optimizer__num_workers=workers), tmp_path)
    with pytest.raises(DataError) as raised:
        list(trainer.train_loader)
    assert str(raised.value).startswith("sid 'cu")
    assert "Traceback" not in str(raised.value)


_TWO_PROCESSES = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import escaip_fairchem
import torch.distributed as dist
from trainer_cases import build, config
folder = Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=int(os.environ["RANK"]), world_size=2)
settings = config(folder / "train.lmdb", optimizer__batch_size=2, optimizer__load_balancing="atoms")
settings["dataset"]["train"] |= {"fraction": 0.5, "rotations": {"copies": 2}}
trainer = build(settings, folder)
batches = [batch.sid for batch in trainer.train_loader]
trainer.train(disable_eval_tqdm=True)
weights = sum(p.double().sum().item() for p in trainer.model.parameters())
print("RESULT" + json.dumps({"batches": batches, "weights": weights, "steps": trainer.step}), flush=True)
dist.barrier()
"""


@pytest.mark.end_to_end
def test_two_processes_share_out_the_copies_of_a_share_by_atoms(tmp_path):
    slabs = rattled_slabs(16, seed=0)
    write_lmdb(tmp_path / "train.lmdb", slabs)
    sizes = {f"cu{row}": len(atoms) for row, atoms in enumerate(slabs)}
    np.savez(tmp_path / "metadata.npz", natoms=np.array(list(sizes.values())))
    environment = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        run_python(_TWO_PROCESSES, tmp_path, folder=tmp_path, environment={**environment, "RANK": str(rank)})
        for rank in range(2)
    ]
    first, second = (json.loads(finish(process).split("RESULT")[1]) for process in processes)
    assert first["weights"] == second["weights"]
    assert first["steps"] == second["steps"] == 8
    rounds = list(zip(first["batches"], second["batches"], strict=True))
    assert len(rounds) == 4
    counts = Counter(name for both in rounds for part in both for name in part)
    assert list(counts.values()) == [2] * 8
    for both in rounds:
        # The largest to the one that has the least so far.
        expected = [0, 0]
        for size in sorted((sizes[name] for part in both for name in part), reverse=True):
            expected[expected.index(min(expected))] += size
        assert sorted(sum(sizes[name] for name in part) for part in both) == sorted(expected)
