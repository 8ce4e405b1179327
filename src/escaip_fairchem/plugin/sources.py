"""Where data sets are, as a configuration says it: checked before fairchem stumbles over what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from escaip_fairchem.errors import DataError

_ADVICE = (
    "make what a shipped configuration expects with `escaip data oc20`, `oc22`, `spice`, `mptrj` or `md22`, a small "
    "set with `escaip data demo OUT` or one of your own with `escaip data convert`, or say where the data is: {key}=…"
)


def advice(key: str) -> str:
    """How a user gets data for a key of the configuration."""
    return _ADVICE.format(key=key)


def plain_paths(src: Any) -> Iterator[Path]:
    """The files and folders of a ``src``, without patterns and addresses of databases, which the reader resolves.

    Args:
        src: A path, several, or None.
    """
    for path in [src] if isinstance(src, (str, Path)) else src or []:
        if not any(character in str(path) for character in "*?[") and "://" not in str(path):
            yield Path(path)


def check_source(key: str, src: Any, kind: str) -> None:
    """Refuse a data set that is not there.

    Args:
        key: Where ``src`` stands in the configuration.
        src: A path, several, or None.
        kind: The data set's ``format``.

    Raises:
        DataError: A path does not exist, or a folder holds no LMDB file.
    """
    for path in plain_paths(src):
        if not path.exists():
            raise DataError(f"{key}: {path} does not exist (looked in {Path.cwd()}); {advice(key)}")
        if kind.endswith("lmdb") and path.is_dir() and not any(path.glob("*.lmdb")):
            raise DataError(f"{key}: the folder {path} holds no *.lmdb file; {advice(key)}")


def check_atom_counts(key: str, src: Any, metadata: Any) -> None:
    """Refuse a data set without the numbers of atoms that balancing needs.

    Args:
        key: Where ``src`` stands in the configuration.
        src: A path, several, or None.
        metadata: The data set's ``metadata_path``, or None.

    Raises:
        DataError: Names the missing file, and ways to do without it.
    """
    paths = list(plain_paths(src))
    files = (
        [Path(metadata)] if metadata else [(path if path.is_dir() else path.parent) / "metadata.npz" for path in paths]
    )
    for file in files:
        if not file.is_file():
            raise DataError(
                f"{key}: optim.load_balancing needs the numbers of atoms in {file}, which does not exist. All commands "
                "`escaip data …` write it (`escaip data oc20` and `oc22` for prepared LMDB files, too); for other data "
                "set optim.load_balancing_on_error=warn_and_no_balance (or warn_and_balance, which reads all data "
                "first), or optim.load_balancing=null"
            )
