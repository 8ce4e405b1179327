"""Stop on NaN and infinity, naming the structures, without waiting for the device at every step.

What has to be finite is reduced to a few flags per step, which stay on the device. They are read together when the loop
waits for the device anyway: at logging steps and before every checkpoint. The ids of the batches since the last reading
are kept, so the first offending step is named even if it lies some steps back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from fairchem.core.common import distutils
from torch import Tensor, nn

from escaip_fairchem.errors import NonFiniteError
from escaip_fairchem.plugin.samples import SHOWN, SampleNames
from escaip_fairchem.plugin.trainer.distributed import gather_everywhere, sum_over_ranks

WINDOW = 256
"""Steps after which the flags are read even if nobody asked."""

SMALLEST_LOSS_SCALE = 2.0**-10
"""Loss scale of float16 below which no overflow explains that gradients are not finite."""

_REMEDY = (
    "Look at these structures (a wrong label, overlapping atoms); otherwise lower optim.lr_initial or "
    "optim.clip_grad_norm, or compute in a wider type (optim.amp_dtype: bf16 or fp32)."
)


@dataclass(kw_only=True)
class _Step:
    """Flags of one step; every tensor is bool, True where something is not finite."""

    step: int
    epoch: float
    names: SampleNames
    quantities: tuple[str, ...]
    bad: Tensor  # per quantity and structure
    bad_loss: Tensor  # ()
    bad_gradient: Tensor  # ()

    def summary(self) -> Tensor:
        """Flags of any quantity, the loss and the gradient, shape (3,)."""
        return torch.stack([self.bad.any(), self.bad_loss, self.bad_gradient])


def unfinished_structures(values: Tensor, structure_N: Tensor, n_structures: int) -> Tensor:
    """Flag the structures that have a value which is not finite.

    Args:
        values: Per structure (B, …) or per atom (N, …); which of the two is told by ``structure_N``.
        structure_N: Structure of every row of ``values``, int64.
        n_structures: B.

    Returns:
        Shape (B,), bool, on the device of ``values``.
    """
    bad_rows = ~values.detach().reshape(values.shape[0], -1).isfinite().all(-1)
    counts = torch.zeros(n_structures, dtype=torch.float32, device=values.device)
    return counts.index_add_(0, structure_N, bad_rows.float()) > 0


class FiniteGuard:
    """Collects flags step by step, and raises when it reads one."""

    def __init__(self, model: nn.Module, *, gradients_may_overflow: bool) -> None:
        """Watch a model.

        Args:
            model: Whose gradients are named in messages.
            gradients_may_overflow: With loss scaling a gradient that overflows is expected; the step is skipped and the
                scale lowered.
        """
        self._model = model
        self._gradients_may_overflow = gradients_may_overflow
        self._steps: list[_Step] = []
        self._found: str | None = None

    @property
    def is_full(self) -> bool:
        """Whether the flags should be read now to bound the memory they take."""
        return len(self._steps) >= WINDOW

    def observe(self, *, step: int, epoch: float, names: SampleNames, bad: Mapping[str, Tensor], loss: Tensor) -> None:
        """Note the forward pass of a step.

        Args:
            step: Number of the step.
            epoch: Epoch, with fraction.
            names: Ids of the batch.
            bad: Flags (B,) of every prediction and label.
            loss: The total loss, ().
        """
        self._steps.append(
            _Step(
                step=step,
                epoch=epoch,
                names=names,
                quantities=tuple(bad),
                bad=torch.stack(list(bad.values())),
                bad_loss=~loss.detach().isfinite(),
                bad_gradient=torch.zeros((), dtype=torch.bool, device=loss.device),
            )
        )

    def observe_gradient(self, norm: Tensor) -> None:
        """Note the norm of all gradients, (), of the step that was observed last."""
        if not self._gradients_may_overflow:
            self._steps[-1].bad_gradient = ~norm.detach().isfinite()

    def check(self, *, collective: bool = True) -> None:
        """Read the flags, and forget them.

        Args:
            collective: Whether every process calls this at the same time; then all stop together.

        Raises:
            NonFiniteError: Naming the step, the quantities and the structures.
        """
        self.settle()
        found, self._found = self._found, None
        if not collective or distutils.get_world_size() == 1:
            if found is not None:
                raise NonFiniteError(_join([found]))
            return
        # A process may have had nothing to look at; it takes part all the same.
        own = torch.tensor(float(found is not None), device=next(self._model.parameters()).device)
        if sum_over_ranks(own).item():
            raise NonFiniteError(_join(gather_everywhere(found)))

    def settle(self) -> bool:
        """Read the flags of this process, and keep the first fault for `check`. Not collective.

        Returns:
            Whether there is a fault.
        """
        steps, self._steps = self._steps, []
        if steps and self._found is None:
            self._found = self._explain(steps, torch.stack([step.summary() for step in steps]).tolist())
        return self._found is not None

    def _explain(self, steps: list[_Step], flags: list[list[bool]]) -> str | None:
        for step, (quantity, loss, gradient) in zip(steps, flags, strict=True):
            if quantity or loss or gradient:
                what = _culprits(step) if quantity else self._whole_batch(step, loss=loss)
                return f"step {step.step} (epoch {step.epoch:.4g}): {what}"
        return None

    def _whole_batch(self, step: _Step, *, loss: bool) -> str:
        if loss:
            return f"the loss is not finite, though every prediction and label is. Batch: {step.names.listed()}"
        parameters = bad_gradients(self._model.named_parameters())
        return f"the gradient is not finite ({parameters}), though the loss is. Batch: {step.names.listed()}"


def bad_gradients(parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    """Name the parameters whose gradient is not finite now."""
    bad = [name for name, parameter in parameters if parameter.grad is not None and not parameter.grad.isfinite().all()]
    more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return f"of {', '.join(bad[:SHOWN])}{more}" if bad else "its norm overflows, each part is finite"


def _culprits(step: _Step) -> str:
    return "; ".join(
        f"the {quantity} is not finite for {step.names.listed(bad_B.nonzero().flatten().tolist())}"
        for quantity, bad_B in zip(step.quantities, step.bad.cpu(), strict=True)
        if bad_B.any()
    )


def _join(messages: list[str | None]) -> str:
    found = [(rank, message) for rank, message in enumerate(messages) if message]
    if len(messages) == 1:
        return f"{found[0][1]}. {_REMEDY}"
    return "; ".join(f"rank {rank}: {message}" for rank, message in found) + f". {_REMEDY}"


def require_usable_scale(scale: float, *, step: int, names: SampleNames, model: nn.Module) -> None:
    """Stop where float16's loss scale has been lowered again and again, and gradients are still not finite.

    Args:
        scale: The scale now; torch halves it for every step that it skips.
        step: Number of the step.
        names: Ids of its batch.
        model: Whose gradients are named.

    Raises:
        NonFiniteError: The scale is too small to be of any use.
    """
    if scale < SMALLEST_LOSS_SCALE:
        raise NonFiniteError(
            f"step {step}: the gradient stays infinite or NaN ({bad_gradients(model.named_parameters())}), though the "
            f"loss scale of fp16 has been lowered to {scale:.2g}; no step is taken any more. Batch: {names.listed()}. "
            f"{_REMEDY}"
        )


def require_finite_weights(parameters: Iterable[nn.Parameter], *, step: int) -> None:
    """Refuse to save weights that are not finite. Waits for the device once.

    Raises:
        NonFiniteError: Some weight is NaN or infinite.
    """
    flags = [parameter.detach().isfinite().all() for parameter in parameters]
    if flags and not torch.stack(flags).all().item():
        raise NonFiniteError(f"step {step}: a weight is not finite, so no checkpoint is written. {_REMEDY}")
