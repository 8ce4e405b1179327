"""The fast path as compiled code: one region per shape, traced once.

The network is first traced to a plain list of tensor operations, whose inputs are the tensors of the batch and the
parameters. Nothing else can reach what torch.compile then makes of it: no attribute of a module, no autocast that
comes or goes, so it needs no guard on them, and a batch of a shape that was seen is never compiled again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call  # type: ignore[attr-defined]  # public, but not declared so
from torch.fx.experimental.proxy_tensor import make_fx

from escaip_fairchem.nn.fast.flatten import tensors_in, with_tensors
from escaip_fairchem.nn.fast.terms import Inputs
from escaip_fairchem.nn.precision import autocast_dtype, tf32_is_allowed
from escaip_fairchem.nn.recent import RecentlyUsed

if TYPE_CHECKING:
    from escaip_fairchem.nn.model import Backbone

aten = torch.ops.aten  # type: ignore[attr-defined]  # public, but not declared so

MAX_REGIONS = 128
"""Shapes whose code is kept: several octaves of batch sizes in a few modes."""

Outputs = tuple[Tensor, Tensor | None]
Pass = Callable[["Backbone", Inputs], Outputs]


class Compute(Protocol):
    """A pass over a backbone, :func:`escaip_fairchem.nn.fast.inference.infer` or that with gradients."""

    def __call__(self, backbone: Backbone, inputs: Inputs, *, traced: bool = False) -> Outputs:
        """Compute node and edge features."""
        ...


def pass_key(backbone: Backbone, inputs: Inputs) -> Hashable:
    """Everything that the operations of a pass depend on, but for the values of tensors."""
    tensors = tensors_in(inputs)
    parameter = next(backbone.parameters())
    return (
        backbone.training,
        torch.is_grad_enabled(),
        autocast_dtype(parameter.device),
        tf32_is_allowed(),
        parameter.device,
        parameter.dtype,
        inputs.graph.num_structures,
        tuple((tensor.dtype, tensor.shape, tensor.requires_grad) for tensor in tensors),
        tuple(parameter.requires_grad for parameter in backbone.parameters()),
    )


class CompiledRegions:
    """Keeps a backbone's compiled code. It is no part of the model's state: neither saved nor copied.

    Args:
        backend: Of torch.compile.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self.backend = backend
        self._regions: RecentlyUsed[Callable[..., Outputs]] = RecentlyUsed(MAX_REGIONS)

    def __len__(self) -> int:
        return len(self._regions)

    def compiled(self, compute: Compute) -> Pass:
        """A pass as compiled code; inputs of the same shapes use the same."""

        def run(backbone: Backbone, inputs: Inputs) -> Outputs:
            key = (compute, pass_key(backbone, inputs))
            region = self._regions.get(key, lambda: self._compile(backbone, inputs, compute))
            # The casts of autocast are among the traced operations.
            with torch.autocast(inputs.order_NL.device.type, enabled=False):
                return region(*tensors_in(inputs), *backbone.parameters())

        return run

    def _compile(self, backbone: Backbone, inputs: Inputs, compute: Compute) -> Callable[..., Outputs]:
        region: Callable[..., Outputs] = torch.compile(
            trace(backbone, inputs, compute), backend=self.backend, fullgraph=True, dynamic=False
        )
        return region

    def __deepcopy__(self, memo: dict[int, object]) -> CompiledRegions:
        return CompiledRegions(self.backend)

    def __reduce__(self) -> tuple[type[CompiledRegions], tuple[()]]:
        return CompiledRegions, ()


class _Region(nn.Module):
    """Lets a pass over a backbone be called with other parameters."""

    def __init__(self, backbone: Backbone, compute: Compute) -> None:
        super().__init__()
        self.backbone = backbone
        self.compute = compute

    def forward(self, inputs: Inputs) -> Outputs:
        """Compute node and edge features."""
        return self.compute(self.backbone, inputs, traced=True)


def trace(backbone: Backbone, inputs: Inputs, compute: Compute) -> fx.GraphModule:
    """Write a pass down as tensor operations, without data.

    Returns:
        A module without parameters that maps the tensors of the inputs, followed by the parameters in their order, to
        node and edge features.
    """
    examples, region = tensors_in(inputs), _Region(backbone, compute)
    names = [f"backbone.{name}" for name, _ in backbone.named_parameters()]

    def flat(*tensors: Tensor) -> Outputs:
        given, parameters = tensors[: len(examples)], tensors[len(examples) :]
        arguments = (with_tensors(inputs, iter(given)),)
        outputs: Outputs = functional_call(region, dict(zip(names, parameters, strict=True)), arguments)
        return outputs

    leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in (*examples, *backbone.parameters())]
    traced: fx.GraphModule = make_fx(flat, tracing_mode="fake")(*leaves)
    widen_sums(traced)
    return traced


def widen_sums(traced: fx.GraphModule) -> None:
    """Write the casts down that sums of two precisions make by themselves.

    The compiler of torch 2.4 merges a sum into a matrix product even if their precisions differ, which then fails.
    """
    for node in traced.graph.find_nodes(op="call_function", target=aten.add.Tensor):
        for term in node.args[:2]:
            dtype = node.meta["val"].dtype
            if isinstance(term, fx.Node) and term.meta["val"].dtype != dtype:
                with traced.graph.inserting_before(node):
                    wide = traced.graph.call_function(aten._to_copy.default, (term,), {"dtype": dtype})
                node.replace_input_with(term, wide)
    traced.recompile()
