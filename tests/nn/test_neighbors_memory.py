"""The memory of the neighbour search grows with the structures and not with the worst cell of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from neighbor_cases import batch_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from escaip_fairchem.nn.neighbors import find_neighbors
from escaip_fairchem.nn.neighbors_pairs import PAIR_BUDGET, SHELLS, bundles


class LargestTensor(TorchDispatchMode):
    """Records the size in bytes of the largest tensor that any operation produces."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.largest = max(self.largest, leaf.untyped_storage().nbytes())
        return result


def largest_tensor(structures: list[Atoms], cutoff: float) -> int:
    """Return the bytes of the largest tensor while the structures are searched."""
    inputs = batch_of(structures, torch.float32)
    with LargestTensor() as recorder:
        find_neighbors(*inputs, cutoff=cutoff, max_neighbors=20)
    return recorder.largest


@pytest.mark.parametrize("cutoff", [6.0, 12.0])
def test_a_tiny_cell_does_not_inflate_its_batch_mates(cutoff: float) -> None:
    slab, tiny = fcc111("Cu", (10, 10, 5), vacuum=10.0), bulk("Po", "sc", a=2.0)
    alone = largest_tensor([slab], cutoff) + largest_tensor([tiny], cutoff)
    assert largest_tensor([slab, tiny], cutoff) <= 1.1 * alone


def test_no_temporary_of_a_large_structure_exceeds_the_budget() -> None:
    """Eight times the atoms: the largest tensor stays where it is until the atoms themselves need more."""
    small, large = bulk("Cu", cubic=True).repeat(9), bulk("Cu", cubic=True).repeat(18)
    assert largest_tensor([small], 12.0) <= PAIR_BUDGET * 30
    assert largest_tensor([large], 12.0) <= PAIR_BUDGET * 30


def test_bundles_keep_within_the_budget_and_leave_nothing_out() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, PAIR_BUDGET // 5, (500,), generator=generator)
    counts[100], counts[101], counts[300:320] = 3 * PAIR_BUDGET, PAIR_BUDGET, 0
    parts = list(bundles(counts))
    assert torch.equal(torch.cat([torch.arange(500)[part] for part, _ in parts]), torch.arange(500))
    assert [total for _, total in parts] == [int(counts[part].sum()) for part, _ in parts]
    assert all(int((counts[part] + SHELLS)[1:].sum()) <= PAIR_BUDGET for part, _ in parts)


def test_receivers_without_candidates_are_bundled_too() -> None:
    assert len(list(bundles(torch.zeros(PAIR_BUDGET, dtype=torch.int64)))) == SHELLS
    assert list(bundles(torch.zeros(0, dtype=torch.int64))) == [(slice(0, 0), 0)]
