"""LMDB files that are opened more than once in one process, which lmdb ≥ 2 refuses, and files that were cut off."""

from __future__ import annotations

import copyreg
import os
import types
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import lmdb

from escaip_fairchem.lmdb_files import open_readonly

_Key = tuple[int, int, int, tuple[tuple[str, Any], ...]]


@dataclass
class _Entry:
    environment: Any
    users: int


_open_files: dict[_Key, _Entry] = {}


class SharedEnvironment:
    """One user's handle on an environment that several may have open; the last one to close it does close it.

    Args:
        path: The file.
        settings: Keyword arguments of ``lmdb.open``, ``readonly=True`` among them.
    """

    def __init__(self, path: str, settings: dict[str, Any]) -> None:
        self._closed = True
        self._path, self._settings = path, settings
        status = os.stat(path)  # noqa: PTH116 (a Path would do no better)
        # A forked process inherits the table, but must not use an environment that it did not open.
        self._key: _Key = (os.getpid(), status.st_dev, status.st_ino, tuple(sorted(settings.items())))
        entry = _open_files.get(self._key)
        if entry is None:
            entry = _open_files[self._key] = _Entry(_open(path, settings), 0)
        entry.users += 1
        self._entry = entry
        self._closed = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if self._closed:
            raise lmdb.Error(f"{self._path} has been closed")
        return getattr(self._entry.environment, name)

    def close(self) -> None:
        """Give the handle up."""
        if self._closed:
            return
        self._closed = True
        if self._key[0] != os.getpid():
            return  # the parent's environment, which stays in the table and untouched
        self._entry.users -= 1
        if self._entry.users == 0:
            _open_files.pop(self._key, None)
            self._entry.environment.close()

    def __enter__(self) -> SharedEnvironment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[SharedEnvironment], tuple[str, dict[str, Any]]]:
        # Another process opens the file anew.
        return SharedEnvironment, (self._path, self._settings)


def _open(path: str, settings: dict[str, Any]) -> Any:
    if settings.get("subdir", True):  # a folder, as which nobody here keeps data
        return lmdb.open(path, **settings)
    return open_readonly(path, **settings)


def open_shared(path: str, **settings: Any) -> Any:
    """Open a file like ``lmdb.open``, shared with everybody in this process who reads it with the same settings.

    Args:
        path: The file.
        **settings: As for ``lmdb.open``. Environments for writing are not shared.
    """
    if settings.get("readonly"):
        return SharedEnvironment(str(path), settings)
    return lmdb.open(str(path), **settings)


def open_whole(path: str, **settings: Any) -> Any:
    """Open a file like ``lmdb.open``, which for reading has to be whole.

    Args:
        path: The file.
        **settings: As for ``lmdb.open``.

    Raises:
        DataError: It is to be read, and was cut off.
    """
    return _open(str(path), settings) if settings.get("readonly") else lmdb.open(str(path), **settings)


def reduce_environment(environment: Any) -> tuple[Any, tuple[str]]:
    """Let another process open a file anew, where an environment is pickled, as data sets are for spawned loaders.

    Raises:
        TypeError: It is open for writing.
    """
    flags = environment.flags()
    if not flags["readonly"]:
        raise TypeError(f"{environment.path()}: is open for writing, which another process must not do as well")
    kept = {name: flags[name] for name in ("readonly", "subdir", "lock", "readahead")}
    return partial(open_whole, **kept), (str(environment.path()),)


def guard_lmdb_files() -> None:
    """Let fairchem's and ase-db-backends' datasets refuse files that were cut off, and open a file twice.

    Reading beyond a file's end kills the process without a word. lmdb ≥ 2 refuses to open a file twice, but the
    validation set may be the test set as well, and the ASE reader opens its file anew in every loader process.
    """
    copyreg.pickle(lmdb.Environment, reduce_environment)
    opener = open_whole if int(version("lmdb").partition(".")[0]) < 2 else open_shared
    from ase_db_backends import aselmdb
    from fairchem.core.datasets import lmdb_dataset, oc22_lmdb_dataset

    guarded = types.ModuleType("lmdb", lmdb.__doc__)
    vars(guarded).update(vars(lmdb), open=opener)
    for module in (lmdb_dataset, oc22_lmdb_dataset, aselmdb):
        module.lmdb = guarded
