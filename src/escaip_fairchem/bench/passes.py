"""Forward passes and training steps of whole models: their time, their memory, and how far their outputs agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import AdamW

from escaip_fairchem.bench.cases import CompareCase, Outcome, PassCase
from escaip_fairchem.bench.floors import count_flops, escaip_flops_per_atom, is_counted_by_hand, model_bytes
from escaip_fairchem.bench.frames import FrameBatch, FramePool, draw_batches, join, load_pool
from escaip_fairchem.bench.memory import MemoryProbe
from escaip_fairchem.bench.models import (
    ESCAIP,
    Contender,
    ModelName,
    NotAvailableError,
    build,
    import_baselines,
    parse_name,
)
from escaip_fairchem.bench.timing import Timer, synchronized_clock

LEARNING_RATE, WEIGHT_DECAY, LARGEST_NORM = 1e-4, 0.01, 10.0
"""Of the training step, as in the paper. They do not change its cost."""


class Pass:
    """One model, ready to be run again and again.

    Args:
        contender: The model.
        mode: ``inference`` or ``training``.

    Raises:
        NotAvailableError: All parameters of what is to be trained are frozen.
    """

    def __init__(self, contender: Contender, mode: str) -> None:
        self.contender = contender
        self.is_training = mode == "training"
        contender.module.train(self.is_training)
        self._parameters = list(contender.module.parameters())
        if self.is_training and not any(parameter.requires_grad for parameter in self._parameters):
            raise NotAvailableError("its parameters are frozen, so there is nothing to train")
        self._optimizer = (
            AdamW(self._parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY) if self.is_training else None
        )

    def on(self, batch: FrameBatch) -> Callable[[], dict[str, Tensor]]:
        """A function that runs the model once on a batch that is on the device already."""
        prepared = self.contender.prepare(batch)
        return (lambda: self._step(prepared, batch)) if self.is_training else (lambda: self._predict(prepared))

    @torch.no_grad()
    def _predict(self, prepared: Any) -> dict[str, Tensor]:
        with self.contender.numerics():
            return self.contender.predict(prepared)

    def _step(self, prepared: Any, batch: FrameBatch) -> dict[str, Tensor]:
        """Forward, loss, backward, clipping and AdamW, as in training."""
        assert self._optimizer is not None
        with self.contender.numerics():
            outputs = self.contender.predict(prepared)
        energy_loss = (outputs["energy"].float().reshape(-1) - batch.energy_B).abs().mean()
        forces_loss = (outputs["forces"].float() - batch.forces_N3).norm(dim=-1).mean()
        self._optimizer.zero_grad()
        (energy_loss + 100.0 * forces_loss).backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, LARGEST_NORM)
        self._optimizer.step()
        return outputs


@lru_cache(maxsize=1)
def built(model: str, variant: str, seed: int, device: str) -> Contender:
    """Build a model, or take the last one that was built: on a GPU its cases follow each other in one process."""
    return build(ModelName(model=model, variant=variant), seed=seed, device=device)


def measure_passes(case: PassCase) -> Outcome:
    """Time a model over batches drawn at random, and watch its memory meanwhile.

    Raises:
        NotAvailableError: The model cannot be built here.
    """
    pool = load_pool(case.folder, seed=case.seed)
    batches = draw_batches(pool, size=case.batch_size, count=case.batches, seed=case.seed)
    warm_libraries(case.device)
    if case.model not in ESCAIP:
        import_baselines()
    probe = MemoryProbe(case.device, from_zero=True)
    contender = built(case.model, case.variant, case.seed, case.device)
    contender.module.zero_grad(set_to_none=True)  # an earlier case's, which may have ended anywhere
    run = Pass(contender, case.mode)
    counted = warm_up(run, pool, case)
    if contender.is_compiled:  # once per size, and no part of a batch's time
        for batch in batches:
            run.on(batch.to(case.device))()
    seconds, peaks = [], []
    timer, begin = Timer(case.device), synchronized_clock(case.device)
    for batch in batches:
        function = run.on(batch.to(case.device))
        probe.start()
        seconds.append(timer.measure(function))
        peaks.append(probe.peak_bytes())
        if synchronized_clock(case.device) - begin > case.budget:
            break
    return Outcome(
        case=case,
        seconds=seconds,
        atoms=[batch.atoms for batch in batches[: len(seconds)]],
        peak_bytes=peaks,
        flops=counted,
        bytes=model_bytes(contender.module, case.mode),
        parameters=contender.parameters,
        weight_bytes=contender.weight_bytes,
        extra={"frames": pool.source},
    )


def warm_up(run: Pass, pool: FramePool, case: PassCase) -> float:
    """Run a model before it is timed, and find its operations per atom.

    The first pass takes the smallest frame: it loads what is loaded once. On a GPU up to three batches of the size that
    will be timed follow.
    """
    small = join([min(pool.frames, key=len)]).to(case.device)
    flops = first_pass(run, small, case.model, case.mode)
    if case.device == "cuda":
        begin = synchronized_clock(case.device)
        for batch in draw_batches(pool, size=case.batch_size, count=3, seed=case.seed + 1):
            run.on(batch.to(case.device))()
            if synchronized_clock(case.device) - begin > case.budget / 2:
                break
    return flops


def first_pass(run: Pass, batch: FrameBatch, model: str, mode: str) -> float:
    """Run a model for the first time, which takes longest.

    Returns:
        Operations of its matrix products per atom: of the plain path for this package's models, and those that others
        made in this pass.
    """
    if not is_counted_by_hand(model):
        return count_flops(run.on(batch)) / batch.atoms
    run.on(batch)()
    return escaip_flops_per_atom(model, mode)


def warm_libraries(device: str) -> None:
    """Let the libraries for matrix products take their own memory and start their threads."""
    matrix = torch.ones(512, 512, device=device, requires_grad=True)
    (matrix @ matrix).sum().backward()
    (matrix.bfloat16() @ matrix.bfloat16()).sum().backward()


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """How far an output is from the reference's, in units of the reference's root mean square.

    Attributes:
        largest: Largest deviation of any number.
        rms: Root mean square of the deviations.
    """

    largest: float
    rms: float

    @classmethod
    def between(cls, actual: Tensor, reference: Tensor) -> Deviation:
        """Compare outputs of any equal number of elements."""
        wanted = reference.detach().double().reshape(-1)
        difference = actual.detach().double().reshape(-1) - wanted
        unit = wanted.square().mean().sqrt()
        return cls(largest=float(difference.abs().max() / unit), rms=float(difference.square().mean().sqrt() / unit))


def measure_comparison(case: CompareCase) -> Outcome:
    """Time several models on the same three frames, in turn.

    Models of this package's that differ in the path alone have the same weights, and their outputs are compared with
    those of the first. What cannot be built here is left out, with its reason under ``reasons``.
    """
    pool = load_pool(case.folder, seed=case.seed)
    batch = join(pool.three, seed=case.seed).to(case.device)
    small = join([min(pool.three, key=len)]).to(case.device)
    functions: dict[str, Callable[[], dict[str, Tensor]]] = {}
    reasons: dict[str, str] = {}
    contenders: dict[str, Contender] = {}
    outputs: dict[str, dict[str, Tensor]] = {}
    for name in case.names:
        try:
            contenders[name] = _build_like_others(name, contenders, case)
        except NotAvailableError as error:
            reasons[name] = str(error)
            continue
        # Before anything is trained, so that all have the same weights.
        outputs[name] = Pass(contenders[name], "inference").on(batch if name.startswith("escaip") else small)()
    flops: dict[str, float] = {}
    for name, contender in contenders.items():
        run = Pass(contender, case.mode)
        flops[name] = first_pass(run, small, parse_name(name).model, case.mode)
        takes_one = case.singly and parse_name(name).model not in ESCAIP
        functions[name] = _one_by_one(run, pool, case) if takes_one else run.on(batch)
    seconds = time_in_turn(functions, case)
    return Outcome(
        case=case,
        atoms=[batch.atoms],
        seconds=seconds.get(case.names[0], []),
        extra={
            "seconds": seconds,
            "reasons": reasons,
            "flops": flops,
            "deviations": _deviations(case.names[0], outputs),
            "parameters": {name: contender.parameters for name, contender in contenders.items()},
            "weight_bytes": {name: contender.weight_bytes for name, contender in contenders.items()},
            "frames": pool.three_source,
        },
    )


def _one_by_one(run: Pass, pool: FramePool, case: CompareCase) -> Callable[[], Any]:
    """A function that runs the model on the three frames, one after the other."""
    frames = [run.on(join([frame], seed=case.seed).to(case.device)) for frame in pool.three]

    def function() -> None:
        for one in frames:
            one()  # not kept: some of fairchem's models hand out a gradient's graph with what they predict

    return function


def _build_like_others(name: str, others: dict[str, Contender], case: CompareCase) -> Contender:
    """Build a model, with the weights of one that differs in the path alone if there is one."""
    wanted = parse_name(name)
    contender = build(wanted, seed=case.seed, device=case.device)
    for other, twin in others.items():
        if parse_name(other).model == wanted.model:
            contender.module.load_state_dict(twin.module.state_dict())
            break
    return contender


def time_in_turn(functions: dict[str, Callable[[], Any]], case: CompareCase) -> dict[str, list[float]]:
    """Time functions in turn, round after round, until all have their repetitions or one has used the budget.

    Every function has the same number of times, and each time its fellows of the same moment. The warm rounds do not
    count: on a processor, a process gets the pages of its memory one by one as it first touches them, and a model that
    needs gigabytes takes up to three times as long until it has them.
    """
    timer = Timer(case.device)
    for _ in range(case.warm_rounds):
        for function in functions.values():
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(case.repeats):
        for name, function in functions.items():
            seconds[name].append(timer.measure(function))
        if any(sum(values) >= case.budget for values in seconds.values()):
            break
    return seconds


def _deviations(reference: str, outputs: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, dict[str, float]]]:
    """Deviations of ``energy`` and ``forces`` from the reference's, by model of this package's."""
    if reference not in outputs:
        return {}
    model = parse_name(reference).model
    return {
        name: {key: vars(Deviation.between(values[key], outputs[reference][key])) for key in ("energy", "forces")}
        for name, values in outputs.items()
        if parse_name(name).model == model
    }
