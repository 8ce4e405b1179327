"""What runs are going to be, in a table: the output of ``--dry-run``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.plugin.info import ModelSizes
from escaip_fairchem.plugin.launch.overrides import step_into
from escaip_fairchem.plugin.launch.sweep_names import short_keys

NUMBERS = ("parameters", "GPUs", "structures per step", "epochs", "hours", "GPU-hours at most")
"""Headings of the columns that every table ends with."""
_WIDEST = 40  # characters of a setting


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run that has not been started.

    Attributes:
        name: The run's name.
        changes: What a sweep sets for it, by dotted keys.
        config_file: The file of its configuration.
        config: The whole configuration, the changes included.
        processes: On each node, one for each of its GPUs.
        nodes: Number of nodes.
        hours: Time limit of the job.
    """

    name: str
    changes: Mapping[str, Any]
    config_file: Path | str
    config: Mapping[str, Any]
    processes: int
    nodes: int
    hours: float

    @property
    def gpus(self) -> int:
        """Number of GPUs: none with ``--cpu``."""
        return 0 if self.config.get("cpu") else self.nodes * self.processes

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of a job that is stopped by its time limit; each time that it is started again adds as many."""
        return self.gpus * self.hours

    @property
    def structures(self) -> int | None:
        """Structures in a step, of all processes; None where the configuration does not say.

        With graph parallelism, ``gp_gpus`` processes share each batch.
        """
        batch = self.config["optim"].get("batch_size")
        if not isinstance(batch, int):
            return None
        return batch * (self.nodes * self.processes // (self.config.get("gp_gpus") or 1))


def sweep_table(runs: Sequence[PlannedRun]) -> str:
    """Write a line for every run, and the sums.

    Args:
        runs: At least one run.

    Returns:
        Lines without an end-of-line at the end. The columns: name, configuration and settings where they differ between
        runs, and :data:`NUMBERS`.

    Raises:
        ConfigError: No model can be made of a configuration; the message names the run.
    """
    columns = {"run": [run.name for run in runs], **_differences(runs)}
    texts = len(columns)
    sizes = ModelSizes()
    numbers = [_numbers(run, _parameters(run, sizes)) for run in runs]
    columns.update(zip(NUMBERS, map(list, zip(*numbers, strict=True)), strict=True))
    return "\n".join([*_align(columns, texts), "", _sums(runs)])


def _differences(runs: Sequence[PlannedRun]) -> dict[str, list[str]]:
    """Columns of what is not the same in all runs."""
    columns = {}
    files = [Path(run.config_file).absolute() for run in runs]
    if len(set(files)) > 1:
        common = os.path.commonpath([file.parent for file in files])
        columns["config"] = [os.path.relpath(file, common) for file in files]
    keys = dict.fromkeys(key for run in runs for key in run.changes)
    values = {key: [_setting(run, key) for run in runs] for key in keys}
    differing = [key for key in keys if len(set(values[key])) > 1]
    labels = short_keys(differing)
    taken = {"run", "config", *NUMBERS}
    columns.update({key if labels[key] in taken else labels[key]: values[key] for key in differing})
    return columns


def _setting(run: PlannedRun, key: str) -> str:
    """A setting as the sweep or else the configuration has it."""
    try:
        value = run.changes[key] if key in run.changes else _look_up(run.config, key)
    except (ConfigError, KeyError):
        return "-"  # not in this run's configuration
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _look_up(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node[part] if isinstance(node, dict) else step_into(node, part, key)
    return node


def _parameters(run: PlannedRun, sizes: ModelSizes) -> int:
    try:
        return sizes.of(run.config["model"], Path(run.config_file))
    except ConfigError as error:
        raise ConfigError(f"run {run.name}: {error}") from error


def _numbers(run: PlannedRun, parameters: int) -> tuple[str, ...]:
    structures = "-" if run.structures is None else f"{run.structures:,}"
    gpus = f"{run.gpus} ({run.nodes} × {run.processes})" if run.gpus else "0"
    epochs = run.config["optim"].get("max_epochs", "-")
    return (f"{parameters:,}", gpus, structures, str(epochs), f"{run.hours:g}", f"{run.gpu_hours:,.10g}")


def _align(columns: Mapping[str, Sequence[str]], texts: int) -> Iterable[str]:
    """Lines of a table, the first ``texts`` columns to the left and the others to the right."""
    table = [[heading, *cells] for heading, cells in columns.items()]
    widths = [max(map(len, column)) for column in table]
    for row in zip(*table, strict=True):
        cells = [
            cell.ljust(width) if number < texts else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _sums(runs: Sequence[PlannedRun]) -> str:
    gpus, hours = sum(run.gpus for run in runs), sum(run.gpu_hours for run in runs)
    what = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    return f"{what}: {gpus:,} GPUs if all run at once, {hours:,.10g} GPU-hours at most"
