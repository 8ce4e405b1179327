"""Losses that fairchem lacks."""

from __future__ import annotations

import math

import pytest
import torch
from fairchem.core.common.registry import registry

from escaip_fairchem.plugin.losses import SMALLEST_LENGTH, ForceCosineLoss
from escaip_fairchem.plugin.trainer.objective import ROWWISE, parse_terms


def cosine_loss(pred: list[float], target: list[float]) -> float:
    return float(ForceCosineLoss()(torch.tensor([pred]), torch.tensor([target]), torch.tensor([1])))


@pytest.mark.parametrize(
    ("pred", "target", "expected"),
    [
        ([3.0, 0.0, 0.0], [0.5, 0.0, 0.0], 0.0),
        ([0.0, -2.0, 0.0], [0.0, 4.0, 0.0], 2.0),
        ([1.0, 1.0, 0.0], [1.0, 0.0, 0.0], 1.0 - math.sqrt(0.5)),
        ([0.0, 0.0, 5.0], [1.0, 0.0, 0.0], 1.0),
        ([0.3, 0.2, 0.1], [0.0, 0.0, 0.0], 0.0),
        ([0.0, 0.0, 0.0], [1.0, 0.0, 0.0], 1.0),
    ],
)
def test_one_minus_the_cosine_of_the_angle(pred, target, expected):
    assert cosine_loss(pred, target) == pytest.approx(expected, abs=1e-6)


def test_predictions_of_length_zero_have_a_finite_derivative():
    pred = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    loss = ForceCosineLoss()(pred, target, torch.tensor([2]))
    (gradient,) = torch.autograd.grad(loss.sum(), pred)
    assert gradient.tolist() == [[0.0, -1.0 / SMALLEST_LENGTH, 0.0], [0.0, 0.0, 0.0]]


def test_its_derivative():
    generator = torch.Generator().manual_seed(0)
    pred, target = (torch.randn(5, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: ForceCosineLoss()(x, target, None), pred.requires_grad_(True))


def test_it_is_found_by_its_name_and_blanked_rows_add_nothing():
    assert registry.get_loss_class("escaip_force_cosine") is ForceCosineLoss
    assert "escaip_force_cosine" in ROWWISE
    assert cosine_loss([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]) == 0.0
    targets = {"forces": {"level": "atom", "train_on_free_atoms": True}}
    entries = [{"forces": {"fn": name, "coefficient": 1}} for name in ("l2mae", "escaip_force_cosine")]
    assert [term.kind for term in parse_terms(entries, targets)] == ["l2mae", "escaip_force_cosine"]
