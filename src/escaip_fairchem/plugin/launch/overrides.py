"""Settings by dotted keys, on the command line as ``key=value``."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

import yaml

from escaip_fairchem.errors import ConfigError, nearest

_WORDS = {"true": True, "false": False, "null": None}


def apply_overrides(config: dict[str, Any], overrides: Iterable[str]) -> None:
    """Put overrides into a configuration.

    Args:
        config: The configuration; it is changed.
        overrides: ``a.b=value`` or ``--a.b=value``. A part of the key may be the position in a list, or a key of one of
            the mappings in the list: ``loss_functions.energy.coefficient=2``. See `parse_value` for values.

    Raises:
        ConfigError: An override has no ``=`` or no key, or leads through something that holds no keys.
    """
    for override in overrides:
        key, equals, value = override.removeprefix("--").partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"cannot read {override!r} as a setting: write key=value, as in optim.lr_initial=1e-4")
        put_setting(config, key, parse_value(value))


def parse_value(text: str) -> Any:
    """Read a value as Python writes it, else as YAML's words and brackets, else as text.

    fairchem reads ``false`` as a text, which counts as true, and ``[a, b]`` as a text as well.
    """
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass  # not a Python literal; below is what it may be instead
    if text[:1] in "[{" and text:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"cannot read {text!r}: {str(error).splitlines()[0]}") from error
    return text


def put_setting(config: dict[str, Any], key: str, value: Any) -> None:
    """Put one setting into a configuration.

    Args:
        config: The configuration; it is changed. Sections that are missing are made.
        key: Its parts, joined by dots: keys, positions in lists, or a key of one of the mappings in a list.
        value: The value, which the configuration then holds itself.

    Raises:
        ConfigError: The key leads through something that holds no keys, or to no entry of a list.
    """
    node: Any = config
    parts = key.split(".")
    for part in parts[:-1]:
        node = step_into(node, part, key)
    if isinstance(node, list):
        node[_position(node, parts[-1], key)] = value
    elif isinstance(node, dict):
        node[parts[-1]] = value
    else:
        raise ConfigError(f"cannot set {key}: {'.'.join(parts[:-1])} is {node!r}, which has no keys")


def step_into(node: Any, part: str, key: str) -> Any:
    """Go one part of a key deeper into a configuration.

    Args:
        node: Where the parts before have led to; a mapping without the part gets an empty one there.
        part: A key, a position in a list, or a key of one of the mappings in a list.
        key: The whole key, for messages.

    Raises:
        ConfigError: There is nothing to go into.
    """
    if isinstance(node, list):
        if not part.isdigit():
            owners = [item for item in node if isinstance(item, dict) and part in item]
            if len(owners) == 1:
                return owners[0][part]
        return node[_position(node, part, key)]
    if not isinstance(node, dict):
        raise ConfigError(f"cannot set {key}: what is before {part!r} is {node!r}, which has no keys")
    if node.get(part) is None:
        node[part] = {}
    return node[part]


def _position(items: list[Any], part: str, key: str) -> int:
    if part.isdigit() and int(part) < len(items):
        return int(part)
    names = [str(name) for item in items if isinstance(item, dict) for name in item]
    known = [*names, *map(str, range(len(items)))]
    raise ConfigError(
        f"cannot set {key}: {part!r} is neither a position in that list nor a key in it{nearest(part, known)}"
    )
