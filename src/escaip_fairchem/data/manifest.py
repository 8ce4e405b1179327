"""What a data folder was made from, so that two different sets never mix in one folder."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from escaip_fairchem.errors import DataError

from .writer import save_text

NAME = "manifest.json"
PARTIAL = ".partial"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """The command and everything that decides what it writes.

    Attributes:
        command: Name of the command.
        decides: Options and inputs, as JSON holds them.
    """

    command: str
    decides: Mapping[str, Any]

    @classmethod
    def of(cls, command: str, decides: Mapping[str, Any]) -> Manifest:
        """Build it from any values that JSON can hold (tuples become lists)."""
        return cls(command, json.loads(json.dumps(decides, default=str)))

    def differences(self, other: Manifest) -> list[str]:
        """Name what differs from another manifest, with both values."""
        if self.command != other.command:
            return [f"command: {other.command!r} there, {self.command!r} now"]
        keys = sorted(set(self.decides) | set(other.decides))
        changed = [key for key in keys if self.decides.get(key) != other.decides.get(key)]
        return [
            f"{key}: {_short(other.decides.get(key))} there, {_short(self.decides.get(key))} now" for key in changed
        ]


@dataclass(frozen=True)
class Claim:
    """A folder that this process alone may write into.

    Attributes:
        out: The folder.
        partial: Folder within it for unfinished work; what an earlier, interrupted run left may be in it.
        complete: The same data set is there already, whole.
        manifest: What is being made.
    """

    out: Path
    partial: Path
    complete: bool
    manifest: Manifest


@contextmanager
def claim(out: Path, manifest: Manifest, *, outputs: Sequence[str], overwrite: bool) -> Iterator[Claim]:
    """Take a folder for writing, after making sure that nothing else is in it or working on it.

    Args:
        out: The folder; made if missing.
        manifest: What is going to be made.
        outputs: Every name that the command writes in the folder.
        overwrite: Remove the outputs of an earlier run that differs.

    Yields:
        The claim.

    Raises:
        DataError: Another process is writing there, or the folder holds a different set, or files of someone else.
    """
    out.mkdir(parents=True, exist_ok=True)
    partial = out / PARTIAL
    with _locked(out):
        existing, complete = _read(out)
        if existing is None:
            _refuse_foreign(out, outputs)
        elif differences := manifest.differences(existing):
            if not overwrite:
                raise DataError(
                    f"{out} holds {'a data set' if complete else 'the unfinished work of a run'} that was made "
                    f"differently ({'; '.join(differences)}). Choose another folder, or pass --overwrite to replace it"
                )
            _remove(out, outputs)
            complete = False
        elif overwrite and complete:
            _remove(out, outputs)
            complete = False
        if not complete:
            _save(out, manifest, complete=False)
            partial.mkdir(exist_ok=True)
        yield Claim(out, partial, complete, manifest)


def place(claimed: Claim, name: str) -> None:
    """Move a finished file or folder from the folder of unfinished work to where users look for it."""
    target = claimed.out / name
    if target.is_dir():  # left by a run that was stopped between placing this and finishing
        shutil.rmtree(target)
    (claimed.partial / name).replace(target)


def finish(claimed: Claim) -> None:
    """Record that everything is in place, and remove the folder of unfinished work."""
    _save(claimed.out, claimed.manifest, complete=True)
    shutil.rmtree(claimed.partial)


def abandon(claimed: Claim) -> None:
    """Leave nothing behind, so that the next attempt may use other options."""
    _remove(claimed.out, [])


def _save(out: Path, manifest: Manifest, *, complete: bool) -> None:
    content = {
        "format": FORMAT_VERSION,
        "command": manifest.command,
        "complete": complete,
        "decides": manifest.decides,
    }
    save_text(out / NAME, json.dumps(content, indent=2) + "\n")


def _read(out: Path) -> tuple[Manifest | None, bool]:
    path = out / NAME
    if not path.is_file():
        return None, False
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Manifest(content["command"], content["decides"]), bool(content["complete"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}); if nothing in {out} is needed any more, remove it") from None


def _refuse_foreign(out: Path, outputs: Sequence[str]) -> None:
    """A folder without a manifest may hold other files, but none under a name that would be written."""
    found = sorted(name for name in [*outputs, PARTIAL] if (out / name).exists())
    if found:
        raise DataError(
            f"{out} already holds {', '.join(found)}, which no command of this kind has recorded as its own. "
            f"Choose another folder, or move them away"
        )


def _remove(out: Path, outputs: Sequence[str]) -> None:
    for name in [*outputs, PARTIAL, NAME]:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases however the process ends."""
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another process is writing into {out}; wait for it, or choose another folder") from None
        yield


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
