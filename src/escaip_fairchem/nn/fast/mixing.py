"""How the fast path mixes the slots of an atom: by its kernel, or by PyTorch's operations."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn.basis import angle_cosines
from escaip_fairchem.nn.kernels.attention_fused import DTYPES, MAX_SLOTS, MAX_WIDTH, fused_attention

if TYPE_CHECKING:
    from escaip_fairchem.nn.attention import NeighborhoodAttention
    from escaip_fairchem.nn.config import BackboneConfig
    from escaip_fairchem.nn.graph import Graph

# Looked up once and without importing it, which takes seconds.
HAS_TRITON = importlib.util.find_spec("triton") is not None


class Mixing(Protocol):
    """Attention among the edges of every atom."""

    def mix(self, attention: NeighborhoodAttention, projected_CKJ: Tensor, atoms: slice) -> Tensor:
        """Attend.

        Args:
            attention: The layer.
            projected_CKJ: Queries, keys and values of some atoms side by side, shape (C, K, 3 H).
            atoms: The atoms.

        Returns:
            Shape (C, K, H). Rows of empty slots are finite and without meaning.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class TorchMixing:
    """Attention by the layer's own implementation.

    Attributes:
        cosines_NKK: Cosines between the edges of an atom, shape (N, K, K).
        mask_NK: True for used slots, shape (N, K).
    """

    cosines_NKK: Tensor
    mask_NK: Tensor

    def mix(self, attention: NeighborhoodAttention, projected_CKJ: Tensor, atoms: slice) -> Tensor:
        """Attend, see :class:`Mixing`."""
        return attention.mix_projected(projected_CKJ, self.cosines_NKK[atoms], self.mask_NK[atoms])


@dataclass(frozen=True, kw_only=True)
class KernelMixing:
    """Attention by a kernel that makes no tensor of shape (N, K, K).

    Attributes:
        direction_NK3: Unit vectors of the edges, shape (N, K, 3).
        count_N: Number of used slots, int32, shape (N,).
    """

    direction_NK3: Tensor
    count_N: Tensor

    def mix(self, attention: NeighborhoodAttention, projected_CKJ: Tensor, atoms: slice) -> Tensor:
        """Attend, see :class:`Mixing`."""
        return fused_attention(
            projected_CKJ,
            self.direction_NK3[atoms],
            self.count_N[atoms],
            attention.angle_scale,
            attention.num_heads,
            attention.active_dropout,
        )


def build_mixing(config: BackboneConfig, graph: Graph, *, twice: bool) -> Mixing:
    """Choose the way of attention and prepare what all layers share.

    Args:
        config: Settings.
        graph: Neighbourhoods.
        twice: Whether second derivatives will be asked for.

    Raises:
        ConfigError: The kernel is demanded where it cannot run.
    """
    direction_NK3 = graph.direction_NK3
    # The kernel has no second derivative.
    if not twice and wants_kernel(config, direction_NK3.device, direction_NK3.dtype):
        return KernelMixing(direction_NK3=direction_NK3, count_N=graph.mask_NK.sum(dim=1, dtype=torch.int32))
    return TorchMixing(cosines_NKK=angle_cosines(direction_NK3), mask_NK=graph.mask_NK)


def wants_kernel(config: BackboneConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the settings ask for the kernel where batches are on that device and geometry is of that dtype.

    Raises:
        ConfigError: They demand it, and it cannot run there.
    """
    if config.attention_kernel == "auto":
        return device.type == "cuda" and obstacle(config, device, dtype) is None
    if config.attention_kernel == "torch":
        return False
    problem = obstacle(config, device, dtype)
    if problem is not None:
        raise ConfigError(f"attention_kernel: 'triton' cannot run, {problem}, or set attention_kernel: auto")
    return True


def obstacle(config: BackboneConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """What keeps the kernel from running there, and the remedy; None if nothing does."""
    if not HAS_TRITON:
        return "triton is not installed: pip install triton"
    # Triton's interpreter runs kernels on the CPU, slowly: to test them.
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it is for CUDA devices and the batch is on {device.type!r}: use a GPU"
    if dtype not in DTYPES:
        return f"it does not compute in {dtype}: use float32"
    if config.max_neighbors > MAX_SLOTS:
        return f"max_neighbors is {config.max_neighbors} and it takes {MAX_SLOTS} at most: lower it"
    width = config.hidden_size // config.atten_num_heads
    if width > MAX_WIDTH:
        return f"heads are {width} wide and it takes {MAX_WIDTH} at most: raise atten_num_heads"
    return None
