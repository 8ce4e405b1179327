"""Loggers: a null one, and what is chosen by default."""

from __future__ import annotations

from pathlib import Path

import pytest
from fairchem.core.common.registry import registry

import escaip_fairchem  # noqa: F401
from escaip_fairchem.plugin.loggers import NullLogger, logger_or_null
from escaip_fairchem.plugin.trainer.setup import _logger_settings


def test_the_null_logger_is_registered_and_writes_nothing(tmp_path: Path) -> None:
    logger = registry.get_logger_class("null")({"cmd": {"logs_dir": str(tmp_path)}})
    assert isinstance(logger, NullLogger)
    logger.log({"loss": 1.0}, step=1, split="train")
    logger.log_summary({"x": 1})
    logger.log_plots([])
    logger.log_artifact("a", "b", "c")
    logger.watch(None)
    logger.mark_preempting()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [None, False, "none", "null"])
def test_no_logger_means_the_null_logger(value: object) -> None:
    assert _logger_settings({"logger": value}) == "null"


def test_tensorboard_is_the_default_and_others_are_kept() -> None:
    assert _logger_settings({}) == "tensorboard"
    assert _logger_settings({"logger": {"name": "wandb"}}) == {"name": "wandb"}


@pytest.mark.parametrize("setting", [None, False, "none", "None", "null", ""])
def test_no_logger_can_be_said_in_many_ways(setting):
    assert logger_or_null(setting) == _logger_settings({"logger": setting}) == "null"


def test_loggers_are_kept():
    assert _logger_settings({}) == logger_or_null("tensorboard") == "tensorboard"
    assert logger_or_null({"name": "wandb"}) == {"name": "wandb"}
