"""Names of a sweep's runs: short, and fit for folders."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import yaml

from escaip_fairchem.errors import ConfigError

_UNFIT = re.compile(r"[^A-Za-z0-9._=+-]")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=+-]*")
LONGEST_NAME, _LONGEST_VALUE, _LONGEST_POINT = 64, 24, 120
"""Characters. A folder's name has at most 255, and fairchem's loggers add to it."""


def clean(text: str) -> str:
    """Replace the characters that do not belong into a folder's name by ``_``."""
    return _UNFIT.sub("_", text)


def check_name(name: Any, place: str) -> str:
    """Return a name that a user has given.

    Args:
        name: The name.
        place: Where it stands, for messages.

    Raises:
        ConfigError: It cannot be a folder's name.
    """
    if not isinstance(name, str):
        raise ConfigError(f"{place}: {name!r} is no text; quote it")
    if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise ConfigError(
            f"{place}: {name!r} becomes a folder's name; write at most {LONGEST_NAME} of the characters A-Z, a-z, 0-9 "
            "and ._=+-, and begin with a letter, a digit or _"
        )
    return name


def short_keys(keys: Collection[str]) -> dict[str, str]:
    """Shorten dotted keys to the last parts that tell each from the others."""
    return {key: _short(key, [other for other in keys if other != key]) for key in keys}


def _short(key: str, others: Sequence[str]) -> str:
    parts = key.split(".")
    for first in range(len(parts) - 1, 0, -1):
        end = ".".join(parts[first:])
        if not any(f".{other}".endswith(f".{end}") for other in others):
            return end
    return key


def point_names(axes: Mapping[str, Sequence[Any]], points: Sequence[Mapping[str, int]]) -> list[str]:
    """Name the points of a grid.

    Args:
        axes: Values by dotted keys.
        points: Positions in the axes, by their keys.

    Returns:
        ``lr_initial=0.0004-num_layers=4`` for each; ``0``, ``1``, … for all where that becomes too long for one.
    """
    labels = {key: clean(label) for key, label in short_keys(axes).items()}
    values = {key: value_names(items) for key, items in axes.items()}
    names = ["-".join(f"{labels[key]}={values[key][index]}" for key, index in point.items()) for point in points]
    if any(len(name) > _LONGEST_POINT for name in names):
        return [str(index) for index in range(len(points))]
    return names


def value_names(values: Sequence[Any]) -> list[str]:
    """Write values in short, equal ones alike and different ones differently.

    Args:
        values: Those of an axis.

    Returns:
        Values as text, elements of lists joined by ``-``. What has no short text, or shares it with another value, is
        replaced by its position.
    """
    written = [yaml.safe_dump(value) for value in values]
    first = [written.index(text) for text in written]
    texts = [_text(value) for value in values]
    owners = {text: {one for one, other in zip(first, texts, strict=True) if other == text} for text in texts}
    names = [
        str(index) if text is None or len(owners[text]) > 1 else text for index, text in zip(first, texts, strict=True)
    ]
    if len(set(names)) < len(set(first)):  # a position reads like another value
        return [str(index) for index in first]
    return names


def _text(value: Any) -> str | None:
    if isinstance(value, dict):
        return None
    if isinstance(value, list):
        items = [_text(item) for item in value]
        text = "-".join(item for item in items if item is not None)
        return text if text and None not in items and len(text) <= _LONGEST_VALUE else None
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else clean(str(value))
    return text if 0 < len(text) <= _LONGEST_VALUE else None
