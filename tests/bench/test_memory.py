"""The memory probe sees what was allocated, also where it was freed again."""

from __future__ import annotations

import mmap

import pytest
import torch

from escaip_fairchem.bench.memory import MemoryProbe, can_reset

SIZE = 200_000_000


def test_the_probe_sees_an_allocation_that_is_gone_again():
    probe = MemoryProbe("cpu")
    block = torch.ones(SIZE // 4)
    del block
    assert 0.98 * SIZE <= probe.peak_bytes() < 1.3 * SIZE


@pytest.mark.skipif(not can_reset(), reason="this system does not let a process set back its high-water mark")
def test_the_probe_forgets_earlier_peaks():
    # Maps, because the C library may keep freed memory for later.
    touch(SIZE)
    probe = MemoryProbe("cpu")
    touch(SIZE // 2)
    assert 0.48 * SIZE <= probe.peak_bytes() < 0.7 * SIZE
    probe.start()
    assert probe.peak_bytes() < 0.05 * SIZE
    touch(SIZE // 4)
    assert 0.23 * SIZE <= probe.peak_bytes() < 0.4 * SIZE


def touch(size: int) -> None:
    """Use that many bytes for a moment."""
    with mmap.mmap(-1, size) as block:
        for page in range(0, size, mmap.PAGESIZE):
            block[page] = 1
