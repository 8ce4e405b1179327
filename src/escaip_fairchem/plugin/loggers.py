"""A logger that writes nothing, for runs whose console output is enough."""

from __future__ import annotations

from typing import Any

from fairchem.core.common.logger import Logger
from fairchem.core.common.registry import registry

_NO_LOGGER = (None, False, "none", "None", "null", "")


def logger_or_null(logger: Any) -> Any:
    """A setting of ``logger:``, or ``null``, this module's logger, for every way to say that none is wanted."""
    return "null" if logger in _NO_LOGGER else logger


@registry.register_logger("null")
class NullLogger(Logger):
    """fairchem's logger interface without any effect: ``logger: null`` in a configuration."""

    def watch(self, model: Any, log_freq: int = 1000) -> None:
        """Ignore the model."""

    def log(self, update_dict: dict[str, Any], step: int, split: str = "") -> None:
        """Ignore the values."""

    def log_plots(self, plots: Any) -> None:
        """Ignore the plots."""

    def mark_preempting(self) -> None:
        """Have nobody to tell."""

    def log_summary(self, summary_dict: dict[str, Any]) -> None:
        """Ignore the summary."""

    def log_artifact(self, name: str, type: str, file_location: str) -> None:
        """Ignore the file."""
