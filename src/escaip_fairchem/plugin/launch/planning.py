"""What would go wrong with runs only after some of them were queued."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from escaip_fairchem.errors import ConfigError, RunFolderError
from escaip_fairchem.runs.records import STATUS_NAME, SUBMISSION_NAME

_TRACES = ("checkpoint.pt", STATUS_NAME, SUBMISSION_NAME)


def check_plan(configs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse new runs that share a name, or whose folder holds an earlier run.

    Args:
        configs: Whole configurations, each with the name of its run. None of them is meant to continue a run.

    Raises:
        ConfigError: Runs share a name; the message has a line for every problem of every run.
        RunFolderError: Nothing but folders stands in the way; the message has a line for each.
    """
    names = list(_shared_names(configs))
    folders = list(_used_folders(configs))
    if names:
        raise ConfigError("\n".join(names + folders))
    if folders:
        raise RunFolderError("\n".join(folders))


def _shared_names(configs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    numbers: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        numbers.setdefault(str(config["timestamp_id"]), []).append(number)
    for name, owners in numbers.items():
        if len(owners) > 1:
            yield (
                f"timestamp_id {name}: runs {', '.join(map(str, owners))} would write into the same folder; give each "
                "a name of its own"
            )


def _used_folders(configs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    folders = {_folder(config): None for config in configs if _writes_checkpoints(config)}
    for folder in folders:
        found = [name for name in _TRACES if (folder / name).exists()]
        if found:
            yield (
                f"{folder}: holds {', '.join(found)} of an earlier run; `escaip resubmit {folder}` continues it; "
                "choose another --identifier for a new one"
            )


def _writes_checkpoints(config: Mapping[str, Any]) -> bool:
    return config["mode"] == "train" and not config.get("is_debug")


def _folder(config: Mapping[str, Any]) -> Path:
    return Path(config["run_dir"]) / "checkpoints" / str(config["timestamp_id"])
