"""fp16's loss scaling: steps that it skips change nothing, and it does not skip them forever."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_cases
from trainer_cases import TinyModel, build, config, rattled_slabs, write_lmdb

import escaip_fairchem  # noqa: F401
from escaip_fairchem.errors import NonFiniteError
from escaip_fairchem.plugin.trainer.finite import SMALLEST_LOSS_SCALE


class SteepModel(TinyModel):
    """Predicts finite numbers with a gradient that is NaN."""

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        result = super().forward(data)
        return {**result, "energy": result["energy"] + (result["energy"] * 0).abs().sqrt()}


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(trainer_cases, "SteepModel", SteepModel, raising=False)
    data = write_lmdb(tmp_path / "train.lmdb", rattled_slabs(4, 0))
    settings = config(data, model__name="trainer_cases.SteepModel", optimizer__amp_dtype="fp16")
    return build(settings, tmp_path, optimizer={**settings["optimizer"], "max_epochs": 40})


def test_gradients_that_stay_nan_stop_the_run(trainer: Any) -> None:
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    with pytest.raises(NonFiniteError, match=r"step 28: the gradient stays .*energy\.weight.*fp16.*'cu0'.*amp_dtype"):
        trainer.train(disable_eval_tqdm=True)
    assert trainer.step == 27 == math.log2(2**16 / SMALLEST_LOSS_SCALE) + 1
    assert all(torch.equal(now, old) for now, old in zip(trainer.model.parameters(), before, strict=True))


def test_a_skipped_step_moves_neither_the_schedule_nor_the_average(trainer: Any) -> None:
    batch = next(iter(trainer.train_loader))
    rate, average = trainer.scheduler.get_lr(), [value.clone() for value in trainer.ema.shadow_params]
    for value, steps in ((math.inf, 0), (1e-4, 1)):
        loss = trainer._forward(batch)["forces"].sum() * value
        trainer.compute_gradients(loss)
        with torch.no_grad():  # what the average would take over
            next(trainer.model.parameters()).add_(1.0)
        trainer.update_weights()
        assert trainer.scheduler.scheduler.last_epoch == steps
        assert (trainer.scheduler.get_lr() == rate) == (steps == 0)
        assert torch.equal(trainer.ema.shadow_params[0], average[0]) == (steps == 0)
