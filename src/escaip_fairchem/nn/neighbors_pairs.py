"""Pairs of atoms closer than a radius, by sorting into boxes.

Legend: P receivers, I images of atoms, B structures, E pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from escaip_fairchem.nn.neighbors_images import Lattice, Sites, images_within, per_site, ragged_ranges, rows
from escaip_fairchem.nn.neighbors_ties import TIE_TOLERANCE

PAIR_BUDGET = 2**19
"""Candidate pairs looked at together. With some 100 bytes each, this bounds the search's temporaries to about 50 MB."""

ROUNDING_MARGIN = 1e-6
"""Added to regions and boxes (Å), so that no rounding can put a pair at exactly the radius out of reach."""

COLUMNS_PER_RADIUS = 1
"""Columns of boxes along y and z that cover a search radius. More enclose the sphere more tightly, but are more runs of
boxes to locate."""

BOXES_PER_RADIUS = (64, COLUMNS_PER_RADIUS, COLUMNS_PER_RADIUS)
"""Boxes along x, y, z that cover a search radius. Along x, many cost no more than few."""

SHELLS = 32
"""Spherical shells of equal width in which neighbours are counted, to leave out early those that are too far."""

MAX_BOXES_PER_AXIS = 2**17
"""Keeps the numbers of the boxes within 64 bits for atoms that are very far apart."""


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Rectangular boxes that tile each structure's region, numbered along x first, then y, z and structures.

    Attributes:
        tiling_B6: Lower corner of the tiling and edges of a box, Å. ``BOXES_PER_RADIUS`` of them cover the search
            radius at least.
        number_B4: Differences of the numbers of two boxes that touch in x, y, z, and number of each structure's first
            box; int64.
    """

    tiling_B6: Tensor
    number_B4: Tensor


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Ordered pairs (receiver, image of a sender).

    Attributes:
        receiver_E: Row of the receiver in the batch, int64.
        sender_E: Row of the sender in the batch, int64.
        distance_E: Å, float64.
        difference_E6: From receiver to sender, Å, float64, in whatever frame its maker works in, and beside it the
            periodic image of the sender for the positions as given.
    """

    receiver_E: Tensor
    sender_E: Tensor
    distance_E: Tensor
    difference_E6: Tensor

    def select(self, rows_E: Tensor) -> Pairs:
        """Return the pairs in the given rows."""
        return Pairs(
            receiver_E=self.receiver_E.index_select(0, rows_E),
            sender_E=self.sender_E.index_select(0, rows_E),
            distance_E=self.distance_E.index_select(0, rows_E),
            difference_E6=self.difference_E6.index_select(0, rows_E),
        )


def tile(low_B3: Tensor, high_B3: Tensor, reach: float) -> Boxes:
    """Cut regions, widened by the reach and one box on all sides, into boxes."""
    edge_3 = reach / low_B3.new_tensor(BOXES_PER_RADIUS)
    edge_B3 = ((high_B3 - low_B3) / MAX_BOXES_PER_AXIS).clamp(min=edge_3)
    origin_B3 = low_B3 - reach - edge_B3
    count_B3 = torch.ceil((high_B3 + reach - origin_B3) / edge_B3).long() + 1
    boxes_B3 = count_B3.cumprod(1)
    end_B1 = boxes_B3[:, 2:].cumsum(0)
    number_B4 = torch.cat([torch.ones_like(end_B1), boxes_B3[:, :2], end_B1 - boxes_B3[:, 2:]], dim=1)
    return Boxes(tiling_B6=torch.cat([origin_B3, edge_B3], dim=1), number_B4=number_B4)


def region(sites: Sites, structure_N: Tensor, structures: int) -> tuple[Tensor, Tensor]:
    """Return the corners of the smallest box around each structure's sites, (B, 3) each; empty ones get a point."""
    index_I3 = structure_N[sites.atom_I].unsqueeze(-1).expand(-1, 3)
    start_B3 = sites.position_I3.new_zeros(structures, 3)
    low_B3 = start_B3.scatter_reduce(0, index_I3, sites.position_I3, "amin", include_self=False)
    high_B3 = start_B3.scatter_reduce(0, index_I3, sites.position_I3, "amax", include_self=False)
    return low_B3, high_B3


