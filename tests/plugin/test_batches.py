"""From fairchem's batches to plain tensors: periodicity by structure, stored edges, names in errors."""

from __future__ import annotations

import copy

import pytest
import torch
from model_cases import ZOO, batch_of, model_of
from torch.utils._python_dispatch import TorchDispatchMode

from escaip_fairchem.errors import DataError
from escaip_fairchem.plugin.batches import (
    errors_name_samples,
    neighborhoods_of_batch,
    systems_from_batch,
)
from escaip_fairchem.plugin.samples import SampleNames
from escaip_fairchem.testing import batch, structures


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_systems_are_those_of_the_structures(dtype):
    systems, expected = systems_from_batch(batch_of(ZOO), use_pbc=True, dtype=dtype), batch(ZOO, dtype)
    assert systems.positions_N3.dtype == systems.cell_B33.dtype == dtype
    assert torch.allclose(systems.positions_N3, expected.positions_N3, atol=1e-6)
    # Where there is no cell, fairchem's converter puts a cube of 1 Å.
    expected_cell = torch.where(expected.pbc_B3.any(1)[:, None, None], expected.cell_B33, torch.eye(3, dtype=dtype))
    assert torch.allclose(systems.cell_B33, expected_cell, atol=1e-6)
    for name in ("pbc_B3", "numbers_N", "structure_N"):
        assert torch.equal(getattr(systems, name), getattr(expected, name)), name
        assert getattr(systems, name).dtype == getattr(expected, name).dtype


@pytest.mark.parametrize("shape", [(-1,), (-1, 3), (1, -1, 3)])
def test_periodicity_is_each_structure_s_own_in_any_shape(shape):
    data = batch_of(ZOO)
    data.pbc = data.pbc.reshape(shape)
    assert torch.equal(systems_from_batch(data, use_pbc=True, dtype=torch.float32).pbc_B3, batch(ZOO).pbc_B3)


def test_old_data_without_periodicity_are_periodic():
    data = batch_of(ZOO[:1])
    del data.pbc
    assert systems_from_batch(data, use_pbc=True, dtype=torch.float32).pbc_B3.all()


def test_use_pbc_false_makes_molecules_of_all():
    assert not systems_from_batch(batch_of(ZOO), use_pbc=False, dtype=torch.float32).pbc_B3.any()


class Repetitions(TorchDispatchMode):
    """Notes how often torch has to ask the device for the length of a repetition."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "repeat_interleave" in function.name():
            self.asked.append((kwargs or {}).get("output_size") is None)
        return function(*args, **(kwargs or {}))


def test_the_number_of_atoms_is_not_asked_of_the_device():
    data = batch_of(ZOO)
    with Repetitions() as repetitions:
        systems_from_batch(data, use_pbc=True, dtype=torch.float32)
    assert repetitions.asked == [False]


def test_contradictions_are_refused():
    data = batch_of(ZOO)
    data.natoms = data.natoms + 1
    with pytest.raises(DataError, match=r"natoms add up to 30, but there are 25 positions"):
        systems_from_batch(data, use_pbc=True, dtype=torch.float32)
    data = batch_of(ZOO)
    data.pbc = data.pbc.reshape(-1)[:3]
    with pytest.raises(DataError, match="pbc holds 3 values for 5 structures; each needs 3"):
        systems_from_batch(data, use_pbc=True, dtype=torch.float32)


def edges_of(neighborhoods):
    return [
        sorted((int(j), *map(int, s)) for j, s, used in zip(*row, strict=True) if used)
        for row in zip(neighborhoods.sender_NK, neighborhoods.shift_NK3, neighborhoods.mask_NK, strict=True)
    ]


def both_ways(data, **settings):
    systems = systems_from_batch(data, use_pbc=True, dtype=torch.float32)
    return [edges_of(neighborhoods_of_batch(data, systems, on_the_fly=otf, **settings)) for otf in (True, False)]


def test_stored_edges_are_the_searched_ones():
    crystals = [structures.disordered(1), structures.disordered(2, 4), structures.rock_salt()]
    data = batch_of(crystals, edges=True, cutoff=4.3, max_neigh=200)
    searched, stored = both_ways(data, cutoff=4.3, max_neighbors=200)
    assert searched == stored
    assert max(map(len, stored)) > 10


def test_stored_edges_are_really_used():
    data = batch_of([structures.disordered(1)], edges=True, cutoff=4.0, max_neigh=200)
    kept = data.edge_index[1] != 0  # atom 0 loses its neighbours
    data.edge_index, data.cell_offsets = data.edge_index[:, kept], data.cell_offsets[kept]
    searched, stored = both_ways(data, cutoff=4.0, max_neighbors=200)
    assert stored[0] == []
    assert searched[0] != []
    assert searched[1:] == stored[1:]


def test_without_stored_edges_a_warning_says_that_they_are_searched():
    data = batch_of(ZOO)
    systems = systems_from_batch(data, use_pbc=True, dtype=torch.float32)
    with pytest.warns(UserWarning, match="otf_graph: false, but the data holds no edges; neighbours are searched"):
        found = neighborhoods_of_batch(data, systems, cutoff=5.0, max_neighbors=20, on_the_fly=False)
    expected = neighborhoods_of_batch(data, systems, cutoff=5.0, max_neighbors=20, on_the_fly=True)
    assert edges_of(found) == edges_of(expected)


def test_structures_are_named_by_what_the_batch_knows():
    data = batch_of(ZOO)
    assert SampleNames.of(data).name(2) == "sid 's2', fid 12"
    del data.fid
    assert SampleNames.of(data).name(2) == "sid 's2'"
    data.sid = torch.tensor([7, 8, 9, 10, 11])
    assert SampleNames.of(data).name(2) == "sid '9'"
    del data.sid
    assert SampleNames.of(data).name(2) is None


def test_errors_without_a_structure_and_other_errors_pass_unchanged():
    data = batch_of(ZOO)
    with pytest.raises(DataError, match=r"^about the file$"), errors_name_samples(data):
        raise DataError("about the file")
    with pytest.raises(KeyError), errors_name_samples(data):
        raise KeyError("other")


BROKEN = {
    "element": ("atomic_numbers", 94.0, r"sid 's1', fid 11: structure 1 of the batch: atomic number 94 needs"),
    "negative element": ("atomic_numbers", -1.0, r"sid 's1', .*atomic number -1 is no atomic number"),
    "position": ("pos", float("nan"), r"sid 's1', fid 11: .* atom 1 is at \[nan"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_structure_is_named_by_its_sample_id(case):
    key, value, message = BROKEN[case]
    data = copy.deepcopy(batch_of(ZOO))
    first = int(data.ptr[1])
    data.atomic_numbers = data.atomic_numbers.long()  # unsigned bytes, as fairchem's converter makes them
    data[key][first + 1] = value
    with pytest.raises(DataError, match=message):
        model_of()(data)


def test_without_sample_ids_the_row_in_the_batch_is_named():
    data = batch_of(ZOO)
    del data.sid
    data.atomic_numbers[-1] = 100
    with pytest.raises(DataError, match=r"^structure 4 of the batch: atomic number 100 needs max_num_elements ≥ 101"):
        model_of()(data)
