"""Random number generators in checkpoints, so that a resumed run draws what the uninterrupted one would have drawn."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RandomState:
    """State of every global generator of this process, cheap to take: nothing is converted, no device is waited for."""

    python: tuple[Any, ...]
    numpy: dict[str, Any]
    torch_cpu: Tensor
    torch_cuda: Tensor | None

    @classmethod
    def capture(cls, device: torch.device) -> RandomState:
        """Take the states of Python's, numpy's and torch's generators.

        Args:
            device: The device that this process computes on.
        """
        numpy_state: Any = np.random.get_state(legacy=False)
        return cls(
            python=random.getstate(),
            numpy=numpy_state,
            torch_cpu=torch.get_rng_state(),
            torch_cuda=torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        )

    def to_plain(self) -> dict[str, Any]:
        """Convert to tensors and plain numbers, all that ``weights_only`` loading accepts."""
        version, words, gauss = self.python
        mersenne = self.numpy["state"]
        return {
            "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
            "numpy": {
                "words": torch.from_numpy(mersenne["key"].astype(np.int64)),
                "position": int(mersenne["pos"]),
                "has_gauss": int(self.numpy["has_gauss"]),
                "gauss": float(self.numpy["gauss"]),
            },
            "torch_cpu": self.torch_cpu,
            "torch_cuda": self.torch_cuda,
        }


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Set every global generator to a state from `RandomState.to_plain`.

    Args:
        state: As it was loaded from a checkpoint, on any device.
        device: The device that this process computes on. A run that moved from CPU to CUDA keeps CUDA's own state.
    """
    python, numpy_state = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    words = numpy_state["words"].cpu().numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, numpy_state["position"], numpy_state["has_gauss"], numpy_state["gauss"]))
    torch.set_rng_state(state["torch_cpu"].cpu())
    if device.type == "cuda" and state["torch_cuda"] is not None:
        torch.cuda.set_rng_state(state["torch_cuda"].cpu(), device)


_DEFERRED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Let the handlers of preemption signals run after the block instead of in the middle of it.

    submitit's handler saves a checkpoint; between the optimizer's step and the count of it, that checkpoint would
    repeat or lose a batch. Only handlers written in Python are deferred, and only in the main thread, where they run.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _DEFERRED}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    for number in handlers:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in arrived:
            signal.raise_signal(late)
