"""Heads: from the projected features of atoms and edges to energy, direct forces and stress.

Each reads with ``x + FFN(x)`` followed by a linear layer without bias. Sums over slots and atoms are taken in at
least float32. Units: energies in the (normalised) unit of the training target, forces and stress likewise.
"""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor, nn
from torch.nn import functional

from escaip_fairchem.errors import ConfigError, nearest
from escaip_fairchem.nn.basis import masked_mean, masked_sum
from escaip_fairchem.nn.graph import Graph
from escaip_fairchem.nn.layers import FeedForward
from escaip_fairchem.nn.precision import at_least_float32, full_precision
from escaip_fairchem.nn.systems import structure_mean, structure_sum

ENERGY_REDUCTIONS = ("mean", "sum")


class OutputLayer(nn.Module):
    """``W (x + FFN(x))`` without bias.

    Args:
        size: Width of the input.
        out_size: Width of the output.
        multiplier: Width of the hidden layer in units of ``size``.
        activation: Name of the activation.
        fast: Whether to take the two last linear layers as one where no gradients are recorded, and work on some rows
            at a time.
    """

    ROWS = 8192
    """Rows worked on together on the fast path: enough for efficient products, without a batch's hidden layer."""

    def __init__(self, size: int, out_size: int, *, multiplier: int, activation: str, fast: bool = True) -> None:
        super().__init__()
        self.fast = fast
        self.ffn = FeedForward(size, multiplier=multiplier, activation=activation)
        self.linear = nn.Linear(size, out_size, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., size) to (..., out_size), in at least float32."""
        if self.fast and not torch.is_grad_enabled() and not self.training:
            return self._folded(inputs)
        outputs: Tensor = _linear(inputs + self.ffn(inputs), self.linear.weight)
        return outputs

    def _folded(self, inputs: Tensor) -> Tensor:
        """``W x + (W W₂) hidden + W b₂``."""
        last = self.ffn.last
        with full_precision(inputs.device):
            weight, bias = self.linear.weight @ last.weight, self.linear.weight @ last.bias
        parts = []
        for rows in inputs.flatten(0, -2).split(self.ROWS):
            hidden = self.ffn.dense(rows)
            parts.append(_linear(rows, self.linear.weight, bias) + _linear(hidden, weight))
        return torch.cat(parts).view(*inputs.shape[:-1], -1)


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer to a few numbers, in at least float32 also under autocast: they are what is predicted."""
    with full_precision(inputs.device):
        bias = None if bias is None else at_least_float32(bias)
        return functional.linear(at_least_float32(inputs), at_least_float32(weight), bias)


class EnergyHead(nn.Module):
    """One number per atom, reduced over each structure.

    Args:
        size: Feature width H.
        multiplier: Width of the hidden layer in units of H.
        activation: Name of the activation.
        reduce: ``mean`` (the paper's) or ``sum`` over the atoms of a structure.
        fast: See :class:`OutputLayer`.
    """

    def __init__(self, size: int, *, multiplier: int, activation: str, reduce: str, fast: bool = True) -> None:
        super().__init__()
        if reduce not in ENERGY_REDUCTIONS:
            raise ConfigError(f"energy_reduce: {reduce!r} is unknown{nearest(reduce, ENERGY_REDUCTIONS)}")
        self.layer = OutputLayer(size, 1, multiplier=multiplier, activation=activation, fast=fast)
        self.reduce = structure_mean if reduce == "mean" else structure_sum

    def forward(self, node_NH: Tensor, graph: Graph) -> Tensor:
        """Predict energies of shape (B, 1)."""
        reduced_B1: Tensor = self.reduce(self.layer(node_NH), graph.structure_N, graph.num_structures)
        return reduced_B1


