"""The calculator leaves alone what is not its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import escaip_fairchem  # noqa: F401
from escaip_fairchem.plugin.calculator import global_state_untouched


def test_a_calculator_on_the_cpu_does_not_start_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def start(*_: Any) -> None:
        raise AssertionError("CUDA was started")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", start)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(7)
    with global_state_untouched():
        torch.manual_seed(8)
    assert seeds[-1] == 7  # kept until CUDA starts, as torch.manual_seed does
