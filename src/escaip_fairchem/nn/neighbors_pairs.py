"""Pairs of atoms closer than a radius, by sorting into boxes.

Legend: P receivers, I images of atoms, B structures, E pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from escaip_fairchem.nn.neighbors_images import Lattice, Sites, images_within, ragged_ranges, rows

PAIR_BUDGET = 2**19
"""Candidate pairs looked at together. With some 100 bytes each, this bounds the search's temporaries to about 50 MB."""

ROUNDING_MARGIN = 1e-6
"""Added to regions and boxes (Å), so that no rounding can put a pair at exactly the radius out of reach."""

BOXES_PER_RADIUS = (4, 2, 2)
"""Boxes along x, y, z that cover a search radius. Smaller boxes enclose the sphere more tightly, but are more."""

MAX_BOXES_PER_AXIS = 2**17
"""Keeps the numbers of the boxes within 64 bits for atoms that are very far apart."""


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Rectangular boxes that tile each structure's region, numbered along x first, then y, z and structures.

    Attributes:
        origin_B3: Lower corner of the tiling, Å.
        edge_B3: Edges of a box, Å. ``BOXES_PER_RADIUS`` of them cover the search radius at least.
        stride_B3: Difference of the numbers of two boxes that touch in x, y, z; int64.
        first_B: Number of each structure's first box, int64.
    """

    origin_B3: Tensor
    edge_B3: Tensor
    stride_B3: Tensor
    first_B: Tensor

    def number(self, positions_I3: Tensor, structure_I: Tensor) -> Tensor:
        """Return the number of the box that holds each position, shape (I,), int64."""
        steps_I3 = torch.floor((positions_I3 - self.origin_B3[structure_I]) / self.edge_B3[structure_I]).long()
        return self.first_B[structure_I] + (steps_I3 * self.stride_B3[structure_I]).sum(1)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Ordered pairs (receiver, image of a sender).

    Attributes:
        receiver_E: Row of the receiver in the batch, int64.
        sender_E: Row of the sender in the batch, int64.
        shift_E3: Periodic image of the sender for the positions as given, int64.
        vector_E3: From receiver to sender, Å, float64, in whatever frame its maker works in.
    """

    receiver_E: Tensor
    sender_E: Tensor
    shift_E3: Tensor
    vector_E3: Tensor

    def is_self(self) -> Tensor:
        """Return True for the pairs of an atom with itself, not with one of its images. Shape (E,), bool."""
        return (self.receiver_E == self.sender_E) & ~self.shift_E3.any(1)

    def select(self, rows_E: Tensor) -> Pairs:
        """Return the pairs in the given rows."""
        # index_select is several times faster than indexing, and here is where most of the time is spent.
        return Pairs(
            receiver_E=self.receiver_E.index_select(0, rows_E),
            sender_E=self.sender_E.index_select(0, rows_E),
            shift_E3=self.shift_E3.index_select(0, rows_E),
            vector_E3=self.vector_E3.index_select(0, rows_E),
        )


def tile(low_B3: Tensor, high_B3: Tensor, reach: float) -> Boxes:
    """Cut regions, widened by the reach and one box on all sides, into boxes."""
    edge_3 = reach / low_B3.new_tensor(BOXES_PER_RADIUS)
    edge_B3 = ((high_B3 - low_B3) / MAX_BOXES_PER_AXIS).clamp(min=edge_3)
    origin_B3 = low_B3 - reach - edge_B3
    count_B3 = torch.ceil((high_B3 + reach - origin_B3) / edge_B3).long() + 1
    stride_B3 = torch.cat([torch.ones_like(count_B3[:, :1]), count_B3[:, :2].cumprod(1)], dim=1)
    total_B = count_B3.prod(1)
    return Boxes(origin_B3=origin_B3, edge_B3=edge_B3, stride_B3=stride_B3, first_B=total_B.cumsum(0) - total_B)


def region(sites: Sites, structure_N: Tensor, structures: int) -> tuple[Tensor, Tensor]:
    """Return the corners of the smallest box around each structure's sites, (B, 3) each; empty ones get a point."""
    index_I3 = structure_N[sites.atom_I].unsqueeze(-1).expand(-1, 3)
    start_B3 = sites.position_I3.new_zeros(structures, 3)
    low_B3 = start_B3.scatter_reduce(0, index_I3, sites.position_I3, "amin", include_self=False)
    high_B3 = start_B3.scatter_reduce(0, index_I3, sites.position_I3, "amax", include_self=False)
    return low_B3, high_B3