class DirectForceHead(nn.Module):
    """``F_i = (Σ_k v_ik ⊙ u_ik) · m_i``, v from the edges and m from the atom.

    The component-wise product with the direction is not rotation-equivariant, on purpose: the model learns
    the symmetry. An atom without neighbours has no direction and gets exactly zero.
    """

    def __init__(self, size: int, *, multiplier: int, activation: str, fast: bool = True) -> None:
        super().__init__()
        self.direction_layer = OutputLayer(size, 3, multiplier=multiplier, activation=activation, fast=fast)
        self.magnitude_layer = OutputLayer(size, 1, multiplier=multiplier, activation=activation, fast=fast)

    def forward(self, node_NH: Tensor, edge_NKH: Tensor, graph: Graph) -> Tensor:
        """Predict forces of shape (N, 3)."""
        vectors_NK3 = self.direction_layer(edge_NKH) * graph.direction_NK3
        magnitude_N1: Tensor = self.magnitude_layer(node_NH)
        return masked_sum(vectors_NK3, graph.edge_mask_NK) * magnitude_N1


def quadrupole_harmonics(direction_NK3: Tensor) -> Tensor:
    """Real spherical harmonics Y_2m of unit vectors in e3nn's order and ``integral`` normalisation; (N, K, 5)."""
    harmonics: Tensor = o3.spherical_harmonics(2, direction_NK3, normalize=False, normalization="integral")
    return harmonics


class OriginalRank2Head(nn.Module):
    """The original's stress head, kept for its checkpoints.

    The five l = 2 components pass through a non-linear layer each by itself, so the anisotropic part does not
    rotate with the structure. New models should use :class:`EquivariantRank2Head`.
    """

    def __init__(self, size: int, *, multiplier: int, activation: str, fast: bool = True) -> None:
        super().__init__()
        self.scalar_layer = OutputLayer(size, 1, multiplier=multiplier, activation=activation, fast=fast)
        self.quadrupole_layer = OutputLayer(size, 1, multiplier=multiplier, activation=activation, fast=fast)

    def forward(self, node_NH: Tensor, edge_NKH: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
        """Predict the isotropic part (B, 1) and the l = 2 part (B, 5)."""
        harmonics_NK51 = quadrupole_harmonics(graph.direction_NK3).unsqueeze(-1)
        irreps_N5H = masked_mean(harmonics_NK51 * edge_NKH.unsqueeze(2), graph.mask_NK)
        return (
            structure_mean(self.scalar_layer(node_NH), graph.structure_N, graph.num_structures),
            structure_mean(self.quadrupole_layer(irreps_N5H).squeeze(-1), graph.structure_N, graph.num_structures),
        )


class EquivariantRank2Head(nn.Module):
    """Isotropic part from the atoms; l = 2 part that rotates with the structure.

    Edge features w_ik (invariant, after their own residual layer) weight Y_2(u_ik); the mean over the
    neighbourhood is mixed linearly over the channels and gated by the atom's invariants, so every
    step commutes with rotations:
    ``T_i = Σ_h W_h σ(g_ih) mean_k [Y_2(u_ik) w_ikh]``.
    """

    def __init__(self, size: int, *, multiplier: int, activation: str, fast: bool = True) -> None:
        super().__init__()
        self.scalar_layer = OutputLayer(size, 1, multiplier=multiplier, activation=activation, fast=fast)
        self.edge_ffn = FeedForward(size, multiplier=multiplier, activation=activation)
        self.gate = nn.Linear(size, size)
        self.mix = nn.Linear(size, 1, bias=False)

    def forward(self, node_NH: Tensor, edge_NKH: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
        """Predict the isotropic part (B, 1) and the l = 2 part (B, 5)."""
        weights_NKH = edge_NKH + self.edge_ffn(edge_NKH)
        weights_NKH = weights_NKH.masked_fill(~graph.edge_mask_NK.unsqueeze(-1), 0.0)
        weights_NKH = at_least_float32(weights_NKH)
        harmonics_NK5 = quadrupole_harmonics(graph.direction_NK3).to(weights_NKH.dtype)
        count_N11 = graph.edge_mask_NK.sum(dim=1).clamp(min=1).reshape(-1, 1, 1)
        with full_precision(weights_NKH.device):
            irreps_N5H = harmonics_NK5.transpose(1, 2) @ weights_NKH / count_N11
        gated_N5H = irreps_N5H * torch.sigmoid(self.gate(node_NH)).unsqueeze(1)
        quadrupole_N5 = _linear(gated_N5H, self.mix.weight).squeeze(-1)
        return (
            structure_mean(self.scalar_layer(node_NH), graph.structure_N, graph.num_structures),
            structure_mean(quadrupole_N5, graph.structure_N, graph.num_structures),
        )
