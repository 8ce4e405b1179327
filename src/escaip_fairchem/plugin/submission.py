"""The file that the leaderboards of OC20 and OC22 take for S2EF.

Its layout is that of fairchem's ``scripts/make_submission_file.py``, which puts the predictions of every split, as
``mode: predict`` writes them, under keys that begin with the split: ``id_ids``, ``id_energy``, ``id_forces``,
``id_chunk_idx``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escaip_fairchem.errors import ConfigError, DataError, nearest
from escaip_fairchem.plugin.evaluation_sets import (
    SPLITS,
    EvaluationSet,
    Reading,
    SetSource,
    load_set,
    open_set,
    require_different_names,
)
from escaip_fairchem.plugin.inference import Inference
from escaip_fairchem.plugin.trainer.predict import as_arrays, write_arrays

KEYS = ("ids", "energy", "forces", "chunk_idx")


def check_splits(names: Sequence[str]) -> None:
    """Refuse anything but the test sets of one benchmark, each once.

    Raises:
        ConfigError: Names the set that is too much or missing.
    """
    require_different_names(names)
    benchmark = "OC22" if "ood" in names else "OC20"
    wanted = SPLITS[benchmark]
    for name in names:
        if name not in wanted:
            raise ConfigError(f"data set {name!r}: {benchmark} has no such test set{nearest(name, wanted)}")
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ConfigError(
            f"data set {missing[0]!r}: missing, a submission for {benchmark} needs {', '.join(wanted)}; add "
            f"{missing[0]}=SRC"
        )


def write_submission(
    inference: Inference, sources: Sequence[SetSource], reading: Reading, path: Path, *, dtype: str
) -> dict[str, tuple[int, int]]:
    """Predict all test sets of a benchmark, and write the file, which is complete or absent.

    Args:
        inference: A model of energies and forces.
        sources: The test sets; labels are not needed.
        reading: How to read them.
        path: File to write, ``.npz``.
        dtype: Of energies and forces: ``float16`` or ``float32``.

    Returns:
        By set the numbers of structures and of free atoms.

    Raises:
        ConfigError: The sets, the name of the file or the model do not fit.
        DataError: A set is missing or empty, or an id occurs twice in it.
        NonFiniteError: A prediction is not finite.
    """
    check_splits([source.name for source in sources])
    if path.suffix != ".npz":
        raise ConfigError(f"--out {path}: the leaderboards take .npz files; name it {path.name}.npz")
    inference.require_outputs("energy", "forces")
    sets = [open_set(source, inference, replace(reading, labels=())) for source in sources]
    arrays: dict[str, NDArray[Any]] = {}
    counts = {}
    for opened in sets:
        found = _predict(inference, opened, dtype)
        arrays.update({f"{opened.source.name}_{key}": found[key] for key in KEYS})
        counts[opened.source.name] = (len(found["ids"]), len(found["forces"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(arrays, path)
    return counts


def _predict(inference: Inference, dataset: EvaluationSet, dtype: str) -> dict[str, NDArray[Any]]:
    trainer = inference.trainer
    trainer.config["task"].update(predict_free_atoms_only=True, prediction_dtype=dtype)
    for settings in trainer.config["outputs"].values():
        settings.pop("prediction_dtype", None)
    arrays = as_arrays(trainer.predict(load_set(dataset, inference)))
    ids, counts = np.unique(arrays["ids"], return_counts=True)
    if len(ids) < len(arrays["ids"]):
        raise DataError(
            f"{dataset.source}: the id {ids[counts.argmax()]} (sid_fid) occurs {counts.max()} times, and the "
            "leaderboard tells structures by it; give every structure an id of its own"
        )
    return arrays
