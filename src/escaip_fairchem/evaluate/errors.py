"""Errors of a checkpoint on named data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.evaluate.error_tables import Preset, check_names, errors_table
from escaip_fairchem.evaluate.result_table import ResultTable
from escaip_fairchem.plugin.evaluation_sets import Reading, SetSource, open_set
from escaip_fairchem.plugin.inference import Inference
from escaip_fairchem.plugin.set_errors import measurable, measure


def evaluate_sets(
    inference: Inference, sources: Sequence[SetSource], reading: Reading, *, preset: Preset | None = None
) -> ResultTable:
    """Evaluate a model on data sets.

    Args:
        inference: The model.
        sources: The data sets.
        reading: How to read them; labels are those of the model's outputs, and a benchmark's table groups by its key
            unless another is given.
        preset: A benchmark's table, or None.

    Raises:
        ConfigError: The names do not fit the table, or the model has no output that there are metrics for.
        DataError: A set is missing, empty, or lacks labels.
    """
    check_names([source.name for source in sources], preset)
    labels = measurable(inference)
    if not labels:
        raise ConfigError(
            f"{inference.checkpoint}: outputs: the model predicts none of energy, forces and stress, which there are "
            f"metrics for (it predicts {', '.join(inference.outputs) or 'nothing'})"
        )
    if preset is not None:
        inference.require_outputs(*preset.outputs)
        preset = preset.grouped_by(reading.group_by)
    group_by = reading.group_by if preset is None else preset.group_by
    asked = replace(reading, labels=labels, group_by=group_by)
    sets = [open_set(source, inference, asked) for source in sources]  # what is wrong is told before hours of work
    found = {opened.source.name: measure(inference, opened) for opened in sets}
    return errors_table(found, preset=preset, group_by=group_by)
