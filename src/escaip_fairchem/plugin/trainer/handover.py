"""A batch on its way out of a loader process: as one piece of memory.

Between processes, torch hands every tensor over on its own: a file in shared memory, and a connection to fetch its
descriptor. For a batch of some thirty small tensors that takes several times as long as reading the batch from an LMDB.
"""

from __future__ import annotations

import io
import itertools
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes; where vector instructions like tensors to begin."""


@dataclass(frozen=True, eq=False)
class Packed:
    """What `pack` makes.

    Attributes:
        content: The value as a pickle, its tensors left out.
        buffer: Their bytes, one after the other, [bytes].
        places: Of each tensor: its type, where it begins in the buffer, its shape.
    """

    content: bytes
    buffer: Tensor
    places: tuple[tuple[torch.dtype, int, torch.Size], ...]

    def pin_memory(self) -> Packed:
        """The same in memory from which copies to a GPU need not be waited for; torch's loaders call this."""
        return Packed(self.content, self.buffer.pin_memory(), self.places)


def pack(value: Any) -> Packed:
    """Put all tensors that a value holds into one.

    Args:
        value: Anything that can be pickled. Plain dense tensors on the CPU are moved; others stay in the pickle.
    """
    stream = io.BytesIO()
    pickler = _Pickler(stream, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dump(value)
    tensors = list(pickler.tensors.values())
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    ends = itertools.accumulate(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)
    offsets = [0, *ends]
    buffer = torch.empty(offsets[-1], dtype=torch.uint8)
    for tensor, offset, size in zip(tensors, offsets, sizes, strict=False):
        buffer[offset : offset + size] = tensor.contiguous().reshape(-1).view(torch.uint8)
    places = tuple((tensor.dtype, offset, tensor.shape) for tensor, offset in zip(tensors, offsets, strict=False))
    return Packed(stream.getvalue(), buffer, places)


def unpack(packed: Packed) -> Any:
    """The value again. Its tensors lie in the buffer, each with a count of changes of its own."""
    tensors = [
        # .data: views share their count of changes, by which prepared neighbours are told to fit.
        packed.buffer[offset : offset + shape.numel() * dtype.itemsize].view(dtype).view(shape).data
        for dtype, offset, shape in packed.places
    ]
    return _Unpickler(io.BytesIO(packed.content), tensors).load()


class _Pickler(pickle.Pickler):
    """Keeps tensors aside, every one once."""

    def __init__(self, stream: io.BytesIO, protocol: int) -> None:
        super().__init__(stream, protocol)
        self.tensors: dict[int, Tensor] = {}
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | None:
        if type(value) is not Tensor or value.layout is not torch.strided or value.device.type != "cpu":
            return None
        if value.requires_grad or value.is_quantized or value.is_conj() or value.is_neg():
            return None
        self.tensors[id(value)] = value  # which keeps it, and so its number, alive
        return self._numbers.setdefault(id(value), len(self._numbers))


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(stream)
        self.tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self.tensors[number]
