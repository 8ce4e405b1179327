"""The parts of the trainer, each by itself."""

from __future__ import annotations

import logging
import math
import os
import signal
from typing import Any

import pytest
import torch
from fairchem.core.common.utils import cg_change_mat
from fairchem.core.models.equiformer_v2.trainers.lr_scheduler import CosineLRLambda, MultistepLRLambda
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from torch import nn
from torch_geometric.data import Batch, Data
from trainer_cases import TinyModel

import escaip_fairchem  # noqa: F401
from escaip_fairchem.errors import CheckpointError, ConfigError, NonFiniteError
from escaip_fairchem.nn.initialization import parameters_without_decay
from escaip_fairchem.nn.precision import tf32, tf32_is_allowed
from escaip_fairchem.plugin.samples import SampleNames, describe_sample
from escaip_fairchem.plugin.trainer.amp import Precision, at_least_float32
from escaip_fairchem.plugin.trainer.ema import WeightSwap, adopt_average, check_average
from escaip_fairchem.plugin.trainer.finite import FiniteGuard, require_finite_weights, unfinished_structures
from escaip_fairchem.plugin.trainer.loaders import build_loader, loaded_rows, original_order
from escaip_fairchem.plugin.trainer.metrics import (
    CheckedEvaluator,
    choose_primary,
    default_metrics,
    energy_forces_within_threshold,
    higher_is_better,
    per_atom_mae,
)
from escaip_fairchem.plugin.trainer.objective import parse_terms
from escaip_fairchem.plugin.trainer.optimizer import build_optimizer, decay_groups
from escaip_fairchem.plugin.trainer.outputs import read_outputs
from escaip_fairchem.plugin.trainer.progress import Progress, format_line
from escaip_fairchem.plugin.trainer.resume import RandomState, deferred_signals, restore_random_state
from escaip_fairchem.plugin.trainer.schedule import build_schedule, cosine_factor
from escaip_fairchem.plugin.trainer.settings import complete_settings

CPU = torch.device("cpu")


def batch_of(sids: list[Any], fids: list[Any] | None = None) -> Batch:
    samples = [Data(pos=torch.zeros(2, 3), natoms=2, sid=sid) for sid in sids]
    for sample, fid in zip(samples, fids or [], strict=bool(fids)):
        sample.fid = fid
    return Batch.from_data_list(samples)


# Precision ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optim", "amp", "name"),
    [
        ({}, False, "fp32"),
        ({}, True, "fp16"),
        ({"amp_dtype": "bf16"}, False, "bf16"),
        ({"amp_dtype": "bf16"}, True, "bf16"),
        ({"amp_dtype": "fp32"}, True, "fp32"),
        ({"amp_dtype": "bfloat16"}, False, "bf16"),
    ],
)
def test_precision_follows_the_settings(optim: dict[str, Any], amp: bool, name: str) -> None:
    precision = Precision.from_settings(optim, amp=amp)
    assert precision.name == name
    assert (precision.grad_scaler(CPU) is not None) == (name == "fp16")
    with precision.forward(CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    assert at_least_float32(product).dtype == torch.float32


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_holds_for_a_pass_alone(allowed: bool) -> None:
    precision = Precision.from_settings({"tf32": allowed}, amp=False)
    with tf32(not allowed):
        for scope in (precision.forward(CPU), precision.backward()):
            with pytest.raises(KeyError), scope:
                assert tf32_is_allowed() == allowed
                raise KeyError
            assert tf32_is_allowed() != allowed
    assert not Precision.from_settings({}, amp=False).tf32
    with pytest.raises(ConfigError, match=r"optim\.tf32: 'yes' is neither true nor false"):
        Precision.from_settings({"tf32": "yes"}, amp=False)


def test_an_unknown_precision_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"optim\.amp_dtype: unknown value 'bf61'.*bf16"):
        Precision.from_settings({"amp_dtype": "bf61"}, amp=False)


