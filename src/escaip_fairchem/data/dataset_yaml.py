"""The ``dataset:`` section of a fairchem configuration, written beside the data it describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from .statistics import Normalizer, shared_scale
from .writer import Format


@dataclass(frozen=True, kw_only=True)
class Section:
    """What a ``dataset:`` section says.

    Attributes:
        folder: Folder that holds the splits; paths in the section start with it, as it was given.
        form: ``aselmdb`` or ``lmdb``.
        splits: Names of the splits that are not empty; the first one carries the settings.
        labels: Which of energy, forces and stress every structure carries.
        normalizers: By target.
        references: File with the energy per element, or None.
        shared_scale: Whether all targets have one and the same spread.
    """

    folder: Path
    form: Format
    splits: Sequence[str]
    labels: frozenset[str]
    normalizers: Mapping[str, Normalizer]
    references: Path | None
    shared_scale: bool = False

    @property
    def serves_conservative_models(self) -> bool:
        """Whether energies and forces are there, of which one is the derivative of the other."""
        return {"energy", "forces"} <= self.labels

    def conservative(self) -> Section:
        """Return the same section for conservative models, with one scale for all targets."""
        return replace(self, normalizers=shared_scale(self.normalizers), shared_scale=True)


def scale_files(section: Section) -> dict[str, Normalizer]:
    """Return what a configuration may name one by one, by file name: ``normalizer: {energy: {file: …}}``.

    Every target has its own scale, and ``conservative_<target>`` the one that all targets share.
    """
    files = dict(section.normalizers)
    if section.serves_conservative_models:
        files |= {f"conservative_{name}": value for name, value in section.conservative().normalizers.items()}
    return files


def render(section: Section) -> str:
    """Render a section as YAML that fairchem accepts as it is, by itself or through ``includes:``."""
    splits: dict[str, dict[str, Any]] = {split: {"src": str(section.folder / split)} for split in section.splits}
    if section.splits:
        splits[section.splits[0]] |= _settings(section)
    body = yaml.safe_dump({"dataset": splits}, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110)
    return "\n".join([*_heading(section), body])


def _heading(section: Section) -> list[str]:
    purpose = (
        "for conservative models: one scale for all targets, because forces and stress are derivatives of the energy"
        if section.shared_scale
        else "for direct models: every target has a scale of its own"
    )
    lines = [
        f"# A dataset section {purpose}.",
        "# Paths are relative to the folder in which fairchem is started. Values were fitted to the training split, in",
        "# eV, eV/Å and eV/Å³. The splits below the first one take over its settings.",
    ]
    flat = [target for target, normalizer in section.normalizers.items() if normalizer.degenerate]
    if flat:
        lines.append(f"# Not scaled, because the training labels do not vary: {', '.join(flat)}.")
    return lines


def _settings(section: Section) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if section.form == "aselmdb":
        settings["format"] = "ase_db"
        settings["a2g_args"] = {f"r_{label}": label in section.labels for label in ("energy", "forces", "stress")}
    else:
        settings["format"] = "lmdb"
        settings["key_mapping"] = {"y": "energy", "force": "forces"}
    transforms: dict[str, Any] = {}
    if section.references is not None:
        transforms["element_references"] = {"energy": {"file": str(section.references)}}
    if section.normalizers:
        transforms["normalizer"] = {
            target: {"mean": float(f"{normalizer.mean:.10g}"), "rmsd": float(f"{normalizer.rmsd:.10g}")}
            for target, normalizer in section.normalizers.items()
        }
    return settings | ({"transforms": transforms} if transforms else {})
