"""A neighbour search that remembers: dynamics and relaxations choose anew among the candidates of an earlier search.

What is returned is what ``find_neighbors`` would return, to the last bit and slot. Two things make it so:

- *No neighbour is missed.* When the candidates of atom i are gathered, they are all atoms within some distance R(i) of
  it. If atom i has since moved by u(i), and no atom by more than u, then no distance to it has shrunk by more than
  u(i) + u, so the candidates still are all atoms within R(i) − u(i) − u. The search's result depends only on neighbours
  up to the cutoff, and only on those up to the last one chosen and what is tied with it. If either is less than
  R(i) − u(i) − u for every atom, the choice among the candidates is the choice among all; else they are gathered anew.
  Nothing is assumed about how atoms move: an atom that jumps by a lattice vector (because someone wrapped it) has
  moved by what is left after that vector is taken off, and its images are renumbered.
- *The numbers are the same.* Differences of positions are computed by the same operations on the same operands, and
  chosen and ordered by the same functions.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn.neighbors import Neighborhoods, find_neighbors
from escaip_fairchem.nn.neighbors_candidates import (
    Candidates,
    Moment,
    Question,
    choose,
    farthest,
    gather_candidates,
    movement,
    note_moment,
)


class SkinSearch:
    """A stand-in for ``find_neighbors`` that gives the same results, faster while atoms move little between calls.

    Candidates are gathered once two calls in a row have been near each other, so that unrelated structures and
    changing cells cost what they cost ``find_neighbors``. They are kept in memory, at most
    ``CANDIDATES_PER_NEIGHBOR`` per slot. Copies and pickles start without.

    Args:
        skin: How much farther than the last neighbour candidates are gathered, Å. They serve at least as long as no
            atom has moved by a quarter of it, and never when one has moved by half of it.

    Raises:
        ConfigError: The skin is not a positive number.
    """

    def __init__(self, skin: float) -> None:
        if not 0 < skin < math.inf:
            raise ConfigError(f"skin: {skin} Å; it must be a positive number")
        self.skin = skin
        self._last: Moment | None = None
        self._candidates: Candidates | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"skin": self.skin, "_last": None, "_candidates": None}

    @torch.no_grad()
    def __call__(
        self,
        positions_N3: Tensor,
        cell_B33: Tensor,
        pbc_B3: Tensor,
        structure_N: Tensor,
        *,
        cutoff: float,
        max_neighbors: int,
    ) -> Neighborhoods:
        """Find the nearest neighbours of every atom. Arguments, result and errors are those of ``find_neighbors``."""
        question = Question(
            cell_B33=cell_B33,
            pbc_B3=pbc_B3,
            structure_N=structure_N,
            dtype=positions_N3.dtype,
            cutoff=cutoff,
            max_neighbors=max_neighbors,
        )
        last = self._last
        if last is not None and last.question.is_same(question):
            sites = last.at(positions_N3)
            found = choose(sites, self._candidates, self.skin) if self._candidates else None
            if found is None and farthest(movement(sites, last)[0]) < self.skin / 4:
                self._candidates = gather_candidates(positions_N3, last, self.skin)
                found = choose(sites, self._candidates, self.skin)
            if found is not None:
                self._last = replace(last, sites=sites)
                return found
        self._last = self._candidates = None
        neighborhoods = find_neighbors(
            positions_N3, cell_B33, pbc_B3, structure_N, cutoff=cutoff, max_neighbors=max_neighbors
        )
        self._last = note_moment(positions_N3, question.copied())
        return neighborhoods
