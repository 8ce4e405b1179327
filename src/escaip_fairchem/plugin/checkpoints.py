"""Checkpoints that survive a kill, a full disk and torch's ``weights_only`` loading."""

from __future__ import annotations

import glob
import logging
import os
import pickle
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from escaip_fairchem.errors import CheckpointError


@contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name complete, or not at all.

    The bytes go to a temporary file in the same folder, reach the disk (``fsync``), and only then take the name. A kill
    at any moment leaves the previous file as it was. Temporary names are unique, so that a save from a signal's handler
    in the middle of another does not touch its file; what a killed process left is removed by the next one.

    Args:
        path: The file to write or replace. Its folder must exist. One process may write it at a time.

    Raises:
        CheckpointError: The file cannot be written; the previous one is untouched.
    """
    target = Path(path)
    own = f".{target.name}.{os.getpid()}-"
    temporary = target.with_name(f"{own}{secrets.token_hex(4)}.tmp")
    try:
        _remove_leftovers(target, but=own)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        with suppress(OSError):  # the error above is the one to report
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _write_error(target, error) from error
        raise
    _sync_folder(target)


def _remove_leftovers(target: Path, *, but: str) -> None:
    """Remove temporary files of processes that were killed; those of this process start with ``but``."""
    for file in target.parent.glob(f".{glob.escape(target.name)}.[0-9]*-*.tmp"):
        if not file.name.startswith(but):
            file.unlink(missing_ok=True)


def _sync_folder(target: Path) -> None:
    """Bring a new name itself to the disk; some file systems cannot, and the file is there all the same."""
    try:
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        logging.warning(f"{target}: written, but a power failure in the next seconds may undo it ({error})")


def _write_error(target: Path, error: OSError) -> CheckpointError:
    kept = "the previous file is intact" if target.exists() else "no file was left behind"
    return CheckpointError(
        f"{target}: cannot be written ({error.strerror or error}); {kept}. "
        "Free some space (or quota) there, or choose another folder with --run-dir."
    )


class _RememberingWriter:
    """Pass bytes on, and keep the operating system's error, which torch replaces by one of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()


def save_atomically(state: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint so that the file always loads, whatever happens meanwhile.

    Args:
        state: Tensors and plain values; see `as_plain`.
        path: The checkpoint file.

    Raises:
        CheckpointError: The disk is full or refuses; the previous file is untouched.
    """
    with atomic_file(path) as file:
        writer: Any = _RememberingWriter(file)
        try:
            torch.save(dict(state), writer)
        except RuntimeError as error:
            raise writer.error or error from error


def bring_best_checkpoint(checkpoint: str | Path, folder: str | Path) -> None:
    """Copy the best checkpoint beside the one that a training goes on from, unless the new folder has one already.

    The best metric so far comes with the training state; without its weights nothing might ever be better.

    Args:
        checkpoint: The checkpoint that the training goes on from.
        folder: Where it writes its own.

    Raises:
        CheckpointError: The disk is full or refuses.
    """
    best, own = Path(checkpoint).with_name("best_checkpoint.pt"), Path(folder) / "best_checkpoint.pt"
    if own.exists() or not best.is_file():
        return
    logging.info(f"{best}: the best so far, copied to {own}")
    with best.open("rb") as source, atomic_file(own) as file:
        shutil.copyfileobj(source, file)


def read_checkpoint(
    path: str | Path,
    map_location: torch.device | str = "cpu",
    *,
    trusted: bool = False,
    how_to_trust: str = "set `task.trust_checkpoint: true`",
) -> dict[str, Any]:
    """Read a fairchem v1 checkpoint.

    Args:
        path: The checkpoint file.
        map_location: Device for its tensors.
        trusted: Also accept files that hold other objects than tensors and plain values. Loading such a file can run
            any code that its author put there.
        how_to_trust: What a user does to set ``trusted``, for the message.

    Raises:
        CheckpointError: There is no such file, it is damaged, holds foreign objects, or is not a fairchem checkpoint.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{file}: no such checkpoint file; check --checkpoint (or --timestamp-id and --run-dir)")
    try:
        checkpoint = torch.load(file, map_location=map_location, weights_only=not trusted)
    except Exception as error:
        raise _read_error(file, error, None if trusted else how_to_trust) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{file}: not a fairchem checkpoint, it has no `state_dict`")
    return checkpoint


def _read_error(file: Path, error: Exception, how_to_trust: str | None) -> CheckpointError:
    if not _is_saved_by_torch(file):
        return CheckpointError(f"{file}: not a readable checkpoint ({type(error).__name__}: no file of torch.save)")
    if isinstance(error, pickle.UnpicklingError) and how_to_trust is not None:
        text = str(error)
        foreign = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"WeightsUnpickler error: (.*)", text)
        what = foreign[1] if foreign else text.splitlines()[0]
        return CheckpointError(
            f"{file}: holds more than tensors and plain values ({what}), and loading it could run foreign code. "
            f"If you trust its author, {how_to_trust}."
        )
    reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
    return CheckpointError(f"{file}: not a readable checkpoint ({reason})")


def _is_saved_by_torch(file: Path) -> bool:
    """Whether a file begins as torch's do, today's archives and the pickles of before."""
    with file.open("rb") as opened:
        start = opened.read(4)
    return start == b"PK\x03\x04" or start[:1] == b"\x80"


def as_plain(value: Any) -> Any:
    """Rebuild nested settings from types that every ``torch.load`` accepts.

    numpy numbers and arrays become Python ones, paths become text, tuples stay tuples, tensors stay as they are.
    """
    if isinstance(value, Mapping):
        return {as_plain(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(as_plain(item) for item in value)
    if isinstance(value, (list, set, frozenset)):
        return [as_plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value
