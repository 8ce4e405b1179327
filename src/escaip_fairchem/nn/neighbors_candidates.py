"""Candidates for neighbours, gathered at one moment and chosen from at others.

:mod:`escaip_fairchem.nn.neighbors_skin` says why nothing is missed.

Legend: N atoms in the batch, B structures, P receivers, E candidate pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from escaip_fairchem.nn.neighbors import (
    Neighborhoods,
    fill_slots,
    find_neighbors,
    keep_nearest,
    rounded_up,
    tie_directions,
)
from escaip_fairchem.nn.neighbors_images import Lattice, Sites, per_site, rows, triangular_lattice, wrap
from escaip_fairchem.nn.neighbors_pairs import Pairs, bundles, distance_bounds
from escaip_fairchem.nn.neighbors_ties import TIE_TOLERANCE

CANDIDATES_PER_NEIGHBOR = 3
"""Most candidates of an atom, in units of its most neighbours. Bounds the memory, however dense the matter."""

ROUNDING = 1e-6
"""Å. Far more than what sums of distances and displacements lose to rounding."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What was asked, besides the positions. Candidates answer no other question.

    Attributes:
        cell_B33: Lattice vectors, Å.
        pbc_B3: True on periodic axes.
        structure_N: Structure of every atom.
        dtype: Type of the positions, which decides what counts as within the cutoff.
        cutoff: Largest distance of a neighbour, Å.
        max_neighbors: Most neighbours of an atom.
    """

    cell_B33: Tensor
    pbc_B3: Tensor
    structure_N: Tensor
    dtype: torch.dtype
    cutoff: float
    max_neighbors: int

    def copied(self) -> Question:
        """The same question, safe from changes in place."""
        return replace(
            self,
            cell_B33=self.cell_B33.clone(),
            pbc_B3=self.pbc_B3.clone(),
            structure_N=self.structure_N.clone(),
        )

    def is_same(self, other: Question) -> bool:
        """Whether the two are equal in everything."""
        if (self.dtype, self.cutoff, self.max_neighbors) != (other.dtype, other.cutoff, other.max_neighbors):
            return False
        mine, others = (self.cell_B33, self.pbc_B3, self.structure_N), (other.cell_B33, other.pbc_B3, other.structure_N)
        return all(
            left.dtype == right.dtype and left.device == right.device and torch.equal(left, right)
            for left, right in zip(mine, others, strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where the atoms of a question were.

    Attributes:
        question: What was asked.
        lattice: The lattices of the batch.
        sites: The atoms, wrapped.
    """

    question: Question
    lattice: Lattice
    sites: Sites

    def at(self, positions_N3: Tensor) -> Sites:
        """The same atoms at other positions, wrapped."""
        return wrap(positions_N3.double(), self.question.structure_N, self.lattice)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """All atoms near each atom at one moment.

    Attributes:
        moment: The moment.
        receiver_E: Row of the atom, ascending, int64.
        sender_E: Row of its candidate, int64.
        steps_E3: Lattice steps from the wrapped place of the candidate to its image that is near, float64.
        parts: Receivers and pairs that are looked at together.
        complete_N: How far each atom's candidates are all there are, Å.
        reach: The largest of these, Å.
    """

    moment: Moment
    receiver_E: Tensor
    sender_E: Tensor
    steps_E3: Tensor
    parts: tuple[tuple[slice, slice], ...]
    complete_N: Tensor
    reach: float


def note_moment(positions_N3: Tensor, question: Question) -> Moment:
    """Note where the atoms are; everything must be finite."""
    lattice = triangular_lattice(question.cell_B33.double(), question.pbc_B3)
    sites = wrap(positions_N3.double(), question.structure_N, lattice)
    return Moment(question=question, lattice=lattice, sites=sites)


def gather_candidates(positions_N3: Tensor, last: Moment, skin: float) -> Candidates:
    """List what is within the skin around the neighbours of each atom.

    Args:
        positions_N3: Positions as given, Å.
        last: A moment with the same question.
        skin: Å.

    Raises:
        StructureError: As from ``find_neighbors``.
    """
    question, sites = last.question, last.at(positions_N3)
    reach, most = question.cutoff + skin, CANDIDATES_PER_NEIGHBOR * question.max_neighbors
    near = find_neighbors(
        positions_N3,
        question.cell_B33,
        question.pbc_B3,
        question.structure_N,
        cutoff=reach,
        max_neighbors=most,
    )
    receiver_E, slot_E = near.mask_NK.nonzero(as_tuple=True)
    sender_E = near.sender_NK[receiver_E, slot_E]
    shift_N3 = sites.place_I6[:, 3:]
    steps_E3 = near.shift_NK3[receiver_E, slot_E] - shift_N3[sender_E] + shift_N3[receiver_E]
    now = replace(last, sites=sites)
    distance_E = separations(now, receiver_E, sender_E, steps_E3).norm(dim=1)

    # Complete up to the last slot, less what may be tied with it, or up to the reach where slots are left.
    distance_NK = torch.full((len(sites.atom_I), most), torch.inf, dtype=torch.float64, device=distance_E.device)
    distance_NK[receiver_E, slot_E] = distance_E
    last_N, neighbor_N = distance_NK[:, most - 1], distance_NK[:, question.max_neighbors - 1]
    complete_N = torch.minimum(last_N - 2 * TIE_TOLERANCE, neighbor_N + skin).clamp(max=reach)
    kept_E = rows(distance_E <= complete_N[receiver_E])
    receiver_E = receiver_E.index_select(0, kept_E)
    return Candidates(
        moment=now,
        receiver_E=receiver_E,
        sender_E=sender_E.index_select(0, kept_E),
        steps_E3=steps_E3.index_select(0, kept_E),
        parts=tuple(parts(torch.bincount(receiver_E, minlength=len(sites.atom_I)))),
        complete_N=complete_N,
        reach=float(complete_N.max()) if len(complete_N) else 0.0,
    )


