"""What a data folder was made from, and which files that made, as kept on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from escaip_fairchem.errors import DataError

from .writer import save_text

FORMAT_VERSION = 4


@dataclass(frozen=True)
class Manifest:
    """The command and everything that decides what it writes.

    Attributes:
        command: Name of the command.
        decides: Options and inputs, as JSON holds them.
        later: Names of those that matter only once all input has been read, so that unfinished work serves any of
            their values.
        version: Layout of the files that the command writes.
    """

    command: str
    decides: Mapping[str, Any]
    later: frozenset[str] = frozenset()
    version: int = FORMAT_VERSION

    @classmethod
    def of(cls, command: str, decides: Mapping[str, Any], *, later: Sequence[str] = ()) -> Manifest:
        """Build it from any values that JSON can hold (tuples become lists)."""
        return cls(command, json.loads(json.dumps(decides, default=str)), frozenset(later))

    def differences(self, other: Manifest, *, of_reading: bool = False) -> list[str]:
        """Name what differs from another manifest, with both values.

        Args:
            other: The manifest that was found.
            of_reading: Look only at what decides the reading of the input.
        """
        for what, there, now in (
            ("format version", other.version, self.version),
            ("command", other.command, self.command),
        ):
            if there != now:
                return [f"{what}: {there!r} there, {now!r} now"]
        keys = sorted((set(self.decides) | set(other.decides)) - (self.later if of_reading else frozenset()))
        changed = [key for key in keys if self.decides.get(key) != other.decides.get(key)]
        return [
            f"{key}: {_short(other.decides.get(key))} there, {_short(self.decides.get(key))} now" for key in changed
        ]


@dataclass(frozen=True, kw_only=True)
class Record:
    """A manifest as it is kept in a folder.

    Attributes:
        manifest: What was, or is being, made.
        complete: All of it is there.
        files: What the command wrote, relative to the folder.
        disposable: Of unfinished work: its run has ended, and what it read is kept only to save time.
    """

    manifest: Manifest
    complete: bool = False
    files: Sequence[str] = ()
    disposable: bool = False

    def is_whole(self, folder: Path) -> bool:
        """Whether the folder still holds everything."""
        return self.complete and all((folder / name).is_file() for name in self.files)

    def save(self, path: Path) -> None:
        """Write the record to a file."""
        content = {
            "format": self.manifest.version,
            "command": self.manifest.command,
            "complete": self.complete,
            "disposable": self.disposable,
            "files": list(self.files),
            "decides": self.manifest.decides,
        }
        save_text(path, json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Record | None:
        """Read a record; None where there is none.

        Raises:
            DataError: The file holds something else.
        """
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            manifest = Manifest(content["command"], content["decides"], version=int(content["format"]))
            return cls(
                manifest=manifest,
                complete=bool(content["complete"]),
                files=tuple(map(str, content["files"])),
                disposable=bool(content["disposable"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} cannot be read ({error!r}); if nothing in {path.parent} is needed any more, remove that folder"
            ) from None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