def pairs_within(
    receivers: Sites, senders: Sites, structure_N: Tensor, lattice: Lattice, radius: float, *, at_least: int
) -> Iterator[Pairs]:
    """Find the pairs with a distance of at most a radius, an atom with itself left out.

    Args:
        receivers: Atoms whose neighbours are wanted, wrapped, in ascending order.
        senders: All atoms of their structures, wrapped.
        structure_N: Structure of every atom of the batch, int64.
        lattice: The lattices of the batch.
        radius: Å.
        at_least: Number of nearest neighbours, with all that are tied with the last of them, that must be among the
            pairs of each receiver that has as many. Most of those that are farther are left out.

    Yields:
        The pairs of one bundle of receivers after the other, with vectors in the triangular frame.
    """
    low_B3, high_B3 = region(receivers, structure_N, len(lattice.period_B3))
    reach = radius + ROUNDING_MARGIN
    images = images_within(senders, structure_N, lattice, low_B3 - reach, high_B3 + reach)
    boxes = tile(low_B3, high_B3, reach)
    images, box_I = sort_into_boxes(images, structure_N, boxes)
    start_PR, count_PR = runs_around(receivers, structure_N, boxes, box_I, reach)
    position_I3, position_P3 = images.position_I3.contiguous(), receivers.position_I3.contiguous()
    for bundle, candidates in bundles(count_PR.sum(1)):
        own = receivers.part(bundle)
        start_R, count_R = start_PR[bundle].flatten(), count_PR[bundle].flatten()
        run_E, image_E = ragged_ranges(start_R, count_R, candidates)
        receiver_E = run_E.div(start_PR.shape[1], rounding_mode="floor")
        vector_E3 = position_I3.index_select(0, image_E) - position_P3[bundle].index_select(0, receiver_E)
        distance_E = vector_E3.norm(dim=1)
        bound_P = distance_bounds(receiver_E, distance_E, radius, len(own.atom_I), at_least + 1)  # 1: itself
        near_E = rows(distance_E <= bound_P.index_select(0, receiver_E))
        receiver, image = own.select(receiver_E.index_select(0, near_E)), images.select(image_E.index_select(0, near_E))
        pairs = Pairs(
            receiver_E=receiver.atom_I,
            sender_E=image.atom_I,
            distance_E=distance_E.index_select(0, near_E),
            difference_E6=image.place_I6 - receiver.place_I6,
        )
        # An atom's own images are at least a lattice vector away.
        yield pairs.select(rows((pairs.distance_E > 0) | (pairs.receiver_E != pairs.sender_E)))


def distance_bounds(receiver_E: Tensor, distance_E: Tensor, radius: float, receivers: int, at_least: int) -> Tensor:
    """Bound how far each receiver's nearest neighbours can be, by counting how many there are in shells.

    Args:
        receiver_E: Row of each pair's receiver, int64.
        distance_E: Å. What exceeds the radius is not counted.
        radius: Å.
        receivers: Number of receivers, P.
        at_least: Number of nearest pairs that must be within the bound, and those tied with the last of them.

    Returns:
        Å, at most the radius, shape (P,). The radius itself where there are not as many pairs.
    """
    width = radius / SHELLS
    shell_E = (distance_E / width).long().clamp(max=SHELLS)
    cell_E = receiver_E * (SHELLS + 1) + shell_E
    count_PS = torch.bincount(cell_E, minlength=receivers * (SHELLS + 1)).reshape(receivers, SHELLS + 1)[:, :SHELLS]
    shells_P = (count_PS.cumsum(1) < at_least).sum(1).double() + 1
    return (shells_P * width + 2 * TIE_TOLERANCE).clamp(max=radius)


