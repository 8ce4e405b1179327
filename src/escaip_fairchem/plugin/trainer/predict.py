"""Predictions as files: in the precision and order that was asked for, nothing left out unasked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from escaip_fairchem.errors import NonFiniteError
from escaip_fairchem.plugin.checkpoints import atomic_file
from escaip_fairchem.plugin.samples import SampleNames
from escaip_fairchem.plugin.trainer.finite import unfinished_structures

Rows = list[Any]


def chunk_key(target: str) -> str:
    """Key under which the atom counts of an atom-level output are kept; fairchem has a short one for forces."""
    return "chunk_idx" if target == "forces" else f"{target}_chunk_idx"


def require_finite_predictions(
    predictions: Mapping[str, Tensor], batch: Any, names: SampleNames, outputs: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse predictions that are NaN or infinite.

    Args:
        predictions: Per structure (B, …) or per atom (N, …).
        batch: The batch they belong to.
        names: Its ids.
        outputs: Settings of the outputs, with their ``level``.

    Raises:
        NonFiniteError: Naming the outputs and the structures.
    """
    for target, values in predictions.items():
        if values.isfinite().all():
            continue
        rows = structure_rows(values, batch, names.count, outputs[target]["level"])
        bad_B = unfinished_structures(values, rows, names.count)
        raise NonFiniteError(
            f"the prediction {target!r} is not finite for {names.listed(bad_B.nonzero().flatten().tolist())}. Check "
            "these structures for overlapping atoms, and compute in a wider type if optim.amp_dtype is fp16."
        )


def structure_rows(values: Tensor, batch: Any, n_structures: int, level: str) -> Tensor:
    """Structure of every row of an output of a declared level, int64."""
    rows: Tensor = batch.batch if level == "atom" else torch.arange(n_structures, device=values.device)
    return rows


class PredictionSettings:
    """How predictions are written: ``task.prediction_dtype`` and ``task.predict_free_atoms_only``."""

    def __init__(self, task: Mapping[str, Any], outputs: Mapping[str, Mapping[str, Any]]) -> None:
        """Read the settings; an output's own ``prediction_dtype`` goes before the task's, float32 is the default."""
        self.outputs = outputs
        self.free_atoms_only = bool(task.get("predict_free_atoms_only", False))
        default = task.get("prediction_dtype", "float32")
        self.dtypes = {name: np.dtype(values.get("prediction_dtype", default)) for name, values in outputs.items()}

    def split(self, predictions: Mapping[str, Tensor], batch: Any) -> dict[str, Rows]:
        """Cut the predictions of a batch into structures.

        Args:
            predictions: By output: (N, width) or (B, width) by its level.
            batch: The batch.

        Returns:
            By output one array per structure, and for atom-level outputs their atom counts under `chunk_key`.
        """
        natoms = batch.natoms.tolist()
        free = (batch.fixed == 0).cpu().numpy() if self.free_atoms_only else None
        bounds = np.cumsum(natoms)[:-1]
        rows: dict[str, Rows] = {}
        for target, values in predictions.items():
            array = values.detach().cpu().numpy().astype(self.dtypes[target])
            if self.outputs[target]["level"] != "atom":
                rows[target] = list(array)
                continue
            pieces = np.split(array, bounds)
            if free is not None:
                pieces = [piece[mask] for piece, mask in zip(pieces, np.split(free, bounds), strict=True)]
            rows[target] = pieces
            rows[chunk_key(target)] = [len(piece) for piece in pieces]
        return rows


class Predictions:
    """What one process predicted, structure by structure, in the order of its loader."""

    def __init__(self) -> None:
        self.rows: defaultdict[str, Rows] = defaultdict(list)

    def add(self, rows: Mapping[str, Rows], names: SampleNames) -> None:
        """Append a batch."""
        for key, values in rows.items():
            self.rows[key].extend(values)
        self.rows["ids"].extend(names.identifier(row) for row in range(names.count))


def merge_processes(
    parts: Sequence[Mapping[str, Rows]], places: Sequence[Sequence[int] | None], keys: Sequence[str]
) -> dict[str, Rows]:
    """Join what several processes predicted, in the order of the data set.

    Samplers of several processes repeat samples to fill the last batches. Such a repetition has the same place in the
    data set and is dropped; samples that only share an id are kept.

    Args:
        parts: Predictions of every process.
        places: Places of their structures in the data set, or None where unknown; then nothing is reordered or dropped.
        keys: What to join.
    """
    joined = {key: [row for part in parts for row in part.get(key, ())] for key in keys}  # some had no batch
    if any(own is None for own in places):
        return joined
    flat = [place for own in places for place in own or ()]
    _, first = np.unique(flat, return_index=True)
    return {key: [values[row] for row in first] for key, values in joined.items()}


def as_arrays(rows: Mapping[str, Rows]) -> dict[str, npt.NDArray[Any]]:
    """Stack structures into arrays: ``np.split(forces, chunk_idx)`` gives them back, structure by structure."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for key, values in rows.items():
        if key.endswith("chunk_idx"):
            arrays[key] = np.cumsum(np.asarray(values, dtype=np.int64))[:-1]
        elif chunk_key(key) in rows:
            arrays[key] = np.concatenate(values)
        else:
            arrays[key] = np.asarray(values)
    return arrays


def write_arrays(arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> None:
    """Write an ``.npz`` file that is complete or absent."""
    with atomic_file(path) as file:
        np.savez_compressed(file, **dict(arrays))
