"""Neighbours that come with the batch: the same predictions, no search in the model, and never for other structures."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from model_cases import ZOO, atoms_of, batch_of, model_of
from torch_geometric.data import Batch

from escaip_fairchem.errors import DataError
from escaip_fairchem.plugin import batches, prepared
from escaip_fairchem.plugin.backbone import EScAIPBackbone
from escaip_fairchem.plugin.models import EScAIP
from escaip_fairchem.plugin.prepared import KEY, prepare, seal, to_device
from escaip_fairchem.plugin.trainer.loaders import Collater, build_loader
from escaip_fairchem.testing import Structure

CPU = torch.device("cpu")


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of atoms of the searches that were made."""
    made: list[int] = []
    original = batches.neighborhoods_of_batch

    def noted(*args: Any, **options: Any) -> Any:
        made.append(len(args[1].numbers_N))
        return original(*args, **options)

    monkeypatch.setattr(prepared, "neighborhoods_of_batch", noted)
    return made


def backbone_of(model: EScAIP) -> EScAIPBackbone:
    assert isinstance(model.backbone, EScAIPBackbone)
    return model.backbone


def prepared_batch(model: EScAIP, zoo: list[Structure] = ZOO, **options: Any) -> Batch:
    batch = batch_of(zoo, **options)
    prepare(batch, backbone_of(model).neighbor_search())
    return seal(batch)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("kind", ["direct", "conservative"])
@pytest.mark.parametrize("stored", [False, True], ids=["searched", "stored edges"])
def test_predictions_are_the_same_without_a_search(kind: str, stored: bool, searches: list[int]) -> None:
    zoo = [ZOO[0], ZOO[-1]] if stored else ZOO  # fairchem makes edges of periodic structures only
    model = model_of(kind, otf_graph=not stored)
    expected = model(batch_of(zoo, edges=stored))
    batch = prepared_batch(model, zoo, edges=stored)
    assert len(searches) == 2
    assert_same(model(batch), expected)
    assert_same(model(to_device(batch, CPU)), expected)
    assert len(searches) == 2


def move_atom(batch: Batch) -> None:
    batch.pos[3, 0] += 0.7


def replace_positions(batch: Batch) -> None:
    batch.pos = batch.pos + 0.3 * torch.randn(batch.pos.shape, generator=torch.Generator().manual_seed(0))


def stretch_cell(batch: Batch) -> None:
    batch.cell = batch.cell * 1.2


def change_element(batch: Batch) -> None:
    batch.atomic_numbers[0] = 17


def remove_periodicity(batch: Batch) -> None:
    batch.pbc.fill_(False)


CHANGES = [move_atom, replace_positions, stretch_cell, change_element, remove_periodicity]


@pytest.mark.parametrize("when", ["before moving", "after moving"])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_structures_are_searched_anew(change: Any, when: str, searches: list[int]) -> None:
    """Also where the change lies between the loader and the device."""
    model = model_of()
    batch, expected = prepared_batch(model), batch_of(ZOO)
    change(expected)
    if when == "after moving":
        batch = to_device(batch, CPU)
    change(batch)
    searches.clear()
    found = model(to_device(batch, CPU))
    assert searches == [25]
    assert_same(found, model(expected))


COPIES = {
    "clone": lambda batch: batch.clone(),
    "clone with neighbourhoods": prepared.clone,
    "shallow": copy.copy,
    "deep": copy.deepcopy,
    "to": lambda batch: batch.to("cpu"),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_give_the_same(copied: Any) -> None:
    """A copy's tensors are others, so it may be searched again; what it predicts does not change."""
    model = model_of()
    expected = model(batch_of(ZOO))
    batch = copied(prepared_batch(model))
    assert_same(model(batch), expected)
    move_atom(batch)
    moved = batch_of(ZOO)
    move_atom(moved)
    assert_same(model(batch), model(moved))


def test_clones_of_ours_are_not_searched_again(searches: list[int]) -> None:
    model = model_of()
    batch = prepared_batch(model)
    copied = prepared.clone(batch)
    searches.clear()
    move_atom(batch)
    assert_same(model(copied), model(batch_of(ZOO)))
    assert searches == [25]  # of the batch that was not prepared
    changed = prepared.clone(batch)
    searches.clear()
    model(changed)
    assert searches == [25]


def test_parts_of_a_batch_do_not_inherit() -> None:
    model = model_of()
    parts = prepared_batch(model).to_data_list()
    assert all(KEY not in part for part in parts)


def test_another_model_searches_by_its_own_settings(searches: list[int]) -> None:
    batch, other = prepared_batch(model_of()), model_of(max_neighbors=4)
    searches.clear()
    assert_same(other(batch), other(batch_of(ZOO)))
    assert len(searches) == 2


def test_what_nobody_vouched_for_is_not_used(searches: list[int]) -> None:
    """A loader seals; between the search in a worker and that, a batch may have been anything."""
    model = model_of()
    batch = batch_of(ZOO)
    prepare(batch, backbone_of(model).neighbor_search())
    searches.clear()
    model(batch)
    assert searches == [25]


def test_tensors_without_counted_changes_are_not_vouched_for(searches: list[int]) -> None:
    model = model_of()
    with torch.inference_mode():
        batch = prepared_batch(model)
        expected = model(batch_of(ZOO))
        searches.clear()
        assert_same(model(batch), expected)
    assert searches == [25]


def test_neighbourhoods_move_with_the_batch() -> None:
    batch = to_device(prepared_batch(model_of()), torch.device("meta"))
    assert batch.pos.device.type == "meta"
    assert batch[KEY].neighborhoods.sender_NK.device.type == "meta"
    assert batch[KEY].belongs_to(batch)
    assert not batch[KEY].belongs_to(to_device(prepared_batch(model_of()), torch.device("meta")))


def test_a_structure_that_cannot_be_searched_is_left_to_the_model() -> None:
    model = model_of()
    for key, value, message in (("pos", float("nan"), "sid 's0', .*is at"), ("atomic_numbers", 94, "sid 's0', .*94")):
        batch = batch_of(ZOO)
        batch[key][0] = value
        prepare(batch, backbone_of(model).neighbor_search())
        assert KEY not in batch
        with pytest.raises(DataError, match=message):
            model(seal(batch))


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_search_for_the_model(workers: int, searches: list[int]) -> None:
    from fairchem.core.preprocessing import AtomsToGraphs

    model = model_of()
    convert = AtomsToGraphs(r_energy=False, r_forces=False, r_distances=False, r_pbc=True, r_edges=False)
    dataset = [convert.convert(atoms_of(structure)) for structure in ZOO]
    collate = Collater(stored_edges=False)
    collate.search = backbone_of(model).neighbor_search()
    loader = build_loader(dataset, [[0, 1], [2, 3, 4]], collate=collate, workers=workers, device=CPU)
    loaded = list(loader)
    assert len(searches) == (0 if workers else 2)
    searches.clear()
    for batch, rows in zip(loaded, ([0, 1], [2, 3, 4]), strict=True):
        assert_same(model(batch), model(batch_of([ZOO[row] for row in rows])))
    assert len(searches) == 2  # of the batches that are compared with
