"""The training loss: fairchem's functions and reductions, without waiting for the device, without hiding NaN."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from torch import Tensor, nn

from escaip_fairchem.errors import ConfigError, DataError, nearest
from escaip_fairchem.plugin.losses import ForceCosineLoss  # the import registers it
from escaip_fairchem.plugin.trainer.distributed import sum_over_ranks

ROWWISE = ("mae", "mse", "l2mae", "l2norm", "per_atom_mae", ForceCosineLoss.short_name)
"""Losses that treat every row by itself and are 0 for rows of zeros: such rows can be blanked instead of left out."""

Normalize = Callable[[str, Tensor, Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """One entry of ``loss_functions``.

    Attributes:
        target: Name of the output.
        kind: Name of the loss function.
        function: From predictions, targets and atom counts to losses, not reduced.
        coefficient: Weight in the total.
        reduction: ``mean`` or ``sum``.
    """

    target: str
    kind: str
    function: nn.Module
    coefficient: float
    reduction: str


@dataclass(frozen=True, kw_only=True)
class LossValues:
    """Losses of one batch on this process, on the device; T terms.

    Attributes:
        total: What to differentiate; averaging it over the processes gives the loss of all their batches together.
        sums: Sum of every term over its elements here, (T,), detached.
        counts: Number of these elements, (T,); 1 for terms that are summed.
    """

    total: Tensor
    sums: Tensor
    counts: Tensor


def parse_terms(entries: Sequence[Mapping[str, Mapping[str, Any]]], targets: Mapping[str, Any]) -> list[LossTerm]:
    """Read ``loss_functions``.

    Raises:
        ConfigError: An unknown loss, reduction or output, or an entry without ``fn`` or ``coefficient``.
    """
    known = registry.mapping["loss_name_mapping"]
    terms = []
    for target, settings in ((target, settings) for entry in entries for target, settings in entry.items()):
        place = f"loss_functions.{target}"
        if target not in targets:
            raise ConfigError(f"{place}: {target!r} is not among the outputs{nearest(target, targets)}")
        for key in ("fn", "coefficient"):
            if key not in settings:
                raise ConfigError(f"{place}: the key {key!r} is missing")
        kind = settings["fn"]
        if kind not in known and "." not in str(kind):
            raise ConfigError(f"{place}.fn: unknown loss {kind!r}{nearest(str(kind), known)}")
        reduction = settings.get("reduction") or "mean"
        if reduction not in ("mean", "sum"):
            raise ConfigError(f"{place}.reduction: unknown value {reduction!r}{nearest(reduction, ('mean', 'sum'))}")
        terms.append(
            LossTerm(
                target=target,
                kind=kind,
                function=registry.get_loss_class(kind)(),
                coefficient=settings["coefficient"],
                reduction=reduction,
            )
        )
    return terms


def label_of(batch: Any, target: str) -> Tensor:
    """The labels of an output.

    Raises:
        DataError: The data holds none under this name.
    """
    if target not in batch or batch[target] is None:
        raise DataError(
            f"the data has no {target!r} (it has {', '.join(sorted(batch.keys()))}); if it is stored under another "
            f"name, map it with dataset.train.key_mapping: {{NAME: {target}}}, or remove it from `outputs`"
        )
    label: Tensor = batch[target]
    return label


def shaped_label(batch: Any, target: str, pred: Tensor) -> Tensor:
    """The labels of an output in the shape of its predictions.

    Raises:
        DataError: There are none, or not as many numbers as predictions.
    """
    label = label_of(batch, target)
    if label.numel() != pred.numel():
        raise DataError(
            f"the label {target!r} has shape {tuple(label.shape)}, the predictions have {tuple(pred.shape)}; "
            f"check outputs.{target}.level and irrep_dim"
        )
    return label.reshape(pred.shape)


class Objective:
    """The weighted sum of all loss terms."""

    def __init__(self, terms: Sequence[LossTerm], targets: Mapping[str, Mapping[str, Any]]) -> None:
        """Join terms.

        Args:
            terms: From `parse_terms`.
            targets: Settings of every output: ``level`` and ``train_on_free_atoms``.
        """
        self.terms = list(terms)
        self._targets = targets

    def __call__(
        self, out: Mapping[str, Tensor], batch: Any, normalize: Normalize, *, collective: bool = True
    ) -> LossValues:
        """Compute the losses of a batch.

        Args:
            out: Predictions in normalised units, from `read_outputs`.
            batch: The labelled batch, on the device of the predictions.
            normalize: Removes references from labels and normalises them, in their own precision.
            collective: Whether all processes do this at the same time, so that the total can be differentiated for
                all of their batches; otherwise it is that of this batch alone.
        """
        pairs = [self._reduce(term, out[term.target], batch, normalize) for term in self.terms]
        sums_T, counts_T = torch.stack([total for total, _ in pairs]), torch.stack([count for _, count in pairs])
        # Gradients are averaged over the processes, whose batches differ in size: scale each to its share.
        processes = distutils.get_world_size() if collective else 1
        everywhere_T = sum_over_ranks(counts_T) if collective else counts_T
        shares_T = sums_T * processes / everywhere_T.clamp(min=1)
        total = sum(term.coefficient * share for term, share in zip(self.terms, shares_T.unbind(), strict=True))
        return LossValues(total=torch.as_tensor(total), sums=sums_T.detach(), counts=counts_T)

    def _reduce(self, term: LossTerm, pred: Tensor, batch: Any, normalize: Normalize) -> tuple[Tensor, Tensor]:
        """Sum a term over its elements, and count them: both ()."""
        label = normalize(term.target, shaped_label(batch, term.target, pred), batch).to(pred.dtype)
        settings = self._targets[term.target]
        free_N = batch.fixed == 0 if settings["level"] == "atom" and settings["train_on_free_atoms"] else None
        if free_N is not None and term.kind not in ROWWISE:
            pred, label, free_N = pred[free_N], label[free_N], None
        if free_N is not None:
            # Rows are blanked rather than selected: how many are selected is known to the device alone.
            pred, label = (torch.where(free_N.unsqueeze(-1), tensor, 0.0) for tensor in (pred, label))
        losses = term.function(pred, label, natoms=batch.natoms)
        count = losses.new_full((), float(losses.numel()))
        if free_N is not None:
            count = free_N.sum() * (losses.numel() / free_N.numel())
        if term.reduction == "sum":
            count = losses.new_ones(())
        return losses.sum(), count.to(losses.dtype)

    def mean(self, sums_T: Tensor, counts_T: Tensor) -> dict[str, float]:
        """Exact losses of many batches from their summed ``sums_T`` and ``counts_T``. Waits for the device.

        Returns:
            ``loss``, and each term without its coefficient as ``loss_<target>``.
        """
        means = (sums_T / counts_T.clamp(min=1)).tolist()
        named: dict[str, float] = {
            "loss": sum(term.coefficient * mean for term, mean in zip(self.terms, means, strict=True))
        }
        for term, mean in zip(self.terms, means, strict=True):
            key = f"loss_{term.target}"
            named[key if key not in named else f"{key}_{term.kind}"] = mean
        return named