def test_double_precision_is_left_alone() -> None:
    assert at_least_float32(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


# Weight decay ---------------------------------------------------------------------------------------------------------


def test_norms_embeddings_and_biases_are_not_decayed(caplog: pytest.LogCaptureFixture) -> None:
    groups = decay_groups(TinyModel())
    print("decayed:", groups.decayed, "exempt:", groups.exempt, sep="\n")
    assert groups.decayed == ("mix.0.weight", "energy.weight", "push.weight", "weight.weight")
    assert groups.exempt == ("norm_like", "elements.weight", "mix.0.bias", "mix.2.weight", "mix.2.bias", "weight.bias")
    # fairchem would exempt everything that ends in 'weight'; here that name is only reported.
    assert "no_weight_decay() names 'weight'" in caplog.text


def test_a_part_names_its_parameters_from_its_own_root() -> None:
    model = nn.ModuleDict({"backbone": TinyModel()})
    assert "backbone.norm_like" in decay_groups(model).exempt
    assert "backbone.energy.weight" in decay_groups(model).decayed


def test_the_rule_is_that_of_the_models() -> None:
    """They state it for fairchem's own trainers, in ``no_weight_decay()``."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Embedding(3, 2), nn.LayerNorm(2))
    model.register_parameter("bias", nn.Parameter(torch.zeros(2, 2)))
    assert sorted(decay_groups(model).exempt) == parameters_without_decay(model)
    assert "0.weight" in decay_groups(model).decayed
    assert "m.bias" in decay_groups(nn.ModuleDict({"m": model})).exempt  # a bias of two dimensions


def test_frozen_parameters_are_in_no_group() -> None:
    model = TinyModel()
    model.push.weight.requires_grad_(False)
    groups = decay_groups(model)
    assert "push.weight" not in groups.decayed + groups.exempt


def test_optimizer_settings() -> None:
    model = TinyModel()
    optim = {"lr_initial": 0.1, "optimizer_params": {"weight_decay": 0.3, "betas": [0.8, 0.9]}}
    exempt, decayed = build_optimizer(model, optim).param_groups
    assert (exempt["weight_decay"], decayed["weight_decay"], tuple(decayed["betas"])) == (0.0, 0.3, (0.8, 0.9))
    assert len(exempt["params"]) == 6
    assert len(build_optimizer(model, {"lr_initial": 0.1}).param_groups) == 1
    assert build_optimizer(model, {"lr_initial": 0.1, "weight_decay": 0.2}).param_groups[1]["weight_decay"] == 0.2
    with pytest.raises(ConfigError, match=r"AdamWW.*AdamW"):
        build_optimizer(model, {"lr_initial": 0.1, "optimizer": "AdamWW"})
    with pytest.raises(ConfigError, match="momentums"):
        build_optimizer(model, {"lr_initial": 0.1, "optimizer_params": {"momentums": 1}})


# Schedules ------------------------------------------------------------------------------------------------------------


def rates(schedule: Any, steps: int) -> list[float]:
    values = []
    for _ in range(steps):
        values.append(schedule.get_lr())
        schedule.optimizer.step()
        schedule.step()
    return values


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)


def test_the_cosine_schedule_has_equiformers_values_and_leaves_the_settings_alone() -> None:
    params = {"lambda_type": "cosine", "warmup_factor": 0.2, "warmup_epochs": 0.5, "lr_min_factor": 0.1}
    optim = {"scheduler": "LambdaLR", "scheduler_params": dict(params), "max_epochs": 4}
    expected = CosineLRLambda({**params, "warmup_epochs": 5, "epochs": 40})
    ours = rates(build_schedule(optimizer(), optim, steps_per_epoch=10), 45)
    assert ours == pytest.approx([expected(step) for step in range(45)], abs=1e-12)
    assert optim["scheduler_params"] == params


def test_the_multistep_schedule_has_equiformers_values() -> None:
    params = {
        "lambda_type": "multistep",
        "warmup_factor": 0.2,
        "warmup_epochs": 1,
        "decay_epochs": [2, 3],
        "decay_rate": 0.1,
    }
    expected = MultistepLRLambda({**params, "warmup_epochs": 5, "decay_epochs": [10, 15], "epochs": 20})
    ours = rates(build_schedule(optimizer(), {"scheduler_params": params, "max_epochs": 4}, steps_per_epoch=5), 22)
    assert ours == pytest.approx([expected(step) for step in range(22)], abs=1e-12)


def test_no_warm_up_starts_at_the_full_rate() -> None:
    factor = cosine_factor(warmup_steps=0, warmup_factor=0.2, total_steps=10, minimum=0.1)
    assert factor(0) == 1.0
    assert factor(5) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 2)))


def test_fairchems_own_schedules_work() -> None:
    milestones = {"lr_milestones": [100, 200], "lr_gamma": 0.1, "warmup_steps": 4, "warmup_factor": 0.2}
    for optim in (milestones, {**milestones, "scheduler": "LambdaLR"}):
        assert rates(build_schedule(optimizer(), optim, 10), 5) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates(build_schedule(optimizer(), {"scheduler": "ExponentialLR", "gamma": 0.5}, 10), 3) == [1.0, 0.5, 0.25]
    native = {"scheduler": "CosineAnnealingLR", "scheduler_params": {"T_max": 2}, "max_epochs": 1}
    assert rates(build_schedule(optimizer(), native, 10), 3) == pytest.approx([1.0, 0.5, 0.0])
    assert rates(build_schedule(optimizer(), {}, 10), 3) == [1.0, 1.0, 1.0]
    assert rates(build_schedule(optimizer(), {"scheduler": "LambdaLR"}, None), 2) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"scheduler": "CosineAnealingLR"}, "CosineAnnealingLR"),
        ({"scheduler": "LambdaLR"}, "scheduler_params"),
        ({"scheduler_params": {"lambda_type": "cosin"}}, "cosine"),
        ({"scheduler_params": {"lambda_type": "cosine"}}, "lr_min_factor"),
        ({"scheduler_params": {"lambda_type": "cosine", "warmup_epoch": 1}}, "warmup_epochs"),
        ({"scheduler": "CosineAnnealingLR", "scheduler_params": {"Tmax": 2}}, "T_max"),
    ],
)
def test_wrong_schedules_are_named(optim: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_schedule(optimizer(), {"max_epochs": 2, **optim}, 10)


# Samples --------------------------------------------------------------------------------------------------------------


def test_samples_are_named() -> None:
    batch = batch_of(["a7", "b8"], [3, 4])
    assert describe_sample(batch, 1) == "sid 'b8', fid 4 (structure 1 of the batch)"
    names = SampleNames.of(batch)
    assert [names.identifier(row) for row in range(2)] == ["a7_3", "b8_4"]
    assert names.listed([0]) == "sid 'a7', fid 3 (structure 0 of the batch)"
    numbers = SampleNames.of(batch_of([11, 12]))
    assert [numbers.identifier(row) for row in range(2)] == ["11", "12"]
    anonymous = batch_of([1, 2])
    del anonymous.sid
    assert SampleNames.of(anonymous).identifier(1) == "1"
    assert describe_sample(anonymous, 0) == "structure 0 of the batch, which has no sid"


def test_long_lists_of_samples_are_cut() -> None:
    listed = SampleNames.of(batch_of(list(range(20)))).listed()
    assert listed.endswith("and 12 more")


# Averages -------------------------------------------------------------------------------------------------------------


def test_averaged_weights_come_and_go() -> None:
    model = nn.Linear(1, 1, bias=False)
    ema = ExponentialMovingAverage(model.parameters(), 0.5)
    model.weight.data.fill_(10.0)
    ema.shadow_params[0].fill_(1.0)
    swap = WeightSwap()
    with swap.averaged(ema), swap.averaged(ema):
        assert model.weight.item() == 1.0
        with swap.training():
            assert model.weight.item() == 10.0
        assert model.weight.item() == 1.0
    assert model.weight.item() == 10.0
    assert ema.collected_params == []
    with pytest.raises(ZeroDivisionError), swap.averaged(ema):
        raise ZeroDivisionError
    assert model.weight.item() == 10.0
    with swap.averaged(None), swap.training():
        assert model.weight.item() == 10.0


def test_an_average_of_another_model_is_refused() -> None:
    model = nn.Linear(2, 3)
    with pytest.raises(CheckpointError, match=r"x\.pt: holds 1 averaged tensors"):
        check_average(model.parameters(), [torch.zeros(3, 2)], "x.pt")
    with pytest.raises(CheckpointError, match=r"shape \(4,\)"):
        check_average(model.parameters(), [torch.zeros(3, 2), torch.zeros(4)], "x.pt")
    adopt_average(model.parameters(), [torch.ones(3, 2), torch.ones(3)])
    assert model.weight.eq(1).all()
    assert model.bias.eq(1).all()


# Loaders --------------------------------------------------------------------------------------------------------------


class Environment:
    """Knows which process opened it."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    def path(self) -> str:
        return "somewhere"


class Database(torch.utils.data.Dataset):
    """The part of fairchem's LMDB data sets that matters to workers."""

    def __init__(self) -> None:
        self.env, self.envs = Environment(), [Environment()]

    def connect_db(self, path: Any) -> Environment:
        assert str(path) == "somewhere"
        return Environment()

    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> tuple[int, int, int]:
        return os.getpid(), self.env.pid, self.envs[0].pid


@pytest.mark.parametrize("workers", [0, 1])
def test_every_process_reads_through_databases_that_it_opened(workers: int) -> None:
    dataset = torch.utils.data.Subset(Database(), [3, 1, 0])
    sampler = torch.utils.data.BatchSampler(range(3), batch_size=2, drop_last=False)
    loader = build_loader(dataset, sampler, collate=list, workers=workers, device=CPU)
    state = torch.get_rng_state()
    samples = [sample for batch in loader for sample in batch]
    assert len(samples) == 3
    assert all(len(set(sample)) == 1 for sample in samples)
    assert (samples[0][0] == os.getpid()) == (workers == 0)
    assert torch.equal(torch.get_rng_state(), state)  # a new pass draws nothing from the global generator
    assert loaded_rows(loader) == [[0, 1], [2]]
    assert original_order(dataset, [0, 1, 2]) == [3, 1, 0]


# Random numbers and signals -------------------------------------------------------------------------------------------


def draw() -> tuple[float, float, float, float]:
    import random

    import numpy as np

    return random.random(), random.gauss(0, 1), float(np.random.standard_normal()), float(torch.rand(()))


def test_generators_continue_after_a_round_trip_through_a_file(tmp_path: Any) -> None:
    draw()
    torch.save(RandomState.capture(CPU).to_plain(), tmp_path / "state.pt")
    expected = [draw() for _ in range(3)]
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True), CPU)
    assert [draw() for _ in range(3)] == expected


