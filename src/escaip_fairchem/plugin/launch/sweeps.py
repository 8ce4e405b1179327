"""Sweep files: runs that differ in some settings, as ``--sweep-yml`` takes them.

A file holds either fairchem's form, nested or dotted keys that end in lists, of which every combination is a run::

    optim:
      lr_initial: [0.0001, 0.0002]
    model.backbone.num_layers: [4, 6]

or at least one of the keys below. They combine: every entry of ``runs`` with every combination of ``grid`` with every
row of ``zip``. Where ``set`` gives a setting as well, the others win::

    name: widths                  # how the runs' names begin; by default as the file's does
    config: escaip_2m.yml         # the runs' configuration where --config-yml is not given; relative to this file
    set:                          # settings of all runs, not axes
      optim: {max_epochs: 10}
    grid:                         # axes, as above
      optim: {lr_initial: [0.0001, 0.0002]}
    zip:                          # axes that advance together
      model.backbone: {hidden_size: [256, 512], atten_num_heads: [8, 16]}
    runs:                         # runs one by one
      - {name: plain}
      - {name: large, config: escaip_large.yml, set: {optim.batch_size: 4}}
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from escaip_fairchem.errors import ConfigError, nearest
from escaip_fairchem.plugin.launch.overrides import put_setting, step_into
from escaip_fairchem.plugin.launch.sweep_names import LONGEST_NAME, check_name, clean, point_names
from escaip_fairchem.plugin.launch.sweep_sections import (
    Entry,
    flatten,
    locate,
    read_axes,
    read_entries,
    read_rows,
    read_yaml,
    refuse_unknown,
)

RESERVED = frozenset({"grid", "zip", "runs", "set", "config", "name"})
"""Keys that only this package's form has at its top."""


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        name: A folder's name that no other run of the sweep has.
        config: The configuration that the run alone has; None: that of the command line, else the sweep's.
        changes: The settings that the sweep gives the run, by dotted keys, in the order in which they are to be put.
    """

    name: str
    config: Path | None
    changes: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep file says.

    Attributes:
        path: The file.
        config: The configuration of runs without one of their own where the command line gives none.
        runs: The runs, in the file's order.
    """

    path: Path
    config: Path | None
    runs: tuple[SweepRun, ...]


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file.

    Args:
        path: The file, in either form.

    Raises:
        ConfigError: It cannot be read, something in it means nothing, or two of its runs are the same.
    """
    try:
        return _understand(path, read_yaml(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def check_known(config: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Refuse changes that cannot be put into a configuration, or that are about a section that it does not have.

    A new key in a section that is there is no error: the checks of the whole configuration know which keys are read.

    Args:
        config: The configuration; it stays as it is.
        changes: Settings by dotted keys.

    Raises:
        ConfigError: That is so; the message names the key.
    """
    apply_changes(copy.deepcopy(dict(config)), changes)


