"""What conservative models ask of the normalisers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.plugin.models import EScAIPConservativeHead

_RELATIVE_TOLERANCE = 1e-5


def check_common_scale(model: nn.Module, normalizers: Mapping[str, Any]) -> None:
    """Refuse normalisers that would make forces other than the derivative of the energy.

    A conservative head differentiates the normalised energy. Scaled back by another number than the energy, or shifted
    by a mean, its forces and stress belong to no energy.

    Args:
        model: Any model; those without a conservative head pass.
        normalizers: fairchem's normalisers by target.

    Raises:
        ConfigError: Names the targets and their scales.
    """
    heads = [module for module in model.modules() if isinstance(module, EScAIPConservativeHead)]
    if not heads:
        return
    targets = ["forces", "stress"] if any(head.options.regress_stress for head in heads) else ["forces"]
    wanted = _scale(normalizers, "energy")
    for target in targets:
        scale = _scale(normalizers, target)
        if abs(scale - wanted) > _RELATIVE_TOLERANCE * wanted:
            raise ConfigError(
                f"dataset.train.transforms.normalizer: {target} are scaled by {scale:g} and energy by {wanted:g}, but "
                f"a conservative model's {target} are the derivative of its energy: give both the same stdev"
            )
        if target in normalizers and bool(torch.any(normalizers[target].mean != 0)):
            raise ConfigError(
                f"dataset.train.transforms.normalizer.{target}: the derivative of an energy is not shifted; set mean: 0"
            )


def _scale(normalizers: Mapping[str, Any], target: str) -> float:
    return float(normalizers[target].rmsd) if target in normalizers else 1.0
