"""Write the demonstration set: both formats, three splits, and a start for a relaxation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ase.io import write

from escaip_fairchem.errors import DataError

from . import defaults, emt_demo
from .claims import claim, publish
from .dataset_yaml import Section, render
from .manifest import Manifest
from .pool import ordered_map
from .progress import track
from .report import split_summary
from .schema import FrameTable, Structure
from .splits import check_seed
from .statistics import fit_normalizers
from .writer import Format, encode_ase_row, encode_classic_row, save_text, write_split

ENCODERS = {"lmdb": encode_classic_row, "aselmdb": encode_ase_row}
OUTPUTS = ("lmdb", "aselmdb", "relax_start.extxyz", "relax_emt.extxyz", "summary.json")


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What the demonstration set holds.

    Attributes:
        train: Frames to train on.
        val: Frames to validate on.
        test: Frames to test on.
        seed: Decides everything that is drawn.
        formats: Formats to write.
    """

    train: int = defaults.DEMO_TRAIN
    val: int = defaults.DEMO_EVALUATED
    test: int = defaults.DEMO_EVALUATED
    seed: int = defaults.SEED
    formats: tuple[Format, ...] = defaults.DEMO_FORMATS

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.train < 1 or self.val < 0 or self.test < 0:
            raise DataError(
                f"the demonstration set needs at least one training frame and no negative numbers, "
                f"got train {self.train}, val {self.val}, test {self.test}"
            )


def write_demo(
    out: Path, options: DemoOptions, *, workers: int = 1, overwrite: bool = False, show_progress: bool = False
) -> dict[str, Any]:
    """Make the demonstration set, or leave it as it is where the same one is complete already.

    Args:
        out: Folder to write into.
        options: What to make; the result depends on nothing else.
        workers: Processes to use.
        overwrite: Replace a set that was made with other options.
        show_progress: Report on standard error.

    Returns:
        The summary that ``summary.json`` holds.

    Raises:
        DataError: The folder holds something else.
    """
    manifest = Manifest.of("escaip data demo", vars(options))
    with claim(out, manifest, outputs=OUTPUTS, overwrite=overwrite) as claimed:
        if claimed.complete:
            return dict(json.loads((out / "summary.json").read_text(encoding="utf-8")))
        # A set takes less than a minute: what an interrupted run left is made again from the start.
        claimed.begin_writing()
        structures = _generate(options, workers, show_progress)
        summary = _write_all(out, claimed.new, options, structures)
        publish(claimed)
    return summary


def _generate(options: DemoOptions, workers: int, show_progress: bool) -> dict[str, list[Structure]]:
    counts = {"train": options.train, "val": options.val, "test": options.test}
    tasks = [task for split, count in counts.items() for task in emt_demo.tasks(split, count, seed=options.seed)]
    made: dict[str, list[Structure]] = {split: [] for split in counts}
    results = track(
        ordered_map(emt_demo.make_frames, tasks, workers),
        total=len(tasks),
        title="demo set",
        unit="slabs",
        show=show_progress,
    )
    for task, frames in zip(tasks, results, strict=True):
        made[task.split] += frames
    return {split: list(islice(made[split], count)) for split, count in counts.items()}


def _write_all(out: Path, new: Path, options: DemoOptions, structures: dict[str, list[Structure]]) -> dict[str, Any]:
    tables = {split: FrameTable.of(frames) for split, frames in structures.items()}
    for form in options.formats:
        for split, frames in structures.items():
            if frames:
                write_split(new / form / split, map(ENCODERS[form], frames), tables[split].natoms.tolist(), form)
        normalizers = fit_normalizers(tables["train"], None)
        section = Section(
            folder=out / form,
            form=form,
            splits=[split for split, frames in structures.items() if frames],
            labels=frozenset({"energy", "forces"}),
            normalizers=normalizers,
            references=None,
        )
        save_text(new / form / "dataset.yml", render(section))
        save_text(new / form / "dataset_conservative.yml", render(section.conservative()))
    for name, atoms in zip(
        ("relax_start.extxyz", "relax_emt.extxyz"), emt_demo.relaxation_start(options.seed), strict=True
    ):
        write(new / name, atoms, format="extxyz")
    summary: dict[str, Any] = {"splits": {split: split_summary(table) for split, table in tables.items()}}
    save_text(new / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary
