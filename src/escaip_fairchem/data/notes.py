"""Remarks about a conversion that its user should not miss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from .checks import LABELS
from .collection import Collection
from .options import ConvertOptions
from .schema import IntArray
from .splits import SPLITS
from .staging import NO_WORD
from .statistics import Normalizer, float32_loss

NOTICEABLE_ROUNDING = 1e-3  # eV
SUSPICIOUS_FORCE_RMS = 5.0  # eV/Å; kcal/mol/Å taken for eV/Å looks like this


def notes(
    collection: Collection,
    splits: Mapping[str, IntArray],
    options: ConvertOptions,
    labels: frozenset[str],
    normalizers: Mapping[str, Normalizer],
) -> list[str]:
    """Collect the remarks.

    Args:
        collection: The usable structures.
        splits: Rows of every split.
        options: What was asked for.
        labels: Labels that all of them carry.
        normalizers: Fitted to the training split.
    """
    return [
        *(options.remarks(collection.counted.counts()) if options.remarks is not None else ()),
        *_about_energy(collection, options, labels, normalizers),
        *_about_labels(collection, labels, normalizers),
        *_about_names(collection, options),
        *_about_splits(collection, splits, options),
    ]


def _about_energy(
    collection: Collection, options: ConvertOptions, labels: frozenset[str], normalizers: Mapping[str, Normalizer]
) -> Iterator[str]:
    if "energy" not in labels:
        return
    if options.subtract_references:
        yield (
            "energies are stored minus their references, and a model trained on them predicts that difference; "
            "every row's data hold the part that was subtracted as reference_energy"
        )
    elif (loss := float32_loss(collection.table.energy)) > NOTICEABLE_ROUNDING:
        yield (
            f"fairchem collates energies in float32, which rounds these by up to {loss:.2g} eV before references are "
            f"subtracted; --subtract-references subtracts them here, in float64"
        )
    if normalizers["energy"].degenerate:
        yield (
            "energies minus references do not vary in the training split, so there is nothing to learn from them: too "
            "few different compositions for so many elements? Try more data, or --no-linear-references"
        )


def _about_labels(
    collection: Collection, labels: frozenset[str], normalizers: Mapping[str, Normalizer]
) -> Iterator[str]:
    table = collection.table
    present = {
        "energy": np.isfinite(table.energy).sum(),
        "forces": np.isfinite(table.force_squares).sum(),
        "stress": np.isfinite(table.stress).all(axis=1).sum(),
    }
    for label in LABELS:
        if label not in labels and present[label]:
            yield (
                f"{present[label]} of {len(table)} structures have {label}, so the dataset section leaves {label} out; "
                f"--require {label} keeps those structures only"
            )
    if "forces" in normalizers and normalizers["forces"].rmsd > SUSPICIOUS_FORCE_RMS:
        yield (
            f"the forces are unusually large (RMS {normalizers['forces'].rmsd:.3g} eV/Å); if the file holds kcal/mol, "
            f"say so with --energy-units and --force-units"
        )
    if collection.left_out:
        yield f"not stored: {', '.join(sorted(collection.left_out))}"


def _about_names(collection: Collection, options: ConvertOptions) -> Iterator[str]:
    if len(collection.renamed):
        first = int(collection.renamed[0])
        yield (
            f"{len(collection.renamed)} structures had the identifier of another one and got a suffix, "
            f"{collection.name[first]} for instance is {collection.table.sid[first]} now"
        )
    key = options.labels.id_key
    if key != "sid" and (unnamed := int((collection.table.sid == collection.name).sum())):
        yield f"{unnamed} structures have no {key} in their info and are identified by file and position"


def _about_splits(collection: Collection, splits: Mapping[str, IntArray], options: ConvertOptions) -> Iterator[str]:
    if options.limit is not None:
        yield f"at most the first {options.limit} structures were read (--limit)"
    if options.split_by is not None and (loose := int(collection.group.is_word(NO_WORD).sum())):
        yield f"{loose} structures have no {options.split_by} in their info and were divided one by one"
    for split, part in zip(SPLITS, options.split.parts, strict=False):
        if part > 0 and len(splits[split]) == 0:
            yield f"nothing was left for the {split} split"
