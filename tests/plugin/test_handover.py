"""Batches that leave a loader process as one piece of memory are the same batches."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from fairchem.core.datasets import LmdbDataset
from torch import Tensor
from trainer_cases import rattled_slabs, write_lmdb

from escaip_fairchem.plugin.prepared import KEY, NeighborSearch
from escaip_fairchem.plugin.trainer.handover import ALIGNMENT, Packed, pack, unpack
from escaip_fairchem.plugin.trainer.loaders import Collater, build_loader

SEARCH = NeighborSearch(
    cutoff=5.0, max_neighbors=8, max_num_elements=100, use_pbc=True, on_the_fly=True, dtype=torch.float32
)


def over(value: Any) -> Any:
    """As through a queue."""
    return unpack(pickle.loads(pickle.dumps(pack(value))))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3),
        torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T,  # not contiguous
        torch.arange(10)[3:7:2],
        torch.tensor(2.5),
        torch.tensor([True, False, True]),
        torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        torch.tensor([1 + 2j]),
        torch.zeros(0, 3),
        torch.tensor([200], dtype=torch.uint8),
        torch.full((1,), torch.nan),
        torch.tensor([1 + 2j]).conj(),  # stay in the pickle from here on
        torch.nn.Parameter(torch.ones(2)),
        torch.eye(3).to_sparse(),
    ],
)
def test_a_tensor_comes_out_as_it_went_in(tensor: Tensor) -> None:
    found = over({"values": [tensor, "word"]})["values"][0]
    assert type(found) is type(tensor)
    assert (found.dtype, found.shape, found.requires_grad) == (tensor.dtype, tensor.shape, tensor.requires_grad)
    assert torch.equal(found.to_dense().nan_to_num(), tensor.to_dense().nan_to_num())


def test_what_is_one_tensor_stays_one() -> None:
    tensor = torch.ones(3)
    first, again, other = over((tensor, tensor, torch.ones(3)))
    assert first is again
    assert first is not other
    assert len(pack((tensor, tensor)).places) == 1


def test_tensors_share_memory_but_neither_places_nor_counts_of_changes() -> None:
    packed = pack([torch.ones(3), torch.ones(5, dtype=torch.float64), torch.ones(1, dtype=torch.bool)])
    assert [offset % ALIGNMENT for _, offset, _ in packed.places] == [0, 0, 0]
    first, second, third = unpack(packed)
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    first.zero_()
    assert (first._version, second._version, third._version) == (1, 0, 0)
    assert second.eq(1).all()
    assert third.all()


def test_a_value_without_tensors() -> None:
    assert over({"a": 1}) == {"a": 1}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("data") / "train.lmdb"
    write_lmdb(path, rattled_slabs(5, 0))
    return LmdbDataset({"src": str(path)})


def batches(dataset: Any, workers: int, search: NeighborSearch | None = SEARCH) -> Iterator[Any]:
    collate = Collater(stored_edges=False)
    collate.search = search
    rows = torch.utils.data.BatchSampler(range(5), batch_size=2, drop_last=False)
    return iter(build_loader(dataset, rows, collate=collate, workers=workers, device=torch.device("cpu")))


def test_batches_of_a_worker_are_those_of_none(dataset: Any) -> None:
    for here, there in zip(batches(dataset, 0), batches(dataset, 1), strict=True):
        assert sorted(here.keys()) == sorted(there.keys())
        for key in set(here.keys()) - {KEY}:
            assert type(here[key]) is type(there[key])
            assert torch.equal(here[key], there[key]) if isinstance(here[key], Tensor) else here[key] == there[key]
        for field in fields(here[KEY].neighborhoods):
            ours, theirs = (getattr(batch[KEY].neighborhoods, field.name) for batch in (here, there))
            assert torch.equal(ours, theirs)
        assert [str(sample) for sample in here.to_data_list()] == [str(sample) for sample in there.to_data_list()]


def test_a_changed_label_costs_no_search_and_a_changed_position_does(dataset: Any) -> None:
    """Though all of a batch lies in one piece of memory."""
    batch = next(batches(dataset, 1))
    batch.forces.mul_(2)
    assert batch[KEY].belongs_to(batch)
    batch.pos.mul_(2)
    assert not batch[KEY].belongs_to(batch)


def test_a_batch_leaves_a_worker_as_one_tensor(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each more costs a connection to the worker."""
    monkeypatch.setattr("escaip_fairchem.plugin.trainer.loaders._opened", lambda given: given)
    assert [type(given) for given in batches(dataset, 1)] == [Packed] * 3