def pairs_within(
    receivers: Sites, senders: Sites, structure_N: Tensor, lattice: Lattice, radius: float
) -> Iterator[Pairs]:
    """Find every pair with a distance of at most a radius, an atom with itself left out.

    Args:
        receivers: Atoms whose neighbours are wanted, wrapped, in ascending order.
        senders: All atoms of their structures, wrapped.
        structure_N: Structure of every atom of the batch, int64.
        lattice: The lattices of the batch.
        radius: Å.

    Yields:
        All pairs of one bundle of receivers after the other, with vectors in the triangular frame.
    """
    low_B3, high_B3 = region(receivers, structure_N, len(lattice.vectors_B33))
    reach = radius + ROUNDING_MARGIN
    images = images_within(senders, structure_N, lattice, low_B3 - reach, high_B3 + reach)
    boxes = tile(low_B3, high_B3, reach)
    images, box_I = sort_into_boxes(images, structure_N, boxes, low_B3 - reach, high_B3 + reach)
    start_PR, count_PR = runs_around(receivers, structure_N, boxes, box_I)
    for bundle_P in bundles(count_PR.sum(1)):
        run_E, image_E = ragged_ranges(start_PR[bundle_P].flatten(), count_PR[bundle_P].flatten())
        receiver_E = bundle_P[run_E // start_PR.shape[1]]
        vector_E3 = images.position_I3.index_select(0, image_E) - receivers.position_I3.index_select(0, receiver_E)
        near_E = rows(vector_E3.norm(dim=1) <= radius)
        receiver, image = receivers.select(receiver_E[near_E]), images.select(image_E[near_E])
        pairs = Pairs(
            receiver_E=receiver.atom_I,
            sender_E=image.atom_I,
            shift_E3=image.shift_I3 - receiver.shift_I3,
            vector_E3=image.position_I3 - receiver.position_I3,
        )
        yield pairs.select(rows(~pairs.is_self()))


def sort_into_boxes(
    images: Sites, structure_N: Tensor, boxes: Boxes, low_B3: Tensor, high_B3: Tensor
) -> tuple[Sites, Tensor]:
    """Drop the images outside their structure's region and order the others by box; return them and their boxes."""
    structure_I = structure_N[images.atom_I]
    inside_I = (images.position_I3 >= low_B3[structure_I]) & (images.position_I3 <= high_B3[structure_I])
    kept_I = rows(inside_I.all(1))
    box_I, order_I = boxes.number(images.position_I3[kept_I], structure_I[kept_I]).sort(stable=True)
    return images.select(kept_I[order_I]), box_I


def runs_around(receivers: Sites, structure_N: Tensor, boxes: Boxes, box_I: Tensor) -> tuple[Tensor, Tensor]:
    """Locate the images in the boxes around each receiver: runs along x, one for each pair of steps in y and z.

    Returns:
        Where each run starts among the sorted images and how many it holds, shape (P, runs), int64.
    """
    along_x, *across = BOXES_PER_RADIUS
    structure_P = structure_N[receivers.atom_I]
    centre_P = boxes.number(receivers.position_I3, structure_P)
    steps_R2 = torch.cartesian_prod(*[torch.arange(-count, count + 1, device=box_I.device) for count in across])
    middle_PR = centre_P.unsqueeze(1) + (boxes.stride_B3[structure_P, 1:].unsqueeze(1) * steps_R2).sum(-1)
    start_PR = torch.searchsorted(box_I, middle_PR - along_x)
    end_PR = torch.searchsorted(box_I, middle_PR + along_x, right=True)
    return start_PR, end_PR - start_PR


def bundles(candidates_P: Tensor) -> Iterator[Tensor]:
    """Split receivers into consecutive bundles that stay within the pair budget.

    Args:
        candidates_P: How many candidate pairs each receiver has, int64.

    Yields:
        Rows of receivers, int64. A bundle exceeds ``PAIR_BUDGET`` by less than its first receiver's candidates.
        Without receivers there is one empty bundle.
    """
    bundle_P = (candidates_P.cumsum(0) - 1).div(PAIR_BUDGET, rounding_mode="floor")
    _, sizes = bundle_P.unique_consecutive(return_counts=True)
    yield from torch.arange(len(candidates_P), device=candidates_P.device).split(sizes.tolist() or [0])