def sort_into_boxes(images: Sites, structure_N: Tensor, boxes: Boxes) -> tuple[Sites, Tensor]:
    """Order images by box; return them and their boxes."""
    structure_I = structure_N.index_select(0, images.atom_I)
    tiling_I6 = per_site(boxes.tiling_B6, structure_I)
    number_I4 = per_site(boxes.number_B4, structure_I)
    steps_I3 = ((images.position_I3 - tiling_I6[:, :3]) / tiling_I6[:, 3:]).floor().long()
    box_I, order_I = ((steps_I3 * number_I4[:, :3]).sum(1) + number_I4[:, 3]).sort()
    return images.select(order_I), box_I


def runs_around(
    receivers: Sites, structure_N: Tensor, boxes: Boxes, box_I: Tensor, reach: float
) -> tuple[Tensor, Tensor]:
    """Locate the images around each receiver: runs along x, one for each column of boxes that the sphere touches.

    Args:
        receivers: Atoms whose surroundings are wanted, wrapped.
        structure_N: Structure of every atom of the batch, int64.
        boxes: The tiling.
        box_I: Boxes of the images, sorted, int64.
        reach: Radius of the sphere, Å.

    Returns:
        Where each run starts among the sorted images and how many it holds, shape (P, runs), int64.
    """
    structure_P = structure_N.index_select(0, receivers.atom_I)
    tiling_P6 = per_site(boxes.tiling_B6, structure_P)
    number_P4 = per_site(boxes.number_B4, structure_P)
    edge_P3 = tiling_P6[:, 3:]
    place_P3 = (receivers.position_I3 - tiling_P6[:, :3]) / edge_P3
    place_P2, column_P2 = place_P3[:, 1:], place_P3[:, 1:].floor()
    steps_S = torch.arange(-COLUMNS_PER_RADIUS, COLUMNS_PER_RADIUS + 1, device=box_I.device)
    # How far outside the columns the receiver is, in y and in z. What is left of the radius shortens their runs.
    low_P2S = (column_P2 - place_P2).unsqueeze(2) + steps_S
    outside_P2S = torch.maximum(low_P2S, -1 - low_P2S).clamp(min=0) * edge_P3[:, 1:, None]
    yz_P2S = (column_P2.long().unsqueeze(2) + steps_S) * number_P4[:, 1:3, None]
    square_PSS = reach**2 - outside_P2S[:, 0, :, None].square() - outside_P2S[:, 1, None].square()
    half_PR = (square_PSS.clamp(min=0).sqrt() / edge_P3[:, :1, None]).flatten(1)
    first_PR = (yz_P2S[:, 0, :, None] + yz_P2S[:, 1, None] + number_P4[:, 3, None, None]).flatten(1)
    start_PR = torch.searchsorted(box_I, first_PR + (place_P3[:, :1] - half_PR).floor().long())
    end_PR = torch.searchsorted(box_I, first_PR + (place_P3[:, :1] + half_PR).floor().long(), right=True)
    return start_PR, (end_PR - start_PR) * (square_PSS >= 0).flatten(1)


def bundles(candidates_P: Tensor) -> Iterator[tuple[slice, int]]:
    """Split receivers into consecutive bundles that stay within the pair budget.

    Args:
        candidates_P: How many candidate pairs each receiver has, int64.

    Yields:
        The receivers, and how many candidates they have together. A bundle exceeds ``PAIR_BUDGET`` by less than its
        first receiver's share. Without receivers there is one empty bundle.
    """
    # A receiver takes memory without candidates too: its shells are counted.
    bundle_P = (candidates_P + SHELLS).cumsum(0).sub(1).div(PAIR_BUDGET, rounding_mode="floor")
    _, size_S = bundle_P.unique_consecutive(return_counts=True)
    end_S = size_S.cumsum(0)
    ends = torch.stack([end_S, candidates_P.cumsum(0).index_select(0, end_S - 1)], dim=1).tolist()
    for (first, before), (end, total) in itertools.pairwise([[0, 0], *(ends or [[0, 0]])]):
        yield slice(first, end), total - before
