"""OC22's prebuilt LMDB files: checked, linked split by split, with numbers of atoms and energies per element.

The shipped configurations look for ``linear_references.npz`` beside the folder of splits::

    data/oc22/linear_references.npz
    data/oc22/s2ef-total/train/*.lmdb
    data/oc22/s2ef-total/val_id/*.lmdb

``OUT`` is that folder of splits, or, where the input is a single split, the folder of that one. In the
latter case nothing is written outside of it unless its path ends as above, or somebody says where.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from escaip_fairchem.errors import DataError

from .claims import Claim, claim, keep, publish
from .linear_references import NormalEquations, complete_references, read_references
from .manifest import Manifest
from .oc22_references import KINDS, REFERENCES, TEST, TRAINING, copy, refuse_foreign, refuse_unwritable, usual_place
from .prebuilt import Contract, link, verify
from .schema import FloatArray
from .shard_sets import (
    METADATA,
    OUTPUTS,
    ShardSet,
    atoms_in_order,
    fingerprint,
    is_done,
    place_metadata,
    refuse_faults,
    refuse_mixtures,
    run,
    staged_path,
    write_summary,
)
from .shards import Unit
from .sources import Source, real_path
from .tally import Tally
from .writer import save_npz


@dataclass(frozen=True, kw_only=True)
class OC22Options:
    """Everything but the input that decides what is written.

    Attributes:
        references: File with energies per element; None fits them to the training split.
        references_out: Where to write them besides; None: beside the folder of splits, where that can be told.
        split: What a single split is for: ``train``, ``val`` or ``test``; None: what its folder's name begins with.
    """

    references: Path | None = None
    references_out: Path | None = None
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is read, and where it goes.

    Attributes:
        units: The files, split by split.
        out: Folder to write into.
        alone: The input is a single split, and ``out`` is its folder.
        references_out: Where to write references outside of ``out``, if anywhere.
    """

    units: Sequence[Unit]
    out: Path
    alone: bool
    references_out: Path | None = None

    @property
    def trains(self) -> bool:
        """Whether the training split is among them."""
        return any(unit.split == TRAINING for unit in self.units)

    def folder(self, root: Path, split: str) -> Path:
        """Name a split's folder below a root."""
        return root if self.alone else root / split

    def outputs(self) -> list[str]:
        """Name everything that may be written, and shards of someone else, which would become part of a split."""
        if not self.alone:
            return [*OUTPUTS, REFERENCES, *sorted({unit.split for unit in self.units})]
        (published,) = {unit.source.path.parent for unit in self.units}
        files = [*published.glob("*.lmdb"), *self.out.glob("*.lmdb")]
        return [*OUTPUTS, REFERENCES, METADATA, *sorted({path.name for path in files})]


