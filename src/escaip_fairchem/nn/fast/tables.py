"""Tables of what depends on a distance alone, for inference.

The distance enters every layer as ``W act(W_d rbf(d))``: two matrix products, one of them with hundreds of basis
functions, to evaluate a function of one number. Here it is sampled once per set of parameters and then read
from a cubic spline. The grid is refined until the spline is as good as the arithmetic of the model's precision.

Legend: G grid points, E slots, H width of a layer.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import jvp  # type: ignore[attr-defined]  # public, but not declared so
from torch.nn import functional

from escaip_fairchem.nn.fast import spline
from escaip_fairchem.nn.fast.flatten import tensors_in
from escaip_fairchem.nn.precision import full_precision

if TYPE_CHECKING:
    from escaip_fairchem.nn.blocks import GraphAttention, InputBlock
    from escaip_fairchem.nn.graph import Graph
    from escaip_fairchem.nn.model import Backbone

TOLERANCE = 3e-7
"""Largest root mean square error of a table, in units of the function's: some roundings of float32."""

SLOPE_TOLERANCE = 1e-6
"""The same for slopes, where forces are derivatives."""

SMOOTHNESS = {"relu": 0, "leaky_relu": 0, "squared_relu": 1, "star_relu": 1, "smelu": 1}
"""Continuous derivatives of activations that have not all. A table needs one, and one more for slopes: a spline errs
at kinks, which are too rare to be found by checking some distances."""

GRID_SIZES = (256, 1024, 2048, 4096, 8192, 16384)
"""Numbers of intervals from 0 to the cutoff that are tried in turn."""

CHECKED_DISTANCES = 509
"""Distances at which a table is compared with the function, spread evenly, mostly between grid points."""

INTERVALS_BEYOND = 2
"""Intervals of a table beyond the cutoff: rounding may put a neighbour just outside it."""


class TableError(Exception):
    """No table of an allowed size is as exact as it has to be."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The distance term of one layer.

    Slopes have a table of their own: as differences of float32 values they would lose digits.

    Attributes:
        values_GH: Spline coefficients from the grid point before 0 on, shape (G, H). The last row belongs to slots
            without a neighbour.
        slopes_GH: The same of the derivative by distance, 1/Å; None where forces are no derivatives.
    """

    values_GH: Tensor
    slopes_GH: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The distance terms of all layers on one grid.

    Attributes:
        spacing: Distance between grid points, Å.
        layers: One table per layer.
    """

    spacing: float
    layers: list[Table]

    def look_up(self, graph: Graph) -> TableTerms:
        """Find every slot's place in the tables; it is the same in all layers."""
        position_NK = graph.distance_NK.detach() / self.spacing
        first_NK = position_NK.floor()
        neighbor_NK1 = graph.edge_mask_NK.unsqueeze(-1)
        offsets_4 = torch.arange(4, device=first_NK.device)
        index_NK4 = first_NK.long().unsqueeze(-1) + offsets_4
        weights_NK4 = spline.weights(position_NK - first_NK)
        return TableTerms(
            tables=self,
            distance_NK=graph.distance_NK,
            index_NK4=torch.where(neighbor_NK1, index_NK4, len(self.layers[0].values_GH) - 1),
            weights_NK4=torch.where(neighbor_NK1, weights_NK4, (offsets_4 == 0).to(weights_NK4.dtype)),
        )


@dataclass(frozen=True, kw_only=True)
class TableTerms:
    """The distance terms by way of tables.

    Attributes:
        tables: The tables.
        distance_NK: Distances, Å.
        index_NK4: Rows of the four coefficients of every slot.
        weights_NK4: Their weights.
    """

    tables: Tables
    distance_NK: Tensor
    index_NK4: Tensor
    weights_NK4: Tensor

    def add_to(self, total_CKH: Tensor, reader: InputBlock | GraphAttention, layer: int, atoms: slice) -> Tensor:
        """Add the term of a layer, see :class:`escaip_fairchem.nn.fast.distances.DistanceTerms`."""
        weights_E4, index_E4 = self.weights_NK4[atoms].reshape(-1, 4), self.index_NK4[atoms].reshape(-1, 4)
        distance_E = self.distance_NK[atoms].reshape(-1)
        table = self.tables.layers[layer]
        term_EH: Tensor = interpolate(distance_E, index_E4, weights_E4, table.values_GH, table.slopes_GH)
        return total_CKH + term_EH.view(total_CKH.shape)

    def constants(self) -> list[Tensor]:
        """The tables, see :class:`escaip_fairchem.nn.fast.distances.DistanceTerms`."""
        return tensors_in(self.tables)


@torch.library.custom_op(
    "escaip::interpolate",
    mutates_args=(),
    schema="(Tensor distance, Tensor index, Tensor weights, Tensor values, Tensor? slopes) -> Tensor",
)
def interpolate(
    distance_E: Tensor, index_E4: Tensor, weights_E4: Tensor, values_GH: Tensor, slopes_GH: Tensor | None
) -> Tensor:
    """Values of a table at distances, with the table of slopes as their derivative; shape (E, H).

    An operation of its own, so that compilers keep it whole with its derivative, which they could not work out.
    """
    return weighted_rows(values_GH, index_E4, weights_E4)


@interpolate.register_fake
def _interpolated_shape(
    distance_E: Tensor, index_E4: Tensor, weights_E4: Tensor, values_GH: Tensor, slopes_GH: Tensor | None
) -> Tensor:
    return values_GH.new_empty(len(index_E4), values_GH.shape[1])


def _keep_slopes(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    _, index_E4, weights_E4, _, slopes_GH = inputs
    ctx.save_for_backward(index_E4, weights_E4, slopes_GH)


@once_differentiable
def _distance_gradient(ctx: Any, gradient_EH: Tensor) -> tuple[Tensor | None, ...]:
    index_E4, weights_E4, slopes_GH = ctx.saved_tensors
    assert slopes_GH is not None, "only tables of conservative models have a derivative"
    return (gradient_EH * weighted_rows(slopes_GH, index_E4, weights_E4)).sum(-1), None, None, None, None


interpolate.register_autograd(_distance_gradient, setup_context=_keep_slopes)


def weighted_rows(table_GH: Tensor, index_E4: Tensor, weights_E4: Tensor) -> Tensor:
    """Weighted sums of four rows of a table, shape (E, H)."""
    return functional.embedding_bag(index_E4, table_GH, per_sample_weights=weights_E4, mode="sum")


def readers(backbone: Backbone) -> list[InputBlock | GraphAttention]:
    """The layers that read edge attributes, in order."""
    return [backbone.input_block, *(block.graph_attention for block in backbone.blocks)]


@torch.no_grad()
def build(backbone: Backbone) -> Tables:
    """Tabulate the distance terms of a backbone, on the coarsest grid that is fine enough for all layers.

    Raises:
        TableError: Even the finest grid is not, or the activation puts kinks into the functions.
    """
    config = backbone.config
    if SMOOTHNESS.get(config.activation, 9) < 1 + config.is_conservative:
        raise TableError(f"activation: {config.activation} is not smooth enough")
    layers_read = readers(backbone)
    with full_precision(next(backbone.parameters()).device):
        for intervals in GRID_SIZES:
            spacing = config.max_radius / intervals
            layers: list[Table] = []
            for reader in layers_read:
                table = DistanceFunction(backbone, reader).tabulated(spacing, intervals)
                if table is None:
                    break
                layers.append(table)
            if len(layers) == len(layers_read):
                return Tables(spacing=spacing, layers=layers)
    raise TableError(f"a table of {GRID_SIZES[-1]} intervals changes a layer's distance term by more than {TOLERANCE}")


class DistanceFunction:
    """The distance term of one layer as a function, in float64.

    Args:
        backbone: Gives the radial basis and the cutoff.
        reader: The layer.
    """

    def __init__(self, backbone: Backbone, reader: InputBlock | GraphAttention) -> None:
        parameter = next(backbone.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        self.cutoff, self.has_slopes = backbone.config.max_radius, backbone.config.is_conservative
        self.basis = copy.deepcopy(backbone.radial_basis).double()
        self.embedding = copy.deepcopy(reader.edge_attributes.distance_embedding).double().eval()
        self.weight = reader.edge_linear.affine.weight[:, : self.embedding.affine.out_features].double()

    def values(self, distance_E: Tensor) -> Tensor:
        """The term at distances of shape (E,), shape (E, H)."""
        return self.of_basis(self.basis(distance_E.unsqueeze(0)).squeeze(0))

    def slopes(self, distance_E: Tensor) -> Tensor:
        """The derivative of the term, 1/Å, shape (E, H)."""
        slopes_EH: Tensor = jvp(self.values, (distance_E,), (torch.ones_like(distance_E),))[1]
        return slopes_EH

    def of_basis(self, radial_EG: Tensor) -> Tensor:
        """The term for a radial basis of shape (E, G)."""
        return functional.linear(self.embedding(radial_EG), self.weight)

    def tabulated(self, spacing: float, intervals: int) -> Table | None:
        """The table with that grid, None if it is not exact enough."""
        values_GH = self._coefficients(self.values, spacing, intervals)
        if not self._error(self.values, values_GH, spacing) <= TOLERANCE:
            return None
        nothing_1G = values_GH.new_zeros(1, self.embedding.affine.in_features)
        values_GH = torch.cat((values_GH, self.of_basis(nothing_1G))).to(self.dtype)
        if not self.has_slopes:
            return Table(values_GH=values_GH, slopes_GH=None)
        slopes_GH = self._coefficients(self.slopes, spacing, intervals)
        if not self._error(self.slopes, slopes_GH, spacing) <= SLOPE_TOLERANCE:
            return None
        return Table(values_GH=values_GH, slopes_GH=functional.pad(slopes_GH, (0, 0, 0, 1)).to(self.dtype))

    def _coefficients(self, function: Callable[[Tensor], Tensor], spacing: float, intervals: int) -> Tensor:
        """Spline coefficients from the grid point before 0 to the end of the table, shape (G, H)."""
        first, last = -1 - spline.FILTER_REACH, intervals + INTERVALS_BEYOND + 1 + spline.FILTER_REACH
        points_G = torch.arange(first, last + 1, dtype=torch.float64, device=self.device)
        return spline.coefficients(function(points_G * spacing))

    def _error(self, function: Callable[[Tensor], Tensor], table_GH: Tensor, spacing: float) -> float:
        """Error of a table between its grid points."""
        distance_E = torch.linspace(0.0, self.cutoff, CHECKED_DISTANCES, dtype=torch.float64, device=self.device)
        position_E = distance_E / spacing
        first_E = position_E.floor()
        index_E4 = first_E.long().unsqueeze(-1) + torch.arange(4, device=self.device)
        return error(weighted_rows(table_GH, index_E4, spline.weights(position_E - first_E)), function(distance_E))


def error(actual: Tensor, reference: Tensor) -> float:
    """Root mean square difference in units of the reference's root mean square; infinite if it is not finite."""
    value = float((actual - reference).square().mean().sqrt() / reference.square().mean().sqrt())
    return value if math.isfinite(value) else math.inf


class TableKeeper:
    """Keeps a backbone's tables for as long as they fit its parameters."""

    def __init__(self) -> None:
        self._fingerprint: Fingerprint | None = None
        self._tables: Tables | None = None

    def tables(self, backbone: Backbone) -> Tables | None:
        """The tables of a backbone as it is now; None, with a warning, where they cannot be exact enough."""
        fingerprint = fingerprint_of(backbone)
        if fingerprint != self._fingerprint:
            self._fingerprint = fingerprint
            try:
                self._tables = build(backbone)
            except TableError as problem:
                self._tables = None
                warnings.warn(f"distance_table: not used, {problem}; set it to false to silence this", stacklevel=2)
        return self._tables

    def __deepcopy__(self, memo: dict[int, object]) -> TableKeeper:
        """A copied model makes its own tables."""
        return TableKeeper()


Fingerprint = tuple[tuple[torch.device, torch.dtype, int], ...]


@torch.no_grad()
def fingerprint_of(backbone: Backbone) -> Fingerprint:
    """What tells the parameters behind the tables from others: a sum over their bits.

    Counters of changes would be cheaper, but miss what is written through ``.data``, as averages of weights often are.
    """
    parameters: list[Tensor] = [*backbone.radial_basis.parameters()]
    for reader in readers(backbone):
        parameters += [*reader.edge_attributes.distance_embedding.parameters(), reader.edge_linear.affine.weight]
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = torch.stack([parameter.view(bits[parameter.element_size()]).sum() for parameter in parameters]).tolist()
    return tuple((p.device, p.dtype, total) for p, total in zip(parameters, sums, strict=True))
