"""From what a model returns to one tensor per declared output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from fairchem.core.common.utils import cg_change_mat, irreps_sum
from torch import Tensor

from escaip_fairchem.errors import ConfigError, nearest
from escaip_fairchem.plugin.trainer.amp import at_least_float32

Denormalize = Callable[[str, Tensor], Tensor]


def read_outputs(
    raw: Mapping[str, Any],
    targets: Mapping[str, Mapping[str, Any]],
    *,
    n_atoms: int,
    n_structures: int,
    denormalize: Denormalize,
) -> dict[str, Tensor]:
    """Pick the declared outputs from a model's results, in the precision of losses and metrics.

    Args:
        raw: The model's results: tensors, or for hydra models one dictionary of properties per head.
        targets: Settings of every output and of the parts of decomposed ones, by name.
        n_atoms: Atoms in the batch.
        n_structures: Structures in the batch.
        denormalize: Turns a normalised part of a decomposed output into physical units.

    Returns:
        One tensor per output: (n_atoms, width) or (n_structures, width) by its declared level, never half precision.

    Raises:
        ConfigError: The model has no such output.
    """
    outputs = {}
    for name, settings in targets.items():
        if name in raw:
            value = at_least_float32(_property(raw[name], name, settings))
        elif "decomposition" in settings:
            value = _compose(raw, settings["decomposition"], targets, n_structures, denormalize)
        else:
            raise ConfigError(
                f"outputs.{name}: the model returns no {name!r}{nearest(name, raw)}. Change `outputs` (or, with "
                "OCPCalculator, `only_output`), or give the model a head for it."
            )
        outputs[name] = value.reshape(n_atoms if settings["level"] == "atom" else n_structures, -1)
    return outputs


def _property(value: Any, name: str, settings: Mapping[str, Any]) -> Tensor:
    """A result itself, or the declared property of a hydra head's results."""
    if isinstance(value, Tensor):
        return value
    wanted = settings.get("property")
    if wanted not in value:
        raise ConfigError(
            f"outputs.{name}.property: the head {name!r} returns no {wanted!r}{nearest(str(wanted), value)}"
        )
    result: Tensor = value[wanted]
    return result


def _compose(
    raw: Mapping[str, Any],
    parts: Mapping[str, Any],
    targets: Mapping[str, Mapping[str, Any]],
    n_structures: int,
    denormalize: Denormalize,
) -> Tensor:
    """Rebuild a Cartesian tensor (B, 9) from its predicted irreducible parts; absent parts count as zero."""
    by_degree = {}
    for name in parts:
        if name not in raw:
            raise ConfigError(f"outputs: the model returns no {name!r}, a part of a decomposition{nearest(name, raw)}")
        part = at_least_float32(_property(raw[name], name, targets[name]))
        by_degree[int(targets[name]["irrep_dim"])] = denormalize(name, part).reshape(n_structures, -1)
    some = next(iter(by_degree.values()))
    highest = max(by_degree)
    irreps = torch.cat(
        [by_degree.get(degree, some.new_zeros(n_structures, 2 * degree + 1)) for degree in range(highest + 1)], dim=1
    )
    assert irreps.shape[1] == irreps_sum(highest)
    return irreps @ _to_cartesian(highest, irreps.device).to(irreps.dtype)


@lru_cache(maxsize=8)
def _to_cartesian(degree: int, device: torch.device) -> Tensor:
    """Keep fairchem's change of basis on the device: building it anew costs a transfer."""
    basis: Tensor = cg_change_mat(degree, str(device))
    return basis
