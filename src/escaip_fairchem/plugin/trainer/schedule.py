"""Learning-rate schedules: fairchem's own, and those whose settings count in epochs."""

from __future__ import annotations

import inspect
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any

from fairchem.core.modules.scheduler import LRScheduler
from torch.optim import lr_scheduler
from torch.optim.optimizer import Optimizer

from escaip_fairchem.errors import ConfigError, nearest

Factor = Callable[[int], float]
_COSINE = {"lambda_type", "warmup_factor", "warmup_epochs", "lr_min_factor", "epochs", "lr"}
_MULTISTEP = {"lambda_type", "warmup_factor", "warmup_epochs", "decay_epochs", "decay_rate", "epochs", "lr"}


def _warm_up(step: int, steps: int, factor: float) -> float:
    """Rise linearly from ``factor`` at step 0 to 1 at ``steps``."""
    reached = step / steps if steps else 1.0
    return factor + (1.0 - factor) * reached


def cosine_factor(*, warmup_steps: int, warmup_factor: float, total_steps: int, minimum: float) -> Factor:
    """Half a cosine from 1 down to ``minimum`` over the whole run, entered after a linear warm-up.

    Args:
        warmup_steps: Steps of the warm-up; the cosine is not shifted by them.
        warmup_factor: Factor at step 0.
        total_steps: Steps at which ``minimum`` is reached.
        minimum: Factor from then on.
    """

    def factor(step: int) -> float:
        if step <= warmup_steps:
            return _warm_up(step, warmup_steps, warmup_factor)
        progress = min(step / total_steps, 1.0)
        return minimum + (1.0 - minimum) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


def multistep_factor(*, warmup_steps: int, warmup_factor: float, milestones: list[int], decay: float) -> Factor:
    """A linear warm-up, then 1, multiplied by ``decay`` at every milestone (in steps)."""

    def factor(step: int) -> float:
        if step <= warmup_steps:
            return _warm_up(step, warmup_steps, warmup_factor)
        return float(decay ** bisect_right(milestones, step))

    return factor


def schedule_name(optim: Mapping[str, Any]) -> str:
    """Name of the schedule that ``optim`` describes: a scheduler of torch's, or ``Null`` for a constant rate."""
    default = "LambdaLR" if optim.get("scheduler_params") or "lr_milestones" in optim else "Null"
    return str(optim.get("scheduler") or default)


def build_schedule(optimizer: Optimizer, optim: Mapping[str, Any], steps_per_epoch: int | None) -> LRScheduler:
    """Build the schedule that ``optim`` describes.

    With ``scheduler_params`` the settings are those of fairchem's EquiformerV2 configurations: every key with
    ``epochs`` in it counts in epochs, fractions allowed, and ``epochs`` itself is ``max_epochs`` unless given.
    Otherwise fairchem reads its own keys from ``optim``; with neither ``scheduler`` nor ``lr_milestones`` the rate
    stays constant.

    Args:
        optimizer: What the schedule drives.
        optim: The configuration's section. It is not changed.
        steps_per_epoch: Batches per epoch; None without training data, when there is nothing to schedule.

    Raises:
        ConfigError: An unknown scheduler, or settings that it does not take.
    """
    if steps_per_epoch is None:
        return LRScheduler(optimizer, {"scheduler": "Null"})
    params = optim.get("scheduler_params")
    name = schedule_name(optim)
    if name != "Null" and not isinstance(getattr(lr_scheduler, name, None), type):
        known = [key for key, value in vars(lr_scheduler).items() if isinstance(value, type)]
        raise ConfigError(f"optim.scheduler: torch has no scheduler {name!r}{nearest(name, [*known, 'Null'])}")
    if not params:
        return _fairchem_schedule(optimizer, {**optim, "scheduler": name})
    in_steps = _epochs_to_steps({"epochs": optim.get("max_epochs"), **params}, steps_per_epoch)
    if name == "LambdaLR":
        return LRScheduler(optimizer, {"scheduler": name, "lr_lambda": _factor(in_steps)})
    return _torch_schedule(optimizer, name, in_steps, given=params)


def _fairchem_schedule(optimizer: Optimizer, optim: dict[str, Any]) -> LRScheduler:
    """Leave the reading to fairchem, whose default schedule is chosen by the absence of ``scheduler``."""
    if optim["scheduler"] == "LambdaLR" and "lr_lambda" not in optim:
        missing = {"lr_milestones", "lr_gamma", "warmup_steps", "warmup_factor"} - optim.keys()
        if missing:
            raise ConfigError(
                "optim: the scheduler LambdaLR needs scheduler_params (lambda_type: cosine, …), or "
                f"{', '.join(sorted(missing))}"
            )
        del optim["scheduler"]
    return LRScheduler(optimizer, optim)


def _torch_schedule(
    optimizer: Optimizer, name: str, in_steps: Mapping[str, Any], given: Mapping[str, Any]
) -> LRScheduler:
    accepted = set(inspect.signature(getattr(lr_scheduler, name)).parameters) - {"optimizer"}
    for key in given:
        if key not in accepted | {"epochs", "lr"}:
            raise ConfigError(f"optim.scheduler_params: {name} takes no {key!r}{nearest(key, accepted)}")
    return LRScheduler(optimizer, {"scheduler": name, **{key: in_steps[key] for key in given if key in accepted}})


def _epochs_to_steps(params: Mapping[str, Any], steps_per_epoch: int) -> dict[str, Any]:
    def convert(value: Any) -> Any:
        return [convert(item) for item in value] if isinstance(value, list) else int(value * steps_per_epoch)

    return {key: convert(value) if "epochs" in key and value is not None else value for key, value in params.items()}


def _factor(params: Mapping[str, Any]) -> Factor:
    """Choose the factor by ``lambda_type``."""
    kinds = {"cosine": _COSINE, "multistep": _MULTISTEP}
    kind = params.get("lambda_type")
    if kind not in kinds:
        raise ConfigError(f"optim.scheduler_params.lambda_type: unknown value {kind!r}{nearest(str(kind), kinds)}")
    for key in params:
        if key not in kinds[kind]:
            raise ConfigError(f"optim.scheduler_params: unknown key {key!r}{nearest(key, kinds[kind])}")
    missing = kinds[kind] - params.keys() - {"lr"}
    if missing:
        raise ConfigError(f"optim.scheduler_params: {kind} also needs {', '.join(sorted(missing))}")
    warm_up = {"warmup_steps": params["warmup_epochs"], "warmup_factor": params["warmup_factor"]}
    if kind == "cosine":
        return cosine_factor(**warm_up, total_steps=params["epochs"], minimum=params["lr_min_factor"])
    return multistep_factor(**warm_up, milestones=params["decay_epochs"], decay=params["decay_rate"])
