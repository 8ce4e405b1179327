"""What training asks of a model's heads: that the loss reaches every parameter.

fairchem trains in a process group even with one process, and torch stops there at the second step with a message about
``find_unused_parameters`` if some parameter had no gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.plugin.models import (
    EScAIPConservativeHead,
    EScAIPDirectForceHead,
    EScAIPEnergyHead,
    EScAIPRank2Head,
    check_edges_are_read,
)


def check_heads_are_trained(model: nn.Module, trained: Iterable[str], targets: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to train a model of this package with a head, or a part of one, that no loss reaches.

    Args:
        model: Any model; those without heads of this package pass. Frozen heads need no loss.
        trained: Outputs with a loss.
        targets: Settings of every output, with ``decomposition`` and ``property``.

    Raises:
        ConfigError: Names the head and the losses that are missing.
    """
    heads = getattr(model, "output_heads", None)
    if heads is None:
        return
    check_edges_are_read(model)
    reached = _reached(trained, targets)
    for name, head in heads.items():
        if not any(parameter.requires_grad for parameter in head.parameters()):
            continue
        for group in _needed(head):
            if not any(prediction in reached or (name, prediction) in reached for prediction in group):
                raise ConfigError(
                    f"loss_functions: none trains the head {name!r}; add a loss of {' or '.join(group)}, or remove "
                    f"model.heads.{name}"
                )


def _reached(trained: Iterable[str], targets: Mapping[str, Mapping[str, Any]]) -> set[str | tuple[str, str]]:
    """Predictions that get a gradient: by name, or by head and name where an output is a head's ``property``."""
    reached: set[str | tuple[str, str]] = set()
    for target in trained:
        parts = targets[target].get("decomposition") or {}
        for name in (target, *parts):
            reached.add(name)
            wanted = (targets.get(name) or {}).get("property")
            if wanted is not None:
                reached.add((name, wanted))
    return reached


def _needed(head: nn.Module) -> list[tuple[str, ...]]:
    """Predictions of a head, in groups that share all of their parameters: one of each group needs a loss."""
    if isinstance(head, EScAIPConservativeHead):
        return [("energy", "forces", "stress") if head.options.regress_stress else ("energy", "forces")]
    if isinstance(head, EScAIPRank2Head):
        return [(f"{head.options.output_name}_isotropic",), (f"{head.options.output_name}_anisotropic",)]
    if isinstance(head, (EScAIPEnergyHead, EScAIPDirectForceHead)):
        return [(head.options.output_name,)]
    return []
