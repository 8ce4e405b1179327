"""What a training step spends outside the model, through the real trainer and real loaders."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from escaip_fairchem.bench.cases import Outcome, TrainerCase
from escaip_fairchem.bench.floors import Floor, escaip_flops_per_atom, model_bytes, weightless
from escaip_fairchem.bench.models import VARIANTS, backbone_config, import_baselines
from escaip_fairchem.bench.options import Session
from escaip_fairchem.bench.passes import warm_libraries
from escaip_fairchem.bench.tables import MakeTables, Table
from escaip_fairchem.bench.timing import Spread

WARM_UP = 2
USUAL_MODELS = {"cpu": ("escaip-demo:fast", "escaip-small:fast"), "cuda": ("escaip-small:fast", "escaip-small:bf16")}
QUICK_MODELS = ("escaip-tiny:fast",)
SIZES = {"cpu": 4, "cuda": 16}
STEPS = {"cpu": 6, "cuda": 40}
WORKERS = {"cpu": 0, "cuda": 4}


def trainer_case(session: Session, model: str, variant: str) -> TrainerCase:
    """The case that both ``train`` and ``ratios`` measure."""
    options = session.options
    size = 2 if options.quick else options.sizes((SIZES[options.device],), (2,))[0]
    return TrainerCase(
        **options.common,
        model=model,
        variant=variant,
        batch_size=size,
        steps=3 if options.quick else STEPS[options.device],
        workers=0 if options.quick else WORKERS[options.device],
    )


def measure_trainer(case: TrainerCase) -> Outcome:
    """Train for some steps on frames of the demonstration set.

    Raises:
        NotAvailableError: fairchem is not installed.
    """
    import_baselines()
    from escaip_fairchem.data.demo_set import DemoOptions, write_demo
    from escaip_fairchem.plugin.baselines import quiet
    from escaip_fairchem.plugin.timed_trainer import train_timed

    warm_libraries(case.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = case.batch_size * (case.steps + WARM_UP)
        demo = DemoOptions(train=frames, val=0, test=0, seed=case.seed, formats=("lmdb",))
        summary = write_demo(folder / "data", demo, workers=1)
        with quiet():
            whole, inside = train_timed(_settings(case, folder), skip=WARM_UP)
    return Outcome(
        case=case,
        seconds=whole,
        atoms=[round(case.batch_size * summary["splits"]["train"]["atoms"]["mean"])],
        flops=escaip_flops_per_atom(case.model, "training"),
        bytes=model_bytes(weightless(case.name), "training"),
        extra={"inside": list(inside), "outside": 1.0 - sum(inside) / sum(whole)},
    )


def _settings(case: TrainerCase, folder: Path) -> dict[str, Any]:
    """Keyword arguments of the trainer, with the paper's settings for training."""
    precision = VARIANTS[case.variant].precision
    return {
        "task": {},
        "model": {"name": "escaip_fairchem.EScAIP", "backbone": asdict(backbone_config(case.name))},
        "outputs": {"energy": {"level": "system"}, "forces": {"level": "atom"}},
        "dataset": {
            "train": {
                "src": str(folder / "data" / "lmdb" / "train"),
                "format": "lmdb",
                "key_mapping": {"y": "energy", "force": "forces"},
                "transforms": {
                    "normalizer": {"energy": {"mean": 0.6, "stdev": 1.25}, "forces": {"mean": 0.0, "stdev": 0.93}}
                },
            }
        },
        "optimizer": {
            "batch_size": case.batch_size,
            "num_workers": case.workers,
            "max_epochs": 1,
            "lr_initial": 1e-4,
            "optimizer": "AdamW",
            "optimizer_params": {"weight_decay": 0.01},
            "scheduler": "LambdaLR",
            "scheduler_params": {
                "lambda_type": "cosine", "warmup_factor": 0.2, "warmup_epochs": 0.1, "lr_min_factor": 0.1,
            },
            "clip_grad_norm": 10,
            "ema_decay": 0.999,
            "amp_dtype": "fp32" if precision == "tf32" else precision,
            "tf32": precision == "tf32",
            "checkpoint_every": 10**9,
            "eval_every": 10**9,
        },
        "loss_functions": [
            {"energy": {"fn": "mae", "coefficient": 4}},
            {"forces": {"fn": "l2mae", "coefficient": 100}},
        ],
        "evaluation_metrics": {"metrics": {"energy": ["mae"], "forces": ["mae"]}, "primary_metric": "forces_mae"},
        "identifier": "bench",
        "run_dir": str(folder / "run"),
        "local_rank": 0,
        "print_every": 10,
        "seed": case.seed,
        "logger": "null",
        "is_debug": True,  # no checkpoints: their size is not the question
        "cpu": case.device == "cpu",
    }  # fmt: skip


def run_train(session: Session) -> MakeTables:
    """Measure the trainer; the table's file is ``train.csv``."""
    options = session.options
    cases = [
        trainer_case(session, name.model, name.variant)
        for name in options.names(USUAL_MODELS[options.device], QUICK_MODELS)
    ]
    outcomes = session.runner.run(cases)
    return lambda: [session.save(trainer_table(outcomes, session), "train")]


def trainer_table(outcomes: Sequence[Outcome], session: Session) -> Table:
    """A row per model."""
    columns = (
        "model", "precision", "batch", "workers", "steps", "time median (s)", "time mean (s)", "time std (s)",
        "inside (s)", "outside %", "floor (s)", "floor share", "remark",
    )  # fmt: skip
    notes = [
        "through the trainer escaip_forces, its loaders and fairchem's LMDB reader, on frames of `escaip data demo`; a "
        "step lasts from the end of the one before to its own end",
        "inside: forward, backward with clipping, and optimizer with average and schedule; outside is the rest: "
        "loading, copying, losses, checks, reports",
        "floor: FLOPs of the plain model's forward and backward pass over the measured rate, or the bytes of weights, "
        "gradients and AdamW's state over the bandwidth",
    ]
    rows = [_row(outcome, session) for outcome in outcomes]
    return Table(title="Training through the trainer", columns=columns, rows=rows, notes=notes)


def _row(outcome: Outcome, session: Session) -> dict[str, Any]:
    case = outcome.case
    assert isinstance(case, TrainerCase)
    row: dict[str, Any] = {
        "model": str(case.name),
        "precision": case.name.precision,
        "batch": case.batch_size,
        "workers": case.workers,
    }
    if not outcome.is_measured:
        return row | {"remark": outcome.remark}
    spread = Spread.of(outcome.seconds)
    atoms = Spread.of([float(count) for count in outcome.atoms]).mean
    floor = Floor(flops=outcome.flops * atoms, bytes=outcome.bytes, precision=case.name.precision)
    seconds = floor.seconds(session.machine)
    return row | {
        "steps": spread.count,
        "time median (s)": spread.median,
        "time mean (s)": spread.mean,
        "time std (s)": spread.std,
        "inside (s)": Spread.of(outcome.extra["inside"]).mean,
        "outside %": 100.0 * float(outcome.extra["outside"]),
        "floor (s)": seconds,
        "floor share": seconds / spread.mean,
    }
