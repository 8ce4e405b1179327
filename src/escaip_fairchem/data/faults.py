"""Faults of the machine, told apart from faults of the data.

A disk that fails, memory or open files that run out: what is being read is no worse for it, and the next attempt may
succeed. Such a fault must never be taken down as a fault of the data, which would leave structures out for good.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from escaip_fairchem.errors import DataError

_CERTAIN = (MemoryError, lmdb.MemoryError, lmdb.DiskError, lmdb.LockError, lmdb.ReadersFullError)
# LMDB has no class for these, only the system's words.
_CODES = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT)
# About another file than the one that is read: the data call for something that is not there.
_ABOUT_NAMES = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class MachineFaultError(DataError):
    """The machine failed; the data are no worse for it."""


def is_of_machine(error: BaseException, path: Path) -> bool:
    """Tell whether an error says something about the machine, and nothing about the contents of a file.

    What the system reports has an error number. Libraries that cannot make sense of a file's contents (a broken
    archive, say) raise the same classes without one.

    Args:
        error: What was raised while the file was read.
        path: The file.
    """
    if isinstance(error, _CERTAIN):
        return True
    if isinstance(error, lmdb.Error):
        return type(error) is lmdb.Error and any(os.strerror(code) in str(error) for code in _CODES)
    if isinstance(error, _ABOUT_NAMES):
        return error.errno is not None and not path.is_file()
    return isinstance(error, OSError) and error.errno is not None


def refuse_fault_of_machine(error: BaseException, path: Path) -> None:
    """Stop where an error is no fault of the data.

    Args:
        error: What was raised while the file was read.
        path: The file.

    Raises:
        MachineFaultError: Names the file, and says that the same command goes on.
    """
    if isinstance(error, MachineFaultError):
        raise error
    if is_of_machine(error, path):
        raise MachineFaultError(
            f"{path} cannot be read now ({type(error).__name__}: {error}). That is no fault of the data, and nothing "
            f"was stored for it: once the cause is gone, start the same command again, and it goes on from here"
        ) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn faults of the machine within the block into an error that says so; all else passes."""
    try:
        yield
    except (OSError, MemoryError, lmdb.Error) as error:
        refuse_fault_of_machine(error, path)
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what keeps a file from being written, a full disk above all, into an error that names it."""
    try:
        yield
    except (OSError, lmdb.Error) as error:
        raise MachineFaultError(
            f"{path} cannot be written ({error}). Make room there, or choose another folder; the same command goes on "
            f"with what is there already"
        ) from error
