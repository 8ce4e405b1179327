"""Convert labelled structures from anything ASE reads into an ASE-LMDB data set for fairchem.

Chunks of structures are read, checked and encoded in parallel and kept in ``OUT/.partial``; then the rows are sorted
into splits, statistics are fitted to the training split, and files appear under their names only when all of them are
complete. The chunks, their order and the random numbers depend on the input and the options alone, so any number of
workers, interrupted any number of times, writes the same rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from escaip_fairchem.errors import DataError

from .checks import LABELS, Reason
from .claims import Claim, abandon, claim, keep, publish
from .collection import Collection, collect, groups_for_split
from .dataset_yaml import Section, render, scale_files
from .manifest import Manifest
from .notes import notes
from .options import ConvertOptions
from .plans import plan_once
from .pool import ordered_map
from .progress import track
from .report import full_text, skip_table, summarize
from .schema import FloatArray, FrameTable, IntArray
from .sources import file_state, find_files
from .splits import SPLITS, divide
from .staging import StagingOptions, stager
from .statistics import Normalizer, fit_element_references, fit_normalizers
from .writer import rewrite_ase_row, save_npz, save_text, write_split

REFERENCES = "element_references.npz"
NORMALIZERS = "normalizers"
# Options that matter only once everything has been read.
LATER = ("split", "linear_references", "subtract_references", "shard_rows")
OUTPUTS = (*SPLITS, "dataset.yml", "dataset_conservative.yml", REFERENCES, NORMALIZERS, "summary.json", "report.txt")


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """What was fitted to the training split."""

    labels: frozenset[str]
    references: FloatArray | None
    normalizers: Mapping[str, Normalizer]


def convert(
    inputs: Sequence[str],
    out: Path,
    options: ConvertOptions,
    *,
    workers: int = 1,
    overwrite: bool = False,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Convert files to a data set, or leave it as it is where the same one is complete already.

    Args:
        inputs: Files, folders and glob patterns.
        out: Folder to write into.
        options: What to write.
        workers: Processes to use; without influence on the result.
        overwrite: Replace a data set that was made from other input or with other options.
        show_progress: Report on standard error.

    Returns:
        The summary that ``summary.json`` holds.

    Raises:
        DataError: Nothing matches, nothing is usable, or the folder holds something else.
    """
    sources = find_files(inputs, exclude=out, form=options.form)
    decides = {**asdict(options), "inputs": [file_state(source.path) for source in sources]}
    del decides["remarks"]  # sentences about the other options, which decide nothing
    manifest = Manifest.of("escaip data convert", decides, later=LATER)
    with claim(out, manifest, outputs=OUTPUTS, overwrite=overwrite) as claimed:
        if claimed.complete:
            return dict(json.loads((out / "summary.json").read_text(encoding="utf-8")))
        claimed.staged.mkdir(exist_ok=True)
        chunks = plan_once(sources, claimed.staged, form=options.form, limit=options.limit, show_progress=show_progress)
        reading = StagingOptions(options.labels, options.limits, options.split_by, options.count_by)
        stage = stager(reading, claimed.staged)
        for _ in track(
            ordered_map(stage, chunks, workers), total=len(chunks), title="reading", unit="chunks", show=show_progress
        ):
            pass
        collection = collect(chunks, claimed.staged, options.limit)
        splits = _divide(collection, options, claimed)
        summary = _write_all(collection, splits, options, claimed, show_progress)
        publish(claimed)
    return summary


def _divide(collection: Collection, options: ConvertOptions, claimed: Claim) -> dict[str, IntArray]:
    """Divide the structures; where that cannot be done, free the folder, but keep what was read if it is any use."""
    if len(collection) == 0:
        abandon(claimed)
        raise DataError(f"nothing usable was found:\n{skip_table(collection.skipped)}{_advice(collection)}")
    try:
        groups = None if options.split_by is None else groups_for_split(collection, options.split_by)
        return divide(len(collection), options.split, groups)
    except DataError:
        keep(claimed)
        raise


def _advice(collection: Collection) -> str:
    if {skip.reason for skip in collection.skipped} == {Reason.MISSING_FORCES}:
        return "\n--require energy accepts structures without forces"
    return ""


def _write_all(
    collection: Collection, splits: Mapping[str, IntArray], options: ConvertOptions, claimed: Claim, show: bool
) -> dict[str, Any]:
    claimed.begin_writing()
    fit = _fit(collection.table, splits["train"], options)
    used = [split for split, rows in splits.items() if len(rows)]
    for split in used:
        rows = splits[split]
        write_split(
            claimed.new / split,
            track(_rows(collection, rows, fit, options, claimed), total=len(rows), title=split, unit="rows", show=show),
            collection.table.natoms[rows].tolist(),
            "aselmdb",
            shard_rows=options.shard_rows,
        )
    _write_sections(fit, used, options, claimed)
    tables = {split: collection.table.take(rows) for split, rows in splits.items()}
    summary = summarize(collection, tables, fit.references, fit.normalizers)
    summary["notes"] = notes(collection, splits, options, fit.labels, fit.normalizers)
    save_text(claimed.new / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    save_text(claimed.new / "report.txt", full_text(summary) + "\n")
    return summary


def _fit(table: FrameTable, train: IntArray, options: ConvertOptions) -> _Fit:
    complete = {
        "energy": np.isfinite(table.energy).all(),
        "forces": np.isfinite(table.force_squares).all(),
        "stress": np.isfinite(table.stress).all(),
    }
    labels = frozenset(label for label in LABELS if complete[label])
    training = table.take(train)
    references = None
    if options.linear_references and "energy" in labels:
        references = fit_element_references(training.composition, training.energy)
    fitted = fit_normalizers(training, references)
    normalizers = {name: value for name, value in fitted.items() if name.split("_")[0] in labels}
    return _Fit(labels=labels, references=references, normalizers=normalizers)


def _rows(
    collection: Collection, rows: IntArray, fit: _Fit, options: ConvertOptions, claimed: Claim
) -> Iterator[bytes]:
    """Yield the encoded rows of a split, with a new identifier or energy where one is called for."""
    renamed = set(collection.renamed.tolist())
    for row, encoded in zip(rows.tolist(), collection.rows(rows, claimed.staged), strict=True):
        subtract = None
        if options.subtract_references and fit.references is not None:
            subtract = float(collection.table.composition[row].astype(np.float64) @ fit.references)
        if row in renamed or subtract is not None:
            yield rewrite_ase_row(encoded, sid=str(collection.table.sid[row]), subtract=subtract)
        else:
            yield encoded


def _write_sections(fit: _Fit, used: Sequence[str], options: ConvertOptions, claimed: Claim) -> None:
    """Write references, scales and dataset sections."""
    if fit.references is not None:
        save_npz(claimed.new / REFERENCES, element_references=fit.references)
    named = fit.references is not None and not options.subtract_references
    section = Section(
        folder=claimed.out,
        form="aselmdb",
        splits=used,
        labels=fit.labels,
        normalizers=fit.normalizers,
        references=claimed.out / REFERENCES if named else None,
    )
    (claimed.new / NORMALIZERS).mkdir()
    for name, normalizer in scale_files(section).items():
        # Arrays without axes: fairchem makes buffers of them, and asks whether the scale is true.
        save_npz(
            claimed.new / NORMALIZERS / f"{name}.npz", mean=np.array(normalizer.mean), rmsd=np.array(normalizer.rmsd)
        )
    save_text(claimed.new / "dataset.yml", render(section))
    if section.serves_conservative_models:
        save_text(claimed.new / "dataset_conservative.yml", render(section.conservative()))