def parts(count_N: Tensor) -> Iterator[tuple[slice, slice]]:
    """Split atoms with so many pairs each, and their pairs, into what is looked at together."""
    first = 0
    for receivers, total in bundles(count_N):
        yield receivers, slice(first, first + total)
        first += total


def choose(sites: Sites, candidates: Candidates, skin: float) -> Neighborhoods | None:
    """Choose the neighbours among the candidates; None where others could come into question.

    Args:
        sites: The atoms where they are now.
        candidates: Gathered when they were elsewhere.
        skin: Å.

    Raises:
        StructureError: If two atoms coincide.
    """
    question = candidates.moment.question
    moved_N, turns_N3 = movement(sites, candidates.moment)
    most_moved = farthest(moved_N)
    if not most_moved < skin / 2:  # written so that NaN is refused too
        return None
    found = [nearest_candidates(sites, candidates, turns_N3, *part) for part in candidates.parts]
    receiver_E = torch.cat([pairs.receiver_E for pairs in found])
    distance_E = torch.cat([pairs.distance_E for pairs in found])
    last_N = torch.zeros_like(moved_N).scatter_reduce(0, receiver_E, distance_E, "amax")
    is_full_N = torch.bincount(receiver_E, minlength=len(moved_N)) == question.max_neighbors
    limit = rounded_up(question.cutoff, question.dtype)
    needed_N = torch.where(is_full_N, last_N + 2 * TIE_TOLERANCE, limit).clamp(max=limit)
    if bool((needed_N > candidates.complete_N - moved_N - (most_moved + ROUNDING)).any()):
        return None
    return fill_slots(found, len(moved_N))


def nearest_candidates(sites: Sites, candidates: Candidates, turns_N3: Tensor, receivers: slice, pairs: slice) -> Pairs:
    """Choose the neighbours of some atoms among their candidates."""
    question, lattice = candidates.moment.question, candidates.moment.lattice
    receiver_E, sender_E = candidates.receiver_E[pairs], candidates.sender_E[pairs]
    steps_E3 = candidates.steps_E3[pairs] - (turns_N3.index_select(0, sender_E) - turns_N3.index_select(0, receiver_E))
    vector_E3 = separations(replace(candidates.moment, sites=sites), receiver_E, sender_E, steps_E3)
    distance_E = vector_E3.norm(dim=1)
    row_E = receiver_E - receivers.start
    # Beyond the reach nothing is certain, and a smaller radius has narrower shells.
    radius = min(rounded_up(question.cutoff, question.dtype), candidates.reach)
    atoms = receivers.stop - receivers.start
    bound_P = distance_bounds(row_E, distance_E, radius, atoms, at_least=question.max_neighbors)
    near_E = rows(distance_E <= bound_P.index_select(0, row_E))
    receiver_E, sender_E = receiver_E.index_select(0, near_E), sender_E.index_select(0, near_E)
    shift_N3 = sites.place_I6[:, 3:]
    shift_E3 = shift_N3.index_select(0, sender_E) - shift_N3.index_select(0, receiver_E)
    near = Pairs(
        receiver_E=receiver_E,
        sender_E=sender_E,
        distance_E=distance_E.index_select(0, near_E),
        difference_E6=torch.cat(
            [vector_E3.index_select(0, near_E), steps_E3.index_select(0, near_E) + shift_E3], dim=1
        ),
    )
    return keep_nearest(near, tie_directions(lattice), question.structure_N, question.max_neighbors, torch.inf)


def separations(moment: Moment, receiver_E: Tensor, sender_E: Tensor, steps_E3: Tensor) -> Tensor:
    """Vectors from receivers to images of senders, by the operations of ``find_neighbors``, shape (E, 3), Å."""
    position_N3 = moment.sites.position_I3.contiguous()
    structure_E = moment.question.structure_N.index_select(0, receiver_E)
    move_E33 = per_site(moment.lattice.move_B36[:, :, :3], structure_E)
    place_E3 = position_N3.index_select(0, sender_E)
    for axis in (2, 1, 0):
        place_E3 = place_E3 + steps_E3[:, axis, None] * move_E33[:, axis]
    return place_E3 - position_N3.index_select(0, receiver_E)


def movement(sites: Sites, before: Moment) -> tuple[Tensor, Tensor]:
    """Split what each atom has moved in its cell into lattice vectors and the rest.

    Any split is right as long as the parts add up; this one leaves little where atoms have moved little.

    Returns:
        Length of the rest, shape (N,), Å; lattice steps of the wrapped place, shape (N, 3), float64.
    """
    structure_N = before.question.structure_N
    moved_N3 = sites.position_I3 - before.sites.position_I3
    move_N33 = per_site(before.lattice.move_B36[:, :, :3], structure_N)
    period_N3 = per_site(before.lattice.period_B3, structure_N)
    turns_N3 = torch.empty_like(moved_N3)
    for axis in (2, 1, 0):
        turns_N3[:, axis] = torch.round(moved_N3[:, axis] / period_N3[:, axis])
        moved_N3 = moved_N3 - turns_N3[:, axis, None] * move_N33[:, axis]
    return moved_N3.norm(dim=1), turns_N3


def farthest(moved_N: Tensor) -> float:
    """The longest of some movements, Å."""
    return float(moved_N.max()) if len(moved_N) else 0.0
