"""What fairchem itself makes of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def section(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))["dataset"]


def open_split(sections: dict[str, Any], split: str, **extra: Any) -> Any:
    """Open a split as fairchem's trainer does: its own settings over those of the training split."""
    from fairchem.core.datasets.base_dataset import create_dataset

    import escaip_fairchem  # noqa: F401 (fairchem can be imported after it, without compiled extensions)

    return create_dataset({**sections["train"], **sections[split], "no_shuffle": True, **extra}, split)


def lmdb_content(path: Path) -> dict[bytes, bytes]:
    import lmdb

    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment, environment.begin() as reading:
        return dict(reading.cursor())


def data_set_content(folder: Path) -> dict[str, Any]:
    """Everything a conversion wrote, comparable: rows of LMDB files, text and arrays as they are."""
    content: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(".") and name != "manifest.json":
            content[name] = lmdb_content(path) if path.suffix in (".aselmdb", ".lmdb") else path.read_bytes()
    return content