def apply_changes(config: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Put changes into a configuration, as copies: it shares nothing with other runs.

    Args:
        config: The configuration; it is changed.
        changes: Settings by dotted keys.

    Raises:
        ConfigError: As of `check_known`; some of the changes may have been made.
    """
    for key, value in changes.items():
        _require_section(config, key)
        put_setting(config, key, copy.deepcopy(value))


def _require_section(config: dict[str, Any], key: str) -> None:
    node: Any = config
    parts = key.split(".")
    for depth, part in enumerate(parts[:-1]):
        if isinstance(node, dict) and part not in node:
            if _is_known(parts[: depth + 1]):
                return  # made by the first of its settings, which the checks of the whole configuration know
            place = ".".join(parts[:depth]) or "the configuration"
            suggestion = nearest(part, map(str, node)) if node else ""
            raise ConfigError(f"cannot set {key}: {place} has no {part!r}{suggestion}")
        node = step_into(node, part, key)


def _is_known(parts: Sequence[str]) -> bool:
    """Whether a section that a configuration lacks is one that it may have."""
    from escaip_fairchem.plugin.launch import known_keys

    *place, key = parts
    if place[:1] == ["dataset"] and len(place) == 2:
        return key in known_keys.DATASET | known_keys.OWN_DATASET.get(place[1], frozenset())
    sections = {
        (): known_keys.TOP,
        ("dataset",): known_keys.SPLITS,
        ("optim",): known_keys.OPTIM,
        ("task",): known_keys.TASK,
        ("evaluation_metrics",): known_keys.EVALUATION,
    }
    return key in sections.get(tuple(place), frozenset())


def _understand(path: Path, content: Any) -> Sweep:
    if not isinstance(content, dict) or not content:
        raise ConfigError(
            f"holds {content!r} where keys with lists of values are needed, as in optim.lr_initial: [0.0001, 0.0002]"
        )
    place = "grid."
    if RESERVED.isdisjoint(content):
        content, place = {"grid": content}, ""
    refuse_unknown(content, RESERVED, "", "; settings go below `grid:`, `zip:` or `set:`")
    if not {"grid", "zip", "runs"} & set(content):
        raise ConfigError("makes no runs: give it axes below `grid:` or `zip:`, or runs below `runs:`")
    grid = read_axes(content["grid"], place) if "grid" in content else {}
    rows = read_rows(content["zip"]) if "zip" in content else {}
    for key in grid:
        if key in rows:
            raise ConfigError(f"{key}: is an axis of `grid:` and of `zip:`; keep one of them")
    prefix = check_name(content["name"], "name") if "name" in content else clean(path.stem)[:LONGEST_NAME]
    config = locate(content["config"], "config", path) if "config" in content else None
    shared = flatten(content["set"], "set.") if "set" in content else {}
    entries = [Entry(name="", config=None, changes={})]
    if "runs" in content:
        entries = read_entries(content["runs"], path, {*grid, *rows})
    runs = tuple(_combine(prefix, shared, grid, rows, entries))
    _refuse_twins(runs, config)
    return Sweep(path=path, config=config, runs=runs)


def _combine(
    prefix: str,
    shared: Mapping[str, Any],
    grid: Mapping[str, list[Any]],
    rows: Mapping[str, list[Any]],
    entries: Sequence[Entry],
) -> Iterator[SweepRun]:
    axes = {**grid, **rows}
    points = list(_points(grid, rows))
    names = point_names(axes, points)
    for entry in entries:
        for point, name in zip(points, names, strict=True):
            chosen = {key: axes[key][index] for key, index in point.items()}
            yield SweepRun(
                name="-".join(part for part in (prefix, entry.name, name) if part),
                config=entry.config,
                changes=_merge(shared, chosen, entry.changes),
            )


def _points(grid: Mapping[str, list[Any]], rows: Mapping[str, list[Any]]) -> Iterator[dict[str, int]]:
    """Combinations, as positions in the axes; the last axis advances first, and rows before all."""
    number = len(next(iter(rows.values()))) if rows else 1
    for chosen in itertools.product(*(range(len(values)) for values in grid.values())):
        for row in range(number):
            yield {**dict(zip(grid, chosen, strict=True)), **dict.fromkeys(rows, row)}


def _merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Join settings, of which later ones win."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            merged.pop(key, None)  # a setting takes the place of the layer that it is from
            merged[key] = copy.deepcopy(value)
    keys = list(merged)
    for position, key in enumerate(keys):
        for earlier in keys[:position]:
            if earlier.startswith(f"{key}."):
                raise ConfigError(
                    f"{key}: replaces all that is below it, {earlier} included, which is set as well; leave one out, "
                    f"or set the keys below {key} one by one"
                )
    return merged


def _refuse_twins(runs: Sequence[SweepRun], config: Path | None) -> None:
    by_name: dict[str, int] = {}
    by_settings: dict[str, int] = {}
    for index, run in enumerate(runs):
        settings = yaml.safe_dump([str(run.config or config), run.changes])
        other = by_settings.setdefault(settings, index)
        if other != index:
            raise ConfigError(
                f"run {other} ({runs[other].name}) and run {index} ({run.name}) have the same settings; remove one"
            )
        other = by_name.setdefault(run.name, index)
        if other != index:
            raise ConfigError(
                f"run {other} ({runs[other].changes}) and run {index} ({run.changes}) would both be called {run.name}; "
                "rename an entry of `runs:`"
            )