def prepare_oc22(
    raw: str,
    out: Path,
    options: OC22Options,
    *,
    workers: int = 1,
    overwrite: bool = False,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Check and link the splits of OC22, or leave them as they are where the same ones are complete already.

    Args:
        raw: Folder that holds the splits' folders at any depth, or the ``*.lmdb`` files of one split.
        out: Folder to write into: of all splits, or of that one.
        options: What to write.
        workers: Processes to use; without influence on the result.
        overwrite: Replace what was made from other input or with other options.
        show_progress: Report on standard error.

    Returns:
        The summary that ``summary.json`` holds.

    Raises:
        DataError: There is no input, a file has a fault, references are missing, or a folder holds something else.
    """
    planned = plan(raw, out, options)
    given = None if options.references is None else read_references(options.references)
    target = planned.references_out
    if target is not None and (given is not None or planned.trains):
        refuse_unwritable(target)
        if not overwrite:
            refuse_foreign(target, out / REFERENCES, given)
    with claim(out, _manifest(raw, planned, options), outputs=planned.outputs(), overwrite=overwrite) as claimed:
        if claimed.complete:
            summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        else:
            claimed.staged.mkdir(exist_ok=True)
            stage = partial(stage_unit, staged=claimed.staged)
            run(stage, planned.units, workers, title="reading", show=show_progress)
            shards = ShardSet(planned.units, claimed.staged)
            refuse_faults(claimed, shards.skipped())
            _refuse_mixtures(claimed, planned)
            summary = _write_all(claimed, shards, planned, given, options)
            publish(claimed)
        if target is not None and (out / REFERENCES).is_file():
            copy(out / REFERENCES, target)
    return summary


def plan(raw: str, out: Path, options: OC22Options) -> Plan:
    """Name the files to read, split by split.

    Raises:
        DataError: There are none, two folders have one name, they lie in the folder to write into, or what a single
            split is for cannot be told.
    """
    folder = Path(raw).expanduser()
    if real_path(out) in (real_path(folder), *real_path(folder).parents):
        raise DataError(f"RAW {raw} lies in OUT {out}; write into another folder (files are linked, not copied)")
    alone = any(folder.glob("*.lmdb"))
    if options.split is not None and not alone:
        raise DataError(f"--split is for a RAW that is one split; {raw} holds no *.lmdb file itself")
    found = {folder} if alone else {path.parent for path in folder.rglob("*.lmdb")}
    folders: dict[str, Path] = {}
    for split in sorted(found):
        if real_path(out) in (real_path(split), *real_path(split).parents):
            continue
        name = _name_alone(folder, options.split) if alone else split.name
        if name in folders:
            raise DataError(f"{folders[name]} and {split} would both be the split {name}; give one of them")
        folders[name] = split
    if not folders:
        raise DataError(
            f"{raw} holds no *.lmdb file; give the folder of OC22's splits (train, val_id, …) or one of these"
        )
    files = [(name, path) for name, split in folders.items() for path in sorted(split.glob("*.lmdb"))]
    units = [
        Unit(number=number, part=0, source=Source(path=path, name=f"{name}/{path.name}"), split=name)
        for number, (name, path) in enumerate(files)
    ]
    target = options.references_out or usual_place(out, alone=alone)
    return Plan(units=units, out=out, alone=alone, references_out=target)


def _name_alone(folder: Path, split: str | None) -> str:
    """Name a single split, so that the name tells what it is for."""
    name = Path(os.path.abspath(folder)).name  # noqa: PTH100 (as it is called here, not as what a link leads to)
    kind = split or next((kind for kind in KINDS if name.startswith(kind)), None)
    if kind not in KINDS:
        raise DataError(
            f"what the split {folder} is for cannot be told by the name {name if split is None else split!r}: give "
            f"--split {'|'.join(KINDS)}"
        )
    return kind if split is not None or kind == TRAINING else name


def _manifest(raw: str, planned: Plan, options: OC22Options) -> Manifest:
    file = options.references
    decides = {
        "inputs": [str(real_path(Path(raw).expanduser())), *fingerprint([unit.source.path for unit in planned.units])],
        "splits": sorted({unit.split for unit in planned.units}),
        "references": None if file is None else [str(real_path(file)), *fingerprint([file])],
    }
    return Manifest.of("escaip data oc22", decides, later=("references",))


def stage_unit(unit: Unit, *, staged: Path) -> int:
    """Check one file, unless an earlier run has done so.

    Args:
        unit: The file. Test splits need no labels.
        staged: Where the outcome goes.

    Returns:
        The file's number.
    """
    facts = staged_path(staged, unit, "npz")
    if not is_done(facts, prebuilt=True):
        labels = not unit.split.startswith(TEST)
        verify(unit, Contract(labels=labels, oc22=True, sum_references=labels)).save(facts)
    return unit.number


def _refuse_mixtures(claimed: Claim, planned: Plan) -> None:
    for split in sorted({unit.split for unit in planned.units}):
        refuse_mixtures(claimed, ShardSet([unit for unit in planned.units if unit.split == split], claimed.staged))


@dataclass(kw_only=True)
class _Sums:
    """What is added up over all files."""

    read: int
    tallies: dict[str, Tally]
    equations: dict[str, NormalEquations]
    examples: dict[int, str]
    notes: list[str]

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that occur."""
        return sorted(self.examples)


def _write_all(
    claimed: Claim, shards: ShardSet, planned: Plan, given: FloatArray | None, options: OC22Options
) -> dict[str, Any]:
    sums = _add_up(shards)
    references = _references(claimed, sums, planned, given, options)
    claimed.begin_writing()
    _place_files(claimed, shards, planned, sums)
    splits = {name: tally.described() for name, tally in sums.tallies.items()}
    about: dict[str, Any] = {}
    if references is None:
        sums.notes.append(f"energies per element are fitted to the split {TRAINING}, which is not among these")
    else:
        save_npz(claimed.new / REFERENCES, element_references=references)
        sums.notes += _notes(sums, references, options)
        for name, equations in sums.equations.items():
            splits[name] = sums.tallies[name].described(equations.residual(sums.tallies[name], references))
        about = {
            "element_references_from": "fitted to the training split"
            if options.references is None
            else f"read from {options.references}",
            "element_references_eV": {chemical_symbols[number]: float(references[number]) for number in sums.elements},
            "elements_without_reference": [chemical_symbols[number] for number in _unknown(sums, references)],
        }
    usable = sum(tally.structures for tally in sums.tallies.values())
    return write_summary(claimed, splits, [], (sums.read, usable), notes=sums.notes, **about)


def _add_up(shards: ShardSet) -> _Sums:
    sums = _Sums(read=0, tallies={}, equations={}, examples={}, notes=[])
    for unit, shard in shards:
        sums.read += shard.read
        sums.tallies[unit.split] = sums.tallies.get(unit.split, Tally()) + shard.tally
        if shard.equations is not None:
            known = sums.equations.get(unit.split, NormalEquations.empty())
            sums.equations[unit.split] = known + shard.equations
        for number, name in shard.examples.items():
            sums.examples.setdefault(number, f"{name} in {unit.source.name}")
        sums.notes += [f"{unit.source.path} {remark}" for remark in shard.remarks]
    return sums


def _references(
    claimed: Claim, sums: _Sums, planned: Plan, given: FloatArray | None, options: OC22Options
) -> FloatArray | None:
    if given is None or options.references is None:
        return sums.equations[TRAINING].solve() if planned.trains else None
    try:
        return complete_references(given, sums.examples, options.references)
    except DataError:
        keep(claimed)
        raise


def _place_files(claimed: Claim, shards: ShardSet, planned: Plan, sums: _Sums) -> None:
    """Link every split's files under the names that they have."""
    counts: dict[str, dict[str, Any]] = {}
    folders: dict[str, Path] = {}
    for unit, shard in shards:
        folder = planned.folder(claimed.new, unit.split)
        folder.mkdir(exist_ok=True)
        link(unit.source.path, folder / unit.source.path.name)
        counts.setdefault(unit.split, {})[unit.source.path.name] = shard.natoms
        folders[unit.split] = unit.source.path.parent
    for split, published in folders.items():
        wrong = place_metadata(planned.folder(claimed.new, split), atoms_in_order(counts[split]), published / METADATA)
        sums.notes += [] if wrong is None else [wrong]


def _unknown(sums: _Sums, references: FloatArray) -> list[int]:
    return [number for number in sums.elements if references[number] == 0]


def _notes(sums: _Sums, references: FloatArray, options: OC22Options) -> Iterator[str]:
    if options.references is not None:
        yield f"energies per element are those of {options.references}"
    elif unknown := _unknown(sums, references):
        shown = ", ".join(f"{chemical_symbols[number]} ({sums.examples[number]})" for number in unknown)
        yield f"elements that the training split does not hold have the reference 0: {shown}"
