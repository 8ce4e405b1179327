"""The largest amount of memory that a piece of work needs at any moment."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class MemoryProbe:
    """Watches the peak of the memory in use above what was in use at first.

    On a GPU it is the peak of torch's allocator. On the CPU it is the growth of the process's resident set. The
    kernel's high-water mark is set back before each measurement where the system allows it (Linux); elsewhere it
    never falls, and a process can measure one piece of work only.

    Args:
        device: ``cpu`` or ``cuda``.
        from_zero: Whether to count on a GPU everything that is allocated, rather than the growth.
    """

    def __init__(self, device: str, *, from_zero: bool = False) -> None:
        self._on_gpu = device == "cuda"
        self.base_bytes = 0 if from_zero and self._on_gpu else self._in_use()
        self.start()

    def start(self) -> None:
        """Forget the peak so far."""
        if self._on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            _reset_high_water_mark()

    def peak_bytes(self) -> int:
        """Largest growth above the amount in use when the probe was made, since the last start."""
        peak = torch.cuda.max_memory_allocated() if self._on_gpu else _high_water_mark()
        return max(peak - self.base_bytes, 0)

    def _in_use(self) -> int:
        gc.collect()
        if self._on_gpu:
            return torch.cuda.memory_allocated()
        _return_free_memory()
        return _resident_bytes()


def _resident_bytes() -> int:
    return _read_status("VmRSS") if _STATUS.is_file() else _high_water_mark()


def _high_water_mark() -> int:
    if _STATUS.is_file():
        return _read_status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _read_status(key: str) -> int:
    """A size in bytes from the process's status."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no line {key}")


def can_reset() -> bool:
    """Whether the high-water mark of the resident set can be set back."""
    return os.access(_CLEAR, os.W_OK)


def _reset_high_water_mark() -> None:
    if can_reset():
        _CLEAR.write_text("5", encoding="ascii")


def _return_free_memory() -> None:
    """Let the C library give back what it keeps for later, so that it does not count as in use."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others have none
        if trim is not None:
            trim(0)