def test_signals_wait_for_the_end_of_a_step() -> None:
    events: list[str] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: events.append("signal"))
    try:
        with deferred_signals():
            os.kill(os.getpid(), signal.SIGUSR2)
            events.append("step")
        assert events == ["step", "signal"]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR2, before)


# Finite values --------------------------------------------------------------------------------------------------------


def guard_one_step(guard: FiniteGuard, step: int, bad: list[bool], loss: float = 1.0, norm: float = 1.0) -> None:
    names = SampleNames.of(batch_of([f"s{step}{index}" for index in range(2)]))
    guard.observe(
        step=step, epoch=0.5, names=names, bad={"prediction 'forces'": torch.tensor(bad)}, loss=torch.tensor(loss)
    )
    guard.observe_gradient(torch.tensor(norm))


def test_the_first_bad_step_and_structure_of_a_window_are_named() -> None:
    guard = FiniteGuard(nn.Linear(1, 1), gradients_may_overflow=False)
    guard_one_step(guard, 1, [False, False])
    guard_one_step(guard, 2, [False, True], loss=math.nan, norm=math.nan)
    guard_one_step(guard, 3, [True, True], loss=math.nan, norm=math.nan)
    with pytest.raises(NonFiniteError) as error:
        guard.check()
    assert "step 2 (epoch 0.5): the prediction 'forces' is not finite for sid 's21'" in str(error.value)
    assert "s20" not in str(error.value)
    assert "s3" not in str(error.value)
    guard.check()  # nothing is left


