"""The order in which several processes sum their gradients: the same in every step of every start of a training.

torch's DistributedDataParallel sums gradients in pieces. It lays them out anew after the first backward pass of a
process, in the order in which that pass delivered them. Which process's share of a number is added first depends on its
place in a piece, so with more than two processes the first step of a process rounds in another way than all later ones,
and a training that was stopped and continued would differ from one that was not, in the last bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from fairchem.core.common import distutils
from torch.nn.parallel import DistributedDataParallel

from escaip_fairchem.plugin.prepared import clone
from escaip_fairchem.plugin.trainer.resume import RandomState, restore_random_state

if TYPE_CHECKING:
    from escaip_fairchem.plugin.trainer.trainer import EScAIPForcesTrainer

_COMMUTING = 2  # processes: a + b is b + a, in floating point as well


def settle_summation_order(trainer: EScAIPForcesTrainer, batch: Any) -> None:
    """Have gradients laid out before the first step that counts, by a pass that does not. Collective.

    Args:
        trainer: It is left as it was, random numbers and the model's parameters and buffers included. What else a model
            keeps, as numbers of Python that it counts by itself, is not known here.
        batch: What the first step is going to take; it is left as it was.
    """
    model = trainer.model
    if distutils.get_world_size() <= _COMMUTING or not isinstance(model, DistributedDataParallel):
        return
    generators = RandomState.capture(trainer.device).to_plain()
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    batch = clone(batch)
    losses = trainer.objective(trainer._forward(batch), batch, trainer.normalize_label)
    trainer.differentiate(losses.total)
    trainer.optimizer.zero_grad()
    with torch.no_grad():
        for module, name, buffer, before in buffers:
            setattr(module, name, buffer.copy_(before))  # it may have been exchanged, or changed in place
    restore_random_state(generators, trainer.device)
