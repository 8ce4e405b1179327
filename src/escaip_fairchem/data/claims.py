"""A folder that one process alone writes into, where a data set appears only when it is whole.

Unfinished work lies in ``OUT/.partial``, described by ``OUT/.partial.json``; what ``OUT/manifest.json`` describes
stays untouched beside it until ``publish``. Only files that a manifest lists are ever replaced or removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from escaip_fairchem.errors import DataError

from .manifest import Manifest, Record

NAME = "manifest.json"
PARTIAL = ".partial"
WORK = ".partial.json"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A folder that this process alone may write into.

    Attributes:
        out: The folder.
        complete: The same data set is there already, whole.
        manifest: What is being made.
        replaces: Files of the data set that is there and stays until the new one is whole.
    """

    out: Path
    complete: bool
    manifest: Manifest
    replaces: Sequence[str] = ()

    @property
    def staged(self) -> Path:
        """Folder for what was read; an earlier, interrupted run may have left some of it."""
        return self.out / PARTIAL / "read"

    @property
    def new(self) -> Path:
        """Folder for the files of the new data set, laid out as in ``out``."""
        return self.out / PARTIAL / "new"

    def begin_writing(self) -> None:
        """Empty the folder of new files, in which a run with other options may have left some."""
        shutil.rmtree(self.new, ignore_errors=True)
        self.new.mkdir(parents=True)


@contextmanager
def claim(out: Path, manifest: Manifest, *, outputs: Sequence[str], overwrite: bool) -> Iterator[Claim]:
    """Take a folder for writing, after making sure that nothing else is in it or working on it.

    Args:
        out: The folder; made if missing.
        manifest: What is going to be made.
        outputs: Every name that the command may write in the folder.
        overwrite: Replace a data set that is there, and discard the unfinished work of another run.

    Yields:
        The claim.

    Raises:
        DataError: Another process is writing there, the folder holds a different set or files of someone else, or it
            cannot be written to.
    """
    with _locked(out):
        placed = Record.load(out / NAME)
        if placed is not None and not overwrite:
            what = "a data set" if placed.complete else "the unfinished work of a run"
            _refuse_other(out, what, manifest.differences(placed.manifest))
            if placed.is_whole(out):
                _discard_leftovers(out, manifest)
                yield Claim(out=out, complete=True, manifest=manifest)
                return
        files = () if placed is None else placed.files
        _refuse_foreign(out, outputs, files)
        _prepare_work(out, manifest, overwrite=overwrite)
        yield Claim(out=out, complete=False, manifest=manifest, replaces=files)


def publish(claimed: Claim) -> None:
    """Move the new files to where users look for them, in place of those of the data set that was there before."""
    out, new = claimed.out, claimed.new
    files = sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())
    outdated = set(claimed.replaces) - set(files)
    record = Record(manifest=claimed.manifest, files=sorted({*files, *outdated}))
    record.save(out / NAME)  # so that a run stopped below leaves nothing that no manifest lists
    for name in outdated:
        _remove(out, name)
    for name in files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).replace(out / name)
    replace(record, files=files, complete=True).save(out / NAME)
    abandon(claimed)


def keep(claimed: Claim) -> None:
    """Leave what was read for another attempt; one that cannot use it may discard it without asking."""
    Record(manifest=claimed.manifest, disposable=True).save(claimed.out / WORK)


def abandon(claimed: Claim) -> None:
    """Remove all unfinished work, so that the next attempt may use any options."""
    _discard_work(claimed.out)


def _refuse_other(out: Path, what: str, differences: Sequence[str]) -> None:
    if differences:
        raise DataError(
            f"{out} holds {what} that was made differently ({'; '.join(differences)}). Choose another folder, or pass "
            f"--overwrite to replace it"
        )


def _refuse_foreign(out: Path, outputs: Sequence[str], known: Sequence[str]) -> None:
    """Other files may lie in the folder, but none under a name that would be written."""
    ours = {name.split("/", maxsplit=1)[0] for name in known}
    found = sorted(name for name in outputs if name not in ours and os.path.lexists(out / name))
    partial = out / PARTIAL
    if not (out / WORK).exists() and partial.exists() and not (partial.is_dir() and not any(partial.iterdir())):
        found.append(PARTIAL)
    if found:
        raise DataError(
            f"{out} already holds {', '.join(found)}, which no command of this kind has recorded as its own. "
            f"Choose another folder, or move them away"
        )


def _prepare_work(out: Path, manifest: Manifest, *, overwrite: bool) -> None:
    left = Record.load(out / WORK)
    if left is not None and (differences := manifest.differences(left.manifest, of_reading=True)):
        if not (overwrite or left.disposable):
            _refuse_other(out, "the unfinished work of a run", differences)
        _discard_work(out)
    with _complaining(out):
        Record(manifest=manifest).save(out / WORK)
        (out / PARTIAL).mkdir(exist_ok=True)


def _discard_leftovers(out: Path, manifest: Manifest) -> None:
    """Finish what a run that was stopped at its very end had left to do: remove what it no longer needed."""
    left = Record.load(out / WORK)
    if left is not None and not manifest.differences(left.manifest):
        _discard_work(out)


def _discard_work(out: Path) -> None:
    if (out / PARTIAL).exists():
        shutil.rmtree(out / PARTIAL)
    (out / WORK).unlink(missing_ok=True)  # last: unfinished work without its description would be a stranger's


def _remove(out: Path, name: str) -> None:
    """Remove a file, and the folders below ``out`` that it leaves empty."""
    path = out / name
    path.unlink(missing_ok=True)
    for folder in path.parents:
        if folder == out or not folder.is_dir() or any(folder.iterdir()):
            return
        folder.rmdir()


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases however the process ends."""
    if out.is_file():
        raise DataError(f"OUT {out} is a file; the last argument is the folder to write into")
    with _complaining(out):
        out.mkdir(parents=True, exist_ok=True)
        file = (out / ".lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another process is writing into {out}; wait for it, or choose another folder") from None
        yield


@contextmanager
def _complaining(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write into OUT {out} ({error}); choose another folder") from error
