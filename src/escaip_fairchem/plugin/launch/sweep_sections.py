"""The sections of a sweep file, each read and checked by itself; messages leave the file's name to the caller."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from escaip_fairchem.errors import ConfigError, nearest
from escaip_fairchem.plugin.launch.sweep_names import check_name

_ENTRY = frozenset({"name", "config", "set"})


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry of ``runs:``.

    Attributes:
        name: Its name; empty for what stands in for entries where a file has none.
        config: Its own configuration.
        changes: Its own settings by dotted keys.
    """

    name: str
    config: Path | None
    changes: dict[str, Any]


def read_yaml(path: Path) -> Any:
    """Read a YAML file in which no key is given twice.

    Raises:
        ConfigError: It cannot be read, or is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_double_keys(yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError("not usable: something in it contains itself by an alias (*)") from error


def _refuse_double_keys(node: yaml.Node | None) -> None:
    """Refuse a key that is twice in a mapping: YAML's reader would drop the first without a word."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_double_keys(item)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                if key.value in lines:
                    raise ConfigError(
                        f"{key.value}: given twice, in line {lines[key.value]} and in line {line}; keep one of them"
                    )
                lines[key.value] = line
            _refuse_double_keys(value)


def refuse_unknown(section: Mapping[Any, Any], known: Collection[str], place: str, remedy: str = "") -> None:
    """Refuse keys that mean nothing.

    Args:
        section: The section.
        known: Keys that mean something.
        place: What stands before its keys in messages.
        remedy: What else to say.

    Raises:
        ConfigError: There is such a key.
    """
    for key in section:
        if key not in known:
            raise ConfigError(f"{place}{key}: unknown key{nearest(str(key), known)}{remedy}")


def flatten(section: Any, place: str) -> dict[str, Any]:
    """Read settings, nested or with dotted keys.

    Args:
        section: What the file holds.
        place: What stands before its keys in messages.

    Returns:
        What is no mapping, and empty mappings, by dotted keys.

    Raises:
        ConfigError: The section holds no keys, or a key is unusable or given twice.
    """
    if not isinstance(section, dict) or not section:
        raise ConfigError(f"{place.rstrip('.')}: {section!r} is given where keys with values are needed")
    flat: dict[str, Any] = {}
    for key, value in _leaves(section, "", place):
        if not all(key.split(".")):
            raise ConfigError(f"{place}{key}: a part of this key is empty; write it as in optim.lr_initial")
        if key in flat:
            raise ConfigError(f"{place}{key}: given twice, nested and with dots; keep one of them")
        flat[key] = value
    return flat


def _leaves(section: Mapping[Any, Any], prefix: str, place: str) -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise ConfigError(f"{place}{prefix}{key}: this key is not text but {key!r}; quote it")
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.", place)
        else:
            yield f"{prefix}{key}", value


def read_axes(section: Any, place: str) -> dict[str, list[Any]]:
    """Read axes: settings of which each is a list of values.

    Args:
        section: What the file holds.
        place: What stands before its keys in messages.

    Raises:
        ConfigError: As of `flatten`, or something is no list, or an empty one.
    """
    axes = flatten(section, place)
    for key, values in axes.items():
        if not isinstance(values, list):
            raise ConfigError(
                f"{place}{key}: {values!r} is no list of values; write [{values!r}] for one value, or put it below "
                "`set:`"
            )
        if not values:
            raise ConfigError(f"{place}{key}: [] holds no value, which leaves no run; give it some or remove the key")
    return axes


def read_rows(section: Any) -> dict[str, list[Any]]:
    """Read ``zip:``: axes that advance together.

    Raises:
        ConfigError: As of `read_axes`, or they differ in length.
    """
    axes = read_axes(section, "zip.")
    first, *others = axes
    for other in others:
        if len(axes[other]) != len(axes[first]):
            raise ConfigError(
                f"zip.{first} has {len(axes[first])} values and zip.{other} has {len(axes[other])}; they advance "
                "together, so give both the same number, or put one below `grid:`"
            )
    return axes


def read_entries(section: Any, path: Path, axes: Collection[str]) -> list[Entry]:
    """Read ``runs:``.

    Args:
        section: What the file holds.
        path: The file.
        axes: Dotted keys that no entry may set.

    Raises:
        ConfigError: An entry is unusable, or called as another is.
    """
    if not isinstance(section, list) or not section:
        raise ConfigError(f"runs: {section!r} is given where a list is needed, as in [{{name: a}}, {{name: b}}]")
    entries = [_read_entry(item, f"runs.{index}", path) for index, item in enumerate(section)]
    owners: dict[str, int] = {}
    for index, entry in enumerate(entries):
        other = owners.setdefault(entry.name, index)
        if other != index:
            raise ConfigError(f"runs.{other} and runs.{index} are both called {entry.name!r}; rename one")
        for key in entry.changes:
            if key in axes:
                raise ConfigError(
                    f"runs.{index}.set.{key}: it is an axis of `grid:` or `zip:` as well; keep one of them"
                )
    return entries


def _read_entry(item: Any, place: str, path: Path) -> Entry:
    if not isinstance(item, dict):
        raise ConfigError(f"{place}: {item!r} is given where keys are needed, as in {{name: a, set: {{…}}}}")
    refuse_unknown(item, _ENTRY, f"{place}.")
    if "name" not in item:
        raise ConfigError(f"{place}: has no name; add one, as in {{name: a}}")
    return Entry(
        name=check_name(item["name"], f"{place}.name"),
        config=locate(item["config"], f"{place}.config", path) if "config" in item else None,
        changes=flatten(item["set"], f"{place}.set.") if "set" in item else {},
    )


def locate(value: Any, place: str, path: Path) -> Path:
    """Find a configuration, whose name is relative to the sweep file.

    Args:
        value: What the file holds.
        place: Where it stands, for messages.
        path: The sweep file.

    Raises:
        ConfigError: There is no such file.
    """
    if not isinstance(value, str):
        raise ConfigError(f"{place}: {value!r} is no file; write the name of one, as in escaip_2m.yml")
    found = path.parent / value
    if not found.is_file():
        beside = [other.name for other in found.parent.glob("*.yml")]
        raise ConfigError(f"{place}: {found} does not exist{nearest(found.name, beside) if beside else ''}")
    return found