def test_losses_and_gradients_name_the_batch() -> None:
    model = nn.Linear(2, 1)
    guard = FiniteGuard(model, gradients_may_overflow=False)
    guard_one_step(guard, 4, [False, False], loss=math.inf)
    with pytest.raises(NonFiniteError, match=r"step 4 .*the loss is not finite.*'s40'.*'s41'"):
        guard.check()
    model.weight.grad = torch.tensor([[1.0, math.nan]])
    guard_one_step(guard, 5, [False, False], norm=math.nan)
    with pytest.raises(NonFiniteError, match=r"step 5 .*the gradient is not finite \(of weight\).*'s50'"):
        guard.check()
    scaled = FiniteGuard(model, gradients_may_overflow=True)
    guard_one_step(scaled, 6, [False, False], norm=math.inf)
    scaled.check()


def test_structures_are_flagged_by_their_rows() -> None:
    values = torch.tensor([[0.0], [math.nan], [1.0], [math.inf]])
    assert unfinished_structures(values, torch.tensor([0, 0, 1, 2]), 4).tolist() == [True, False, True, False]


def test_weights_must_be_finite() -> None:
    model = nn.Linear(1, 1)
    require_finite_weights(model.parameters(), step=3)
    model.bias.data.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="step 3"):
        require_finite_weights(model.parameters(), step=3)


