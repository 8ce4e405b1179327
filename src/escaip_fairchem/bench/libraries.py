"""Neighbour lists from other libraries, made into what this package's search returns.

They list every pair within the cutoff, from which the nearest neighbours are then picked by this package's rule.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from escaip_fairchem.bench.models import NotAvailableError
from escaip_fairchem.nn import Neighborhoods, Systems, neighborhoods_from_edges

PACKAGES = {"vesin": "vesin", "matscipy": "matscipy", "nvalchemi": "nvalchemi-toolkit-ops"}
"""Names of the methods, and of the packages that provide them."""

_MODULES = {"vesin": "vesin", "matscipy": "matscipy.neighbours", "nvalchemi": "nvalchemiops.torch.neighbors"}
_SPARE_NEIGHBORS = 1.5
_DENSEST = 0.1  # atoms per Å³, from which room for the neighbours within a cutoff is guessed

Edges = tuple[Tensor, Tensor]
"""Senders and receivers, shape (2, E), and periodic images of the senders, shape (E, 3)."""


def library_search(method: str, systems: Systems, *, cutoff: float, max_neighbors: int) -> Callable[[], Neighborhoods]:
    """Prepare a search by a library.

    Args:
        method: A key of :data:`PACKAGES`.
        systems: A single structure.
        cutoff: Å.
        max_neighbors: Most neighbours of an atom.

    Raises:
        NotAvailableError: The library is not installed, does not work here, or cannot search a batch.
    """
    module = _import(method)
    if systems.num_structures != 1:
        raise NotAvailableError(f"{PACKAGES[method]} is measured on single structures only")
    pairs = partial(_PAIRS[method], module, systems, cutoff)

    def search() -> Neighborhoods:
        edges_2E, shift_E3 = pairs()
        return neighborhoods_from_edges(
            edges_2E,
            shift_E3,
            systems.positions_N3,
            systems.cell_B33,
            systems.structure_N,
            cutoff=cutoff,
            max_neighbors=max_neighbors,
        )

    return search


def _import(method: str) -> Any:
    try:
        return importlib.import_module(_MODULES[method])
    except ModuleNotFoundError as error:
        raise NotAvailableError(f"{PACKAGES[method]} is not installed ({error})") from error
    except (ImportError, ValueError) as error:  # ValueError: registering operations with a torch that is too old
        raise NotAvailableError(f"{PACKAGES[method]} cannot be imported with torch {torch.__version__}") from error


def _vesin(module: Any, systems: Systems, cutoff: float) -> Edges:
    neighbor_list = module.NeighborList(cutoff=cutoff, full_list=True)
    receiver, sender, shift = neighbor_list.compute(
        points=systems.positions_N3.double().cpu().numpy(),
        box=systems.cell_B33[0].double().cpu().numpy(),
        periodic=systems.pbc_B3[0].tolist(),
        quantities="ijS",
    )
    return _edges(sender, receiver, shift, systems)


def _matscipy(module: Any, systems: Systems, cutoff: float) -> Edges:
    receiver, sender, shift = module.neighbour_list(
        "ijS",
        positions=systems.positions_N3.double().cpu().numpy(),
        cell=systems.cell_B33[0].double().cpu().numpy(),
        pbc=systems.pbc_B3[0].cpu().numpy(),
        cutoff=cutoff,
    )
    return _edges(sender, receiver, shift, systems)


def _edges(sender: Any, receiver: Any, shift: Any, systems: Systems) -> Edges:
    device = systems.positions_N3.device
    edges_2E = torch.stack([torch.as_tensor(rows.astype("int64"), device=device) for rows in (sender, receiver)])
    return edges_2E, torch.as_tensor(shift, device=device)


def _nvalchemi(module: Any, systems: Systems, cutoff: float) -> Edges:
    within = 4.19 * cutoff**3 * _DENSEST
    pairs_2E, _, shift_E3 = module.neighbor_list(
        systems.positions_N3.double(),
        cutoff,
        cell=systems.cell_B33.double(),
        pbc=systems.pbc_B3,
        return_neighbor_list=True,
        max_neighbors=int(_SPARE_NEIGHBORS * within),
    )
    return pairs_2E.long().flip(0), shift_E3


_PAIRS: dict[str, Callable[[Any, Systems, float], Edges]] = {
    "vesin": _vesin,
    "matscipy": _matscipy,
    "nvalchemi": _nvalchemi,
}
