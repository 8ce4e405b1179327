"""CUDA graphs: a pass over the network recorded once per shape and replayed, without launching its kernels one by one.

Small batches, as in molecular dynamics, keep a GPU waiting for the launches of some hundred kernels. A recorded pass
reads its inputs from fixed places in memory, so they are copied there first, and its outputs are copied out, so
that the next replay does not change what somebody still holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn.fast.compiled import Outputs, Pass, pass_key
from escaip_fairchem.nn.fast.flatten import tensors_in, with_tensors
from escaip_fairchem.nn.fast.terms import Inputs
from escaip_fairchem.nn.precision import autocast_dtype
from escaip_fairchem.nn.recent import RecentlyUsed

if TYPE_CHECKING:
    from escaip_fairchem.nn.model import Backbone

MAX_CAPTURES = 16
"""Shapes whose recordings are kept. Each holds memory for its inputs and outputs; the rest they share."""

WARM_UPS = 3
"""Runs before a recording: libraries and compilers allocate, choose and load in the first ones."""


@dataclass(frozen=True)
class StaticInputs:
    """Inputs at fixed places in memory.

    Attributes:
        inputs: The inputs as a recorded pass reads them. What belongs to the parameters is where it always was.
        buffers: Those of their tensors that belong to the batch.
    """

    inputs: Inputs
    buffers: list[Tensor]

    @staticmethod
    def like(inputs: Inputs) -> StaticInputs:
        """Make room for inputs of the same shapes, filled with these."""
        constants = {id(tensor) for tensor in inputs.distances.constants()}
        places = [tensor if id(tensor) in constants else tensor.clone() for tensor in tensors_in(inputs)]
        buffers = [place for place in places if id(place) not in constants]
        return StaticInputs(with_tensors(inputs, iter(places)), buffers)

    def load(self, inputs: Inputs) -> None:
        """Copy the tensors of a batch in."""
        constants = {id(tensor) for tensor in inputs.distances.constants()}
        given = [tensor for tensor in tensors_in(inputs) if id(tensor) not in constants]
        for buffer, tensor in zip(self.buffers, given, strict=True):
            buffer.copy_(tensor, non_blocking=True)


class CapturedPass:
    """A recorded pass. Gradients must be off.

    Args:
        backbone: Whose parameters are read, at replays too, where they are now.
        inputs: Of the shapes that all replays have.
        run: The pass.
        pool: Memory shared with other recordings: of none of them is anything needed once its outputs are copied.
    """

    def __init__(self, backbone: Backbone, inputs: Inputs, run: Pass, pool: tuple[int, int]) -> None:
        device = inputs.order_NL.device
        self.static = StaticInputs.like(inputs)
        # Casts of weights that autocast keeps are gone at the next replay, so that none may be used.
        dtype = autocast_dtype(device)
        uncached = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.device(device), uncached:
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    run(backbone, self.static.inputs)
            torch.cuda.current_stream(device).wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool=pool):
                self.outputs = run(backbone, self.static.inputs)

    def __call__(self, inputs: Inputs) -> Outputs:
        """Replay with the tensors of a batch."""
        self.static.load(inputs)
        self.graph.replay()
        node_NH, edge_NKH = self.outputs
        return node_NH.clone(), None if edge_NKH is None else edge_NKH.clone()


class CapturedPasses:
    """Keeps a backbone's recorded passes. They are no part of the model's state: neither saved nor copied."""

    def __init__(self) -> None:
        self._passes: RecentlyUsed[CapturedPass] = RecentlyUsed(MAX_CAPTURES)
        self._addresses: tuple[int, ...] = ()
        self._pool: tuple[int, int] | None = None

    def __call__(self, backbone: Backbone, inputs: Inputs, run: Pass) -> Outputs:
        """Do what ``run(backbone, inputs)`` does; inputs of the same shapes use the same recording.

        Raises:
            ConfigError: The model is not on a GPU.
        """
        device = inputs.order_NL.device
        if device.type != "cuda":
            raise ConfigError(f"cuda_graphs: true needs a model on a GPU, this one is on {device}; set it to false")
        self.forget_if_moved(backbone, inputs)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        pool = self._pool
        return self._passes.get(pass_key(backbone, inputs), lambda: CapturedPass(backbone, inputs, run, pool))(inputs)

    def forget_if_moved(self, backbone: Backbone, inputs: Inputs) -> None:
        """Drop all recordings once parameters or tables are not where the recordings read them."""
        addresses = tuple(tensor.data_ptr() for tensor in (*backbone.parameters(), *inputs.distances.constants()))
        if addresses != self._addresses:
            self._passes, self._addresses = RecentlyUsed(MAX_CAPTURES), addresses

    def __deepcopy__(self, memo: dict[int, object]) -> CapturedPasses:
        return CapturedPasses()

    def __reduce__(self) -> tuple[type[CapturedPasses], tuple[()]]:
        return CapturedPasses, ()
