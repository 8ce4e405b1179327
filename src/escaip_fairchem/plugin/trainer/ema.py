"""Averaged weights: swapped in for evaluation, and adopted where only inference is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from escaip_fairchem.errors import CheckpointError
from escaip_fairchem.plugin.trainer.resume import deferred_signals


class WeightSwap:
    """Knows whether the model holds its training weights or their exponential moving average at the moment."""

    def __init__(self) -> None:
        self._depth = 0
        self._average: Any = None

    @contextmanager
    def averaged(self, ema: Any | None) -> Iterator[None]:
        """Hold the averaged weights within the block, and the training weights after it, even after an error.

        Args:
            ema: fairchem's ``ExponentialMovingAverage``, or None, which changes nothing. Blocks may be nested.
        """
        self._depth += 1
        try:
            if ema is not None and self._depth == 1:
                self._enter(ema)
            yield
        finally:
            self._depth -= 1
            if self._depth == 0 and self._average is not None:
                self._leave()

    def _enter(self, ema: Any) -> None:
        with deferred_signals():  # whose handlers save, and have to know which weights the model holds
            ema.store()
            self._average = ema
            ema.copy_to()

    def _leave(self) -> None:
        with deferred_signals():
            self._average.restore()
            self._average.collected_params = []  # A copy of all weights that nobody needs any more.
            self._average = None

    @contextmanager
    def training(self) -> Iterator[None]:
        """Hold the training weights within the block, also inside `averaged`: for a save during validation."""
        average = self._average
        if average is not None:
            average.restore()
        try:
            yield
        finally:
            if average is not None:
                average.copy_to()


def check_average(parameters: Iterable[nn.Parameter], shadow: Sequence[Tensor], source: str) -> None:
    """Compare a checkpoint's averaged weights with a model's.

    Args:
        parameters: The model's parameters, in the order in which the average was kept.
        shadow: Averages of those that are trained.
        source: Name of the checkpoint, for messages.

    Raises:
        CheckpointError: Numbers or shapes differ.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    remedy = "It was saved by another model: check `model` in the configuration."
    if len(trained) != len(shadow):
        raise CheckpointError(
            f"{source}: holds {len(shadow)} averaged tensors (ema), but the model has {len(trained)} trained ones. "
            f"{remedy}"
        )
    for index, (parameter, average) in enumerate(zip(trained, shadow, strict=True)):
        if parameter.shape != average.shape:
            raise CheckpointError(
                f"{source}: averaged tensor {index} (ema) has shape {tuple(average.shape)}, the model's has "
                f"{tuple(parameter.shape)}. {remedy}"
            )


def adopt_average(parameters: Iterable[nn.Parameter], shadow: Sequence[Tensor]) -> None:
    """Replace a model's weights by averaged ones that passed `check_average`."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    with torch.no_grad():
        for parameter, average in zip(trained, shadow, strict=True):
            parameter.copy_(average)


def averaged_weights(checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The moving average that a checkpoint holds, or None."""
    average = checkpoint.get("ema")
    return average if average and average.get("shadow_params") else None
