"""Neighbours found where data are loaded, so that a step on a GPU does not wait for a search.

How many neighbours there are, only the device knows that searched for them, and the host has to ask. So the loader
searches on the CPU, in its workers if it has any, and the neighbourhoods travel with the batch. They belong to the very
tensors they were made from: a batch whose positions or cells were replaced or changed is searched anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from escaip_fairchem.errors import DataError
from escaip_fairchem.nn import Neighborhoods, Systems, find_neighbors
from escaip_fairchem.plugin.batches import neighborhoods_of_batch, systems_from_batch

if TYPE_CHECKING:
    from torch_geometric.data import Batch

KEY = "neighborhoods"
"""Under which a batch holds what was prepared."""

SOURCES = ("pos", "cell", "pbc", "natoms", "atomic_numbers", "edge_index", "cell_offsets")
"""What neighbourhoods are made from."""


@dataclass(frozen=True, kw_only=True)
class NeighborSearch:
    """How a model looks for neighbours.

    Attributes:
        cutoff: Radius in Å.
        max_neighbors: Largest number of neighbours of an atom.
        max_num_elements: Rows of the element embeddings.
        use_pbc: If false, every structure counts as a molecule.
        on_the_fly: Whether to search even if edges are stored.
        dtype: Floating-point type of the network.
    """

    cutoff: float
    max_neighbors: int
    max_num_elements: int
    use_pbc: bool
    on_the_fly: bool
    dtype: torch.dtype

    def systems(self, batch: Batch) -> Systems:
        """Read the structures of a batch, see :func:`systems_from_batch`."""
        return systems_from_batch(batch, use_pbc=self.use_pbc, dtype=self.dtype)

    def neighborhoods(
        self, batch: Batch, systems: Systems, *, find: Callable[..., Neighborhoods] = find_neighbors
    ) -> Neighborhoods:
        """Those that were prepared, if they still fit the batch, else those of a new search.

        Args:
            batch: The batch.
            systems: Its structures.
            find: What searches, called as :func:`find_neighbors`.

        Raises:
            DataError: A structure has none, or an element that the model does not know.
        """
        prepared: PreparedNeighborhoods | None = batch.get(KEY)
        if prepared is not None and prepared.search == self and prepared.belongs_to(batch):
            return prepared.neighborhoods
        systems.check_elements(self.max_num_elements)
        return neighborhoods_of_batch(
            batch,
            systems,
            cutoff=self.cutoff,
            max_neighbors=self.max_neighbors,
            on_the_fly=self.on_the_fly,
            search=find,
        )


@dataclass(frozen=True, eq=False)
class PreparedNeighborhoods:
    """Neighbourhoods with what they were made by and from.

    Attributes:
        search: How they were found.
        neighborhoods: The result.
        sources: The batch's tensors of :data:`SOURCES` with their versions, or None where nobody has vouched for them.
    """

    search: NeighborSearch
    neighborhoods: Neighborhoods
    sources: tuple[tuple[Tensor | None, int], ...] | None = None

    def belongs_to(self, batch: Batch) -> bool:
        """Whether the batch holds the same tensors with the same values."""
        if self.sources is None:
            return False
        now = _sources(batch)
        return now is not None and all(
            old is new and version == new_version
            for (old, version), (new, new_version) in zip(self.sources, now, strict=True)
        )

    # torch-geometric passes these two calls on to everything that a batch holds.

    def to(self, *args: Any, **options: Any) -> PreparedNeighborhoods:
        """The same on another device, as ``Tensor.to``."""
        return self._moved("to", *args, **options)

    def pin_memory(self) -> PreparedNeighborhoods:
        """The same in memory from which copies to a GPU need not be waited for."""
        return self._moved("pin_memory")

    def _moved(self, method: str, *args: Any, **options: Any) -> PreparedNeighborhoods:
        old = self.neighborhoods
        tensors = {field.name: getattr(old, field.name) for field in fields(old)}
        moved = {name: getattr(tensor, method)(*args, **options) for name, tensor in tensors.items()}
        return PreparedNeighborhoods(self.search, Neighborhoods(**moved))


def prepare(batch: Batch, search: NeighborSearch) -> None:
    """Search, and attach the result to the batch, for :func:`seal` to be called on.

    A structure that cannot be searched is left to the model. It finds the same fault when the batch is its turn, and
    names the sample; an error raised here might come out of a worker, many steps early.
    """
    try:
        systems = search.systems(batch)
        batch[KEY] = PreparedNeighborhoods(search, search.neighborhoods(batch, systems))
    except DataError:
        return


def seal(batch: Any) -> Any:
    """Vouch that a batch's prepared neighbourhoods are those of its present tensors.

    Args:
        batch: fairchem's batch. Whatever else a loader gives, and a batch without any, passes unchanged.

    Returns:
        The batch.
    """
    prepared = batch.get(KEY) if isinstance(batch, Data) else None
    if prepared is not None:
        batch[KEY] = PreparedNeighborhoods(prepared.search, prepared.neighborhoods, _sources(batch))
    return batch


def to_device(batch: Any, device: torch.device) -> Any:
    """Move a batch without waiting, and its prepared neighbourhoods with it."""
    belongs = _belongs(batch)  # before, for this changes the batch itself
    batch = batch.to(device, non_blocking=True)
    return seal(batch) if belongs else batch


def clone(batch: Any) -> Any:
    """A copy of a batch with tensors of its own, and the prepared neighbourhoods where it has them."""
    return seal(batch.clone()) if _belongs(batch) else batch.clone()


def _belongs(batch: Any) -> bool:
    """Whether a batch has prepared neighbourhoods of its present tensors."""
    prepared = batch.get(KEY)
    return prepared is not None and prepared.belongs_to(batch)


def _sources(batch: Batch) -> tuple[tuple[Tensor | None, int], ...] | None:
    """Tensors with the counts of their changes in place; None where torch does not count (``inference_mode``)."""
    tensors = [batch.get(name) for name in SOURCES]
    if any(tensor is not None and tensor.is_inference() for tensor in tensors):
        return None
    return tuple((tensor, 0 if tensor is None else tensor._version) for tensor in tensors)
