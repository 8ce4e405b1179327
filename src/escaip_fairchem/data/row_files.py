"""Encoded rows of one input file, kept until they are put together with others: each behind its length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from escaip_fairchem.errors import DataError

from .faults import reading, writing
from .writer import new_file

LENGTH_BYTES = 8


def write_rows(path: Path, rows: Iterable[bytes]) -> int:
    """Write rows one by one to a file that appears only when it is complete.

    Returns:
        Number of rows.

    Raises:
        DataError: The file cannot be written.
    """
    count = 0
    with new_file(path) as file:
        for row in rows:
            with writing(path):
                file.write(len(row).to_bytes(LENGTH_BYTES, "little"))
                file.write(row)
            count += 1
    return count


def read_rows(path: Path) -> Iterator[bytes]:
    """Read the rows of a file one by one.

    Raises:
        DataError: The file is missing, cannot be read, or was cut off.
    """
    with reading(path), path.open("rb") as file:
        while head := file.read(LENGTH_BYTES):
            length = int.from_bytes(head, "little")
            row = file.read(length)
            if len(head) < LENGTH_BYTES or len(row) < length:
                raise DataError(f"{path} was cut off; remove the folder that it is in and start the same command again")
            yield row
