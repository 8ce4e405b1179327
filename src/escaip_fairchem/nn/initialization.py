"""Initial values of parameters."""

from __future__ import annotations

from torch import nn

ELEMENT_EMBEDDING_RANGE = 1e-3
ENERGY_HEAD_GAIN = 0.01


def initialize(module: nn.Module, gain: float = 1.0) -> None:
    """Xavier-uniform linear layers, zero biases, element embeddings uniform in ±1e-3.

    Args:
        module: Everything below it is initialised from torch's default generator.
        gain: Factor on the Xavier range, e.g. :data:`ENERGY_HEAD_GAIN`, so that a fresh model predicts energies near 0.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight, gain=gain)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.uniform_(part.weight, -ELEMENT_EMBEDDING_RANGE, ELEMENT_EMBEDDING_RANGE)


def parameters_without_decay(module: nn.Module) -> list[str]:
    """Names of the parameters that weight decay would only hurt: all biases, norms, embeddings and scalars."""
    names = {name for name, parameter in module.named_parameters() if parameter.dim() <= 1 or name.endswith(".bias")}
    for prefix, part in module.named_modules():
        if isinstance(part, nn.Embedding):
            names.add(f"{prefix}.weight")
    return sorted(names)