# Outputs --------------------------------------------------------------------------------------------------------------


def test_outputs_have_the_declared_level_and_precision() -> None:
    raw = {"energy": torch.zeros(2, dtype=torch.bfloat16), "head": {"forces": torch.zeros(2, 3)}}
    targets = {"energy": {"level": "system"}, "head": {"level": "atom", "property": "forces"}}
    out = read_outputs(raw, targets, n_atoms=2, n_structures=2, denormalize=lambda name, value: value)
    assert (out["energy"].shape, out["energy"].dtype) == ((2, 1), torch.float32)
    assert out["head"].shape == (2, 3)


def test_missing_outputs_are_named() -> None:
    sizes: dict[str, Any] = {"n_atoms": 2, "n_structures": 1, "denormalize": lambda name, value: value}
    with pytest.raises(ConfigError, match=r"outputs\.force: .*did you mean 'forces'"):
        read_outputs({"forces": torch.zeros(2, 3)}, {"force": {"level": "atom"}}, **sizes)
    with pytest.raises(ConfigError, match=r"outputs\.head\.property"):
        read_outputs({"head": {"energy": torch.zeros(1)}}, {"head": {"level": "system", "property": "e"}}, **sizes)


def test_decomposed_stress_is_put_together() -> None:
    """A symmetric tensor, taken apart with fairchem's basis, comes back; the parts are denormalised."""
    generator = torch.Generator().manual_seed(0)
    stress = torch.randn(4, 3, 3, generator=generator)
    stress = stress + stress.transpose(1, 2)
    irreps = stress.reshape(4, 9) @ cg_change_mat(2).T
    targets = {
        "stress": {"level": "system", "decomposition": {"isotropic": {}, "anisotropic": {}}},
        "isotropic": {"level": "system", "irrep_dim": 0},
        "anisotropic": {"level": "system", "irrep_dim": 2},
    }
    raw = {"isotropic": irreps[:, :1] / 2, "anisotropic": irreps[:, 4:] / 2}
    out = read_outputs(raw, targets, n_atoms=9, n_structures=4, denormalize=lambda name, value: 2 * value)
    torch.testing.assert_close(out["stress"], stress.reshape(4, 9))


