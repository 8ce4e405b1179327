"""What metrics compare: predictions and labels of the same rows, fixed atoms left out where that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from escaip_fairchem.plugin.trainer.objective import shaped_label


def compared(
    predictions: Mapping[str, Tensor], batch: Any, targets: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Put the labels of a batch beside its predictions, as an evaluator takes them.

    Args:
        predictions: By output, in physical units: (N, width) or (B, width) by its level.
        batch: The labelled batch, on their device.
        targets: Settings of these outputs: ``level``, and ``eval_on_free_atoms`` for those per atom.

    Returns:
        Predictions and labels, both with ``natoms`` (evaluated atoms per structure), ``natoms_all`` and the other
        tensors of the batch.

    Raises:
        DataError: A label is missing, or not as many numbers as the prediction.
    """
    free_N = batch.fixed == 0
    free_B = torch.zeros_like(batch.natoms).index_add_(0, batch.batch, free_N.to(batch.natoms.dtype))
    predicted: dict[str, Tensor] = {}
    labelled: dict[str, Tensor] = {}
    for name, settings in targets.items():
        pred = predictions[name]
        label = shaped_label(batch, name, pred).to(pred.dtype)
        if settings["level"] == "atom" and settings["eval_on_free_atoms"]:
            pred, label = pred[free_N], label[free_N]
        predicted[name], labelled[name] = pred, label
    # Metrics that need numbers of atoms need those of the rows of forces.
    of_all = not targets.get("forces", {}).get("eval_on_free_atoms", True)
    shared = {"natoms": batch.natoms if of_all else free_B, "natoms_all": batch.natoms}
    others = {
        key: batch[key]
        for key in batch.keys()  # noqa: SIM118 -- iterating over a batch is something else
        if key not in labelled and key not in shared and isinstance(batch[key], Tensor)
    }
    return {**others, **shared, **predicted}, {**others, **shared, **labelled}
