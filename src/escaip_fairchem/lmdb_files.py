"""LMDB files that were cut off, by a copy that did not end for example: reading beyond their end kills the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb

from escaip_fairchem.errors import DataError

READ_ALL = (
    "import sys, lmdb\n"
    "with lmdb.open(sys.argv[1], subdir=False, readonly=True, lock=False) as file, file.begin() as reading:\n"
    "    for key, value in reading.cursor(): pass\n"
)


def open_readonly(path: str | os.PathLike[str], **settings: Any) -> lmdb.Environment:
    """Open a file for reading.

    Args:
        path: The file, which is no folder.
        **settings: Further keyword arguments of ``lmdb.open``.

    Raises:
        DataError: It was cut off.
        lmdb.Error: It is no LMDB file, or cannot be opened.
    """
    environment = lmdb.open(str(path), **{"lock": False, **settings, "subdir": False, "readonly": True})
    try:
        found = cut_off(environment, path)
    except BaseException:
        environment.close()
        raise
    if found is not None:
        environment.close()
        raise DataError(f"{path}: was {found}, so its records cannot be read; copy or make it again")
    return environment


def cut_off(environment: lmdb.Environment, path: str | os.PathLike[str]) -> str | None:
    """Find out whether an open file was cut off.

    Returns:
        How much is there of how much; None if it is whole.
    """
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    size = Path(path).stat().st_size
    if size >= expected:
        return None
    # Pages at the end that nothing uses may never have been written, so try it where nothing else is lost.
    tried = subprocess.run([sys.executable, "-c", READ_ALL, str(path)], capture_output=True, check=False)
    return None if tried.returncode == 0 else f"cut off: {size} of {expected} bytes"