# Metrics --------------------------------------------------------------------------------------------------------------


def test_threshold_metric_handles_structures_without_free_atoms() -> None:
    pred = {"energy": torch.tensor([[0.0], [0.0], [0.5]]), "forces": torch.zeros(3, 3)}
    target = {
        "energy": torch.tensor([[0.01], [0.01], [0.0]]),
        "forces": torch.tensor([[0.0, 0, 0], [0.02, 0, 0], [0.1, 0, 0]]),
        "natoms": torch.tensor([2, 0, 1]),
    }
    assert energy_forces_within_threshold(pred, target) == {"metric": pytest.approx(2 / 3), "total": 2.0, "numel": 3}


def test_per_atom_errors_count_fixed_atoms() -> None:
    values = per_atom_mae(
        {"energy": torch.tensor([[1.0]])},
        {"energy": torch.tensor([[5.0]]), "natoms": torch.tensor([1]), "natoms_all": torch.tensor([4])},
        "energy",
    )
    assert values["metric"] == 1.0


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"force": ["mae"]}, r"metrics\.force: .*did you mean 'forces'"),
        ({"forces": ["mea"]}, "unknown metric 'mea'"),
    ],
)
def test_wrong_metrics_are_errors(metrics: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CheckedEvaluator("ocp", metrics, {"energy": {}, "forces": {}})


def test_a_metric_of_two_outputs_needs_both() -> None:
    with pytest.raises(ConfigError, match="needs both energy and forces"):
        CheckedEvaluator("ocp", {"misc": ["energy_forces_within_threshold"]}, {"energy": {}})


def test_the_primary_metric_has_a_sensible_default() -> None:
    both = CheckedEvaluator("ocp", default_metrics({"energy": {}, "forces": {}}), {"energy": {}, "forces": {}})
    assert choose_primary(None, both.labels) == "energy_forces_within_threshold"
    assert choose_primary(None, ["forces_mae"]) == "forces_mae"
    assert choose_primary(None, ["energy_mae"]) == "energy_mae"
    assert choose_primary(None, []) == "loss"
    assert choose_primary("forces_mae", both.labels) == "forces_mae"
    with pytest.raises(ConfigError, match="did you mean 'forces_mae'"):
        choose_primary("force_mae", both.labels)
    assert higher_is_better("energy_forces_within_threshold")
    assert not higher_is_better("energy_mse")


# Settings -------------------------------------------------------------------------------------------------------------


OPTIM = {"lr_initial": 0.1, "max_epochs": 1}


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "outputs": {"energy": None, "forces": {}},
        "optim": {"lr_initial": 0.1, "max_epochs": 1},
        "loss_functions": [{"energy": {"fn": "mae", "coefficient": 1}}],
        **changes,
    }


