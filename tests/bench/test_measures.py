"""What is measured: passes, comparisons, searches, dynamics, training steps, on models that take milliseconds."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_cases import passes

from escaip_fairchem.bench import models, second
from escaip_fairchem.bench import passes as passes_module
from escaip_fairchem.bench.cases import (
    FAILED,
    NOT_AVAILABLE,
    CompareCase,
    DynamicsCase,
    GrowthCase,
    NeighborCase,
    Outcome,
    TrainerCase,
    case_from,
    outcome_from,
)
from escaip_fairchem.bench.dynamics import measure_dynamics
from escaip_fairchem.bench.efficiency import measure_efficiency
from escaip_fairchem.bench.floors import escaip_flops_per_atom
from escaip_fairchem.bench.frames import join, load_pool, make_bulk
from escaip_fairchem.bench.growth import measure_growth
from escaip_fairchem.bench.libraries import PACKAGES, library_search
from escaip_fairchem.bench.models import BASELINES, ESCAIP, NotAvailableError, Variant, parse_name
from escaip_fairchem.bench.options import Options
from escaip_fairchem.bench.passes import Deviation, Pass, measure_comparison, measure_passes, time_in_turn
from escaip_fairchem.bench.searches import measure_search
from escaip_fairchem.bench.timing import Timer
from escaip_fairchem.bench.trainer import measure_trainer
from escaip_fairchem.bench.worker import brief, measure
from escaip_fairchem.errors import ConfigError
from escaip_fairchem.nn import find_neighbors
from escaip_fairchem.nn.config import BackboneConfig
from escaip_fairchem.testing.predictors import Predictor


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("escaip-small", 83_299_466), ("escaip-medium", 146_207_624), ("escaip-large", 311_842_954)],
)
def test_the_papers_sizes_have_the_papers_parameters(name: str, parameters: int):
    with torch.device("meta"):
        predictor = Predictor(BackboneConfig(**ESCAIP[name]), "direct")
    assert sum(parameter.numel() for parameter in predictor.parameters()) == parameters


@pytest.mark.parametrize(("name", "parameters"), [("painn", 20_073_481), ("schnet", 9_088_513)])
def test_baselines_are_fairchems_own_and_predict_energies_and_forces(name: str, parameters: int):
    outcome = measure_passes(passes(model=name, variant="published", batch_size=1, batches=1))
    assert outcome.parameters == parameters
    assert outcome.flops > 2 * parameters  # at least once per atom
    assert len(outcome.seconds) == 1


def test_frozen_models_keep_nothing_for_a_backward_pass_and_cannot_be_trained():
    kept = []
    for variant in ("published", "frozen"):
        contender = models.build(parse_name(f"schnet:{variant}"), seed=0, device="cpu")
        kept.append(any(parameter.requires_grad for parameter in contender.module.parameters()))
        assert Pass(contender, "inference").on(models_batch())()["forces"].abs().sum() > 0
    assert kept == [True, False]
    outcome = measure(passes(model="schnet", variant="frozen", mode="training", batch_size=1, batches=1))
    assert outcome.status == NOT_AVAILABLE
    assert "frozen" in outcome.reason


def test_every_baseline_has_settings():
    from escaip_fairchem.plugin import baselines

    assert set(baselines.BASELINES) == set(BASELINES)
    with pytest.raises(ConfigError, match="did you mean 'schnet'"):
        baselines.build_baseline("shnet")


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_passes_are_timed_over_batches_drawn_by_the_seed(mode: str):
    first, again = (measure_passes(passes(mode=mode)) for _ in range(2))
    assert len(first.seconds) == len(first.peak_bytes) == 3
    assert all(0 < seconds < 10 for seconds in first.seconds)
    assert first.atoms == again.atoms
    assert first.flops == escaip_flops_per_atom("escaip-tiny", mode)
    assert first.weight_bytes == 4 * first.parameters
    assert outcome_from(first.as_dict()) == first


def test_a_spent_budget_ends_the_repetitions():
    assert len(measure_passes(passes(budget=0.0)).seconds) == 1


def test_a_training_step_changes_the_weights_and_a_prediction_does_not():
    contender = models.build(parse_name("escaip-tiny:fast"), seed=0, device="cpu")
    batch = models_batch()
    before = [parameter.clone() for parameter in contender.module.parameters()]
    Pass(contender, "inference").on(batch)()
    assert all(torch.equal(a, b) for a, b in zip(before, contender.module.parameters(), strict=True))
    Pass(contender, "training").on(batch)()
    assert not all(torch.equal(a, b) for a, b in zip(before, contender.module.parameters(), strict=True))


def models_batch():
    from escaip_fairchem.bench.frames import generate_frames, join

    return join(generate_frames(1, seed=0))


def test_deviations_are_in_units_of_the_references_rms():
    reference = torch.tensor([3.0, -3.0, 3.0, -3.0])
    deviation = Deviation.between(reference + torch.tensor([0.3, 0.0, 0.0, 0.0]), reference)
    assert deviation.largest == pytest.approx(0.1)
    assert deviation.rms == pytest.approx(0.05)


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_compared_models_have_the_same_weights(mode: str):
    names = ["escaip-tiny:plain", "escaip-tiny:fast", "escaip-tiny:bf16"]
    outcome = measure_comparison(CompareCase(names=names, mode=mode, repeats=2))
    assert outcome.extra["reasons"] == {}
    assert all(len(outcome.extra["seconds"][name]) == 2 for name in names)
    deviations = outcome.extra["deviations"]
    assert deviations["escaip-tiny:plain"]["forces"]["largest"] == 0.0
    assert deviations["escaip-tiny:fast"]["forces"]["largest"] < 1e-4
    assert 1e-4 < deviations["escaip-tiny:bf16"]["forces"]["rms"] < 0.2


def test_structures_one_by_one_take_a_pass_each(monkeypatch: pytest.MonkeyPatch):
    sizes = []
    original = Pass.on

    def noted(self: Any, batch: Any) -> Any:
        sizes.append(batch.systems.num_structures)
        return original(self, batch)

    monkeypatch.setattr(Pass, "on", noted)
    monkeypatch.setattr("escaip_fairchem.bench.passes.ESCAIP", {})  # as if the model were another's
    for singly, expected in ((False, 3), (True, 1)):
        sizes.clear()
        outcome = measure(CompareCase(names=["escaip-tiny:fast"], repeats=1, singly=singly))
        assert outcome.is_measured
        assert len(outcome.extra["seconds"]["escaip-tiny:fast"]) == 1
        assert sizes[2:] == [expected] * (3 if singly else 1)  # after the outputs and the first pass
    monkeypatch.undo()
    monkeypatch.setattr(Pass, "on", noted)
    sizes.clear()
    assert measure(CompareCase(names=["escaip-tiny:fast"], repeats=1, singly=True)).is_measured
    assert sizes[2:] == [3]  # this package's models need not be spared


def test_compared_models_are_timed_equally_often_in_rounds():
    calls: list[str] = []
    slow = CompareCase(names=["a", "b"], repeats=5, budget=0.25)

    def passing(name: str, seconds: float) -> Any:
        return lambda: (calls.append(name), time.sleep(seconds))

    functions = {"a": passing("a", 0.1), "b": passing("b", 0.0)}
    seconds = time_in_turn(functions, slow)
    assert calls == ["a", "b"] * 3  # then the first has used its budget
    assert [len(seconds[name]) for name in "ab"] == [3, 3]
    calls.clear()
    seconds = time_in_turn(functions, dataclasses.replace(slow, repeats=1, warm_rounds=2))
    assert calls == ["a", "b"] * 3
    assert [len(seconds[name]) for name in "ab"] == [1, 1]


def test_what_a_model_predicts_for_one_structure_is_gone_before_the_next():
    alive: list[weakref.ref[torch.Tensor]] = []

    class Run:
        def on(self, batch: Any) -> Any:
            def predict() -> dict[str, torch.Tensor]:
                assert all(reference() is None for reference in alive)
                energy = torch.zeros(1)
                alive.append(weakref.ref(energy))
                return {"energy": energy}

            return predict

    case = CompareCase(names=["painn"], singly=True)
    passes_module._one_by_one(Run(), load_pool(None, seed=0), case)()  # type: ignore[arg-type]
    assert len(alive) == 3


def test_a_setting_of_the_future_is_not_available_rather_than_a_crash(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(models.VARIANTS, "future", Variant(settings={"no_such_setting": True}))
    monkeypatch.setitem(models.VARIANTS, "value", Variant(settings={"execution": "no such path"}))
    monkeypatch.setitem(models.VARIANTS, "off", Variant(settings={"no_such_setting": False}))
    outcome = measure(passes(variant="future"))
    assert outcome.status == NOT_AVAILABLE
    assert "no_such_setting" in outcome.reason
    assert "no such path" in measure(passes(variant="value")).reason
    assert measure(passes(variant="off")).is_measured  # what does not exist need not be switched off
    names = ["escaip-tiny:plain", "escaip-tiny:future"]
    comparison = measure(CompareCase(names=names, repeats=1))
    assert comparison.is_measured
    assert "no_such_setting" in comparison.extra["reasons"]["escaip-tiny:future"]


def test_what_goes_wrong_is_an_outcome_with_a_reason(tmp_path: Path):
    outcome = measure(passes(frames=str(tmp_path)))
    assert outcome.status == FAILED
    assert "oc20_3frames.extxyz" in outcome.reason
    assert outcome.remark.startswith("failed: DataError")


def test_a_lack_of_memory_is_said_in_the_same_words_everywhere():
    assert brief(MemoryError()) == brief(torch.OutOfMemoryError("CUDA out of memory. Tried to …")) == "out of memory"
    assert brief(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …")) == "out of memory"
    assert brief(ValueError("first\nsecond")) == "ValueError: first"
    assert brief(ValueError()) == "ValueError: ValueError"


@pytest.mark.parametrize("text", ["escaip-tiny", "painn", "fairchem2-escaip"])
def test_names_have_a_usual_variant(text: str):
    assert str(parse_name(text)) == {"escaip-tiny": "escaip-tiny:fast"}.get(text, f"{text}:published")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("escaip-smal", "did you mean 'escaip-small'"),
        ("painn:plain", "unknown variant"),
        ("escaip-tiny:fats", "'fast'"),
    ],
)
def test_unknown_names_are_errors(text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        parse_name(text)


@pytest.mark.parametrize("method", ["escaip", "escaip-skin", "fairchem"])
def test_searches_are_timed_and_their_memory_watched(method: str):
    case = NeighborCase(method=method, atoms=[60, 30], repeats=2)
    outcome = measure_search(case)
    assert len(outcome.seconds) == len(outcome.peak_bytes) == 2
    assert outcome.atoms == [90]
    assert outcome.bytes == 90 * 20 * 33
    assert case_from(case.as_dict()) == case


@pytest.mark.parametrize("method", sorted(PACKAGES))
def test_libraries_find_the_same_neighbors_or_are_said_to_be_missing(method: str):
    systems = join([make_bulk(70, seed=1)]).systems
    limits = {"cutoff": 7.0, "max_neighbors": 20}
    try:
        found = library_search(method, systems, **limits)()
    except NotAvailableError as error:
        assert PACKAGES[method] in str(error)  # noqa: PT017 -- available in some environments only
        return
    expected = find_neighbors(systems.positions_N3, systems.cell_B33, systems.pbc_B3, systems.structure_N, **limits)
    assert torch.equal(found.sender_NK, expected.sender_NK)
    assert torch.equal(found.shift_NK3, expected.shift_NK3)


@pytest.mark.parametrize("driver", ["bare", "ase"])
def test_dynamics_are_split_into_parts_that_fit_into_the_whole(driver: str):
    case = DynamicsCase(model="escaip-tiny", variant="fast", driver=driver, atoms=40, steps=3)
    outcome = measure_dynamics(case)
    assert len(outcome.seconds) == len(outcome.extra["search"]) == len(outcome.extra["model"]) == 3
    for whole, search, model in zip(outcome.seconds, outcome.extra["search"], outcome.extra["model"], strict=True):
        assert search > 0
        assert model > 0
        assert search + model < whole


def test_growing_systems_are_timed_beside_the_smallest():
    case = GrowthCase(model="escaip-tiny", variant="fast", atoms=[40, 80, 160], repeats=2)
    outcome = measure_growth(case)
    assert {atoms: len(values) for atoms, values in outcome.extra["relative"].items()} == {"80": 2, "160": 2}
    assert {atoms: len(values) for atoms, values in outcome.extra["seconds"].items()} == {"40": 4, "80": 2, "160": 2}
    assert all(0.05 < value < 20 for values in outcome.extra["relative"].values() for value in values)


def test_a_machine_that_slows_down_does_not_make_large_systems_slow(monkeypatch):
    """Here every atom takes the same time, and all of it a thousandth more with every atom computed."""
    sizes: list[int] = []
    slowness = 1.0

    def measure(_: Timer, function: Any) -> float:
        nonlocal slowness
        atoms = function()
        sizes.append(atoms)
        begin, slowness = slowness, slowness * 1.001**atoms
        return 1e-3 * atoms * 0.5 * (begin + slowness)

    monkeypatch.setattr(Timer, "measure", measure)
    monkeypatch.setattr(Pass, "on", lambda _, batch: lambda: batch.atoms)
    outcome = measure_growth(GrowthCase(model="escaip-tiny", variant="fast", atoms=[10, 40, 160], repeats=1))
    assert sizes == [10] * 10 + [40] + [10] * 10 + [160] + [10] * 5
    assert slowness > 1.3
    for values in outcome.extra["relative"].values():
        assert values == pytest.approx([1.0], abs=0.02)


def test_the_calculator_has_no_other_precision():
    with pytest.raises(NotAvailableError, match="float32"):
        measure_dynamics(DynamicsCase(model="escaip-tiny", variant="bf16", driver="ase", atoms=40))


def test_the_trainer_is_timed_inside_and_outside_the_model():
    outcome = measure_trainer(TrainerCase(model="escaip-tiny", variant="fast", batch_size=2, steps=3))
    assert len(outcome.seconds) == len(outcome.extra["inside"]) == 3
    assert all(inside < whole for inside, whole in zip(outcome.extra["inside"], outcome.seconds, strict=True))
    assert outcome.extra["outside"] == pytest.approx(1 - sum(outcome.extra["inside"]) / sum(outcome.seconds))
    assert 20 < outcome.atoms[0] < 200


def test_second_fairchem_answers_what_is_missing(tmp_path: Path):
    # This environment has fairchem v1, whose models do not include EScAIP.
    answer = tmp_path / "answer.json"
    request = '{"device": "cpu", "seed": 0, "budget": 1, "batches": []}'
    subprocess.run([sys.executable, str(second.SCRIPT), str(answer)], input=request, text=True, check=True)
    assert "cannot be imported" in answer.read_text()


def test_cases_are_plain_data():
    case = passes(seed=7, frames="somewhere")
    assert case_from(case.as_dict()) == case
    assert dataclasses.replace(case, seed=8) != case
    assert math.isnan(outcome_from(measure(passes(variant="plain", batches=1)).as_dict()).flops) is False


def test_on_the_cpu_all_models_take_a_size_before_any_takes_the_next():
    taken: list[tuple[str, str, int]] = []

    class Runner:
        def one(self, case: Any) -> Outcome:
            taken.append((case.model, case.mode, case.batch_size))
            status = NOT_AVAILABLE if case.model == "schnet" else "measured"
            return Outcome(case=case, status=status, reason="gone", seconds=[1.0])

        def drop(self, case: Any, reason: str) -> Outcome:
            return Outcome(case=case, status="dropped", reason=reason)

    class Session:
        options = Options(models=["escaip-tiny:fast", "schnet"], batch_sizes=[1, 100])
        runner = Runner()

    outcomes = measure_efficiency(Session())
    assert taken == [(model, mode, 1) for model in ("escaip-tiny", "schnet") for mode in ("inference", "training")]
    listed = [(outcome.case.model, outcome.case.mode, outcome.case.batch_size) for outcome in outcomes]
    assert listed == sorted(listed, key=lambda row: (row[0], row[1], row[2]))
    assert [outcome.status for outcome in outcomes] == [*["measured", "dropped"] * 2, NOT_AVAILABLE, NOT_AVAILABLE]