def test_defaults_are_filled_in() -> None:
    config = settings()
    complete_settings(config, inference_only=False)
    assert config["outputs"]["energy"]["level"] == "system"
    assert config["outputs"]["forces"] == {"level": "atom", "train_on_free_atoms": True, "eval_on_free_atoms": True}
    assert (config["optim"]["num_workers"], config["optim"]["batch_size"]) == (0, 1)
    assert config["task"] == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"lr_initial": "1e-4", "max_epochs": 1}}, "lr_initial: '1e-4' is not a number; YAML reads"),
        ({"optim": {"lr_initial": 0.1}}, "max_epochs: missing"),
        ({"optim": {"lr_initial": 0.1, "max_epochs": 1, "batch_size": 0}}, "batch_size: 0 is below 1"),
        ({"optim": {"lr_initial": 0.1, "max_epochs": 1, "ema_decay": 1.5}}, "ema_decay"),
        ({"optim": {"lr_initial": 0.1, "max_epochs": 1, "checkpoint_every": 0}}, "checkpoint_every"),
        ({"optim": {"lr_initial": -1, "max_epochs": 1}}, r"optim\.lr_initial: -1 is below 0"),
        ({"optim": {"lr_initial": math.nan, "max_epochs": 1}}, r"optim\.lr_initial: nan is not a number"),
        ({"optim": {"lr_initial": 0.1, "max_epochs": 0.5}}, r"optim\.max_epochs: 0.5 is not a whole number"),
        ({"optim": {"lr_initial": 0.1, "max_epochs": None}}, r"optim\.max_epochs: missing"),
        ({"optim": {**OPTIM, "clip_grad_norm": -1}}, r"optim\.clip_grad_norm: -1 is below 0"),
        ({"optim": {**OPTIM, "num_workers": -3}}, r"optim\.num_workers: -3 is below 0"),
        ({"optim": {**OPTIM, "warmup_factor": "1e-2"}}, r"optim\.warmup_factor: '1e-2' is not a number; YAML"),
        (
            {"optim": {**OPTIM, "scheduler_params": {"lambda_type": "cosine", "decay_epochs": [1, "2e0"]}}},
            r"optim\.scheduler_params\.decay_epochs\.1: '2e0' is not a number; YAML",
        ),
        ({"loss_functions": [{"energy": None}]}, r"loss_functions\.energy: None is no loss"),
        ({"loss_functions": ["energy"]}, "loss_functions: 'energy' is no"),
        ({"loss_functions": {"energy": "mae"}}, r"loss_functions\.energy: 'mae' is no loss"),
        (
            {"loss_functions": [{"energy": {"fn": "mae", "coefficient": "1e2"}}]},
            r"loss_functions\.energy\.coefficient: '1e2' is not a number; YAML",
        ),
        (
            {"loss_functions": [{"energy": {"fn": "mae", "coefficient": -1}}]},
            r"loss_functions\.energy\.coefficient: -1 is below 0",
        ),
        ({"outputs": {}}, "outputs: missing"),
        ({"outputs": {"dipole": {}}}, r"outputs\.dipole\.level: missing"),
        ({"outputs": {"energy": {"level": "sytem"}}}, "did you mean 'system'"),
        ({"loss_functions": []}, "loss_functions: missing"),
        ({"task": {"prediction_dtype": "float23"}}, r"task\.prediction_dtype.*float32"),
    ],
)
def test_settings_that_cannot_work_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        complete_settings(settings(**changes), inference_only=False)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"force": {"fn": "mae", "coefficient": 1}}, "did you mean 'forces'"),
        ({"forces": {"fn": "l2mea", "coefficient": 1}}, "unknown loss 'l2mea'.*l2mae"),
        ({"forces": {"fn": "mae"}}, "'coefficient' is missing"),
        ({"forces": {"fn": "mae", "coefficient": 1, "reduction": "max"}}, "reduction"),
    ],
)
def test_wrong_losses_are_named(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_terms([entry], {"energy": {}, "forces": {}})


# Progress -------------------------------------------------------------------------------------------------------------

VALUES = {"loss": 0.25, "lr": 1e-4, "epoch": 0.5, "step": 10, "samples_per_second": 12.34, "forces_mae": 0.125}


def test_plain_lines_elsewhere(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        caplog.at_level(logging.INFO),
        Progress(total_steps=20, first_step=9, visible=True, terminal=False) as progress,
    ):
        progress.step(4)
        progress.report(VALUES)
    assert caplog.messages == [format_line(VALUES)]
    assert format_line(VALUES).startswith(
        "epoch: 0.5000, step: 10, lr: 1.000e-04, loss: 2.500e-01, samples_per_second: 12.3"
    )
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total_steps=20, first_step=9, visible=True, terminal=True) as progress:
        progress.step(4)
        progress.report(VALUES)
        assert progress.rate() > 0
    shown = capsys.readouterr().err
    assert "10/20" in shown
    assert "loss=2.500e-01" in shown
    assert "samples/s=12.3" in shown


def test_other_processes_show_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Progress(total_steps=2, first_step=0, visible=False, terminal=True) as progress:
        progress.report(VALUES)
    assert caplog.messages == []
