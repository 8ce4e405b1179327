"""Tables of a model's errors: which rows, which columns, in which units, by the benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from escaip_fairchem.errors import ConfigError, DataError, nearest
from escaip_fairchem.evaluate.result_table import Column, ResultTable, Row, Value
from escaip_fairchem.plugin.evaluation_sets import SPLITS, require_different_names
from escaip_fairchem.plugin.set_errors import EVERYTHING, ErrorTotals

GroupedErrors = Mapping[str, ErrorTotals]
"""Errors on one data set by group."""

COUNTS = (
    Column(key="structures", heading="structures", whole=True, printed=False),
    Column(key="atoms", heading="atoms", whole=True, printed=False),
)
ERRORS = (
    Column(key="energy_mae", heading="energy MAE", unit="meV", digits=1),
    Column(key="energy_per_atom_mae", heading="energy MAE", unit="meV/atom", digits=2),
    Column(key="forces_mae", heading="force MAE", unit="meV/Å", digits=2),
    Column(key="forces_cosine_similarity", heading="force cosine", digits=4),
    Column(key="energy_forces_within_threshold", heading="EFwT", unit="%", digits=2),
    Column(key="stress_mae", heading="stress MAE", unit="meV/Å³", digits=3),
)
FACTORS = {"forces_cosine_similarity": 1.0, "energy_forces_within_threshold": 100.0}
"""From fairchem's numbers to those shown; all others are eV, and shown in meV."""
_OC_COLUMNS = ("energy_mae", "forces_mae", "forces_cosine_similarity", "energy_forces_within_threshold")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A benchmark's table.

    Attributes:
        title: Its heading.
        columns: Keys of the errors that it shows.
        sets: Names that data sets may have, in order; empty: any.
        group_by: What divides a set into rows, or None.
        mean: Whether a last row has the mean of the others, if all are there.
    """

    title: str
    columns: tuple[str, ...]
    sets: tuple[str, ...] = ()
    group_by: str | None = None
    mean: bool = True

    @property
    def outputs(self) -> tuple[str, ...]:
        """What a model must predict to fill the table."""
        return tuple(name for name in ("energy", "forces", "stress") if any(name in column for column in self.columns))

    def grouped_by(self, key: str | None) -> Preset:
        """Return the same table, with another key to divide by if one is given.

        Raises:
            ConfigError: It is a table without groups.
        """
        if key is None:
            return self
        if self.group_by is None:
            raise ConfigError(
                f"--group-by {key}: the table {self.title} has no groups; leave out --group-by or --table"
            )
        return replace(self, group_by=key)


PRESETS = {
    "oc20": Preset(
        title="OC20 S2EF, validation",
        columns=_OC_COLUMNS,
        sets=SPLITS["OC20"],
    ),
    "oc22": Preset(title="OC22 S2EF-Total", columns=_OC_COLUMNS, sets=SPLITS["OC22"], mean=False),
    "spice": Preset(
        title="SPICE by subset", columns=("energy_per_atom_mae", "forces_mae"), group_by="subset_family", mean=False
    ),
    "mptrj": Preset(title="MPtrj", columns=("energy_per_atom_mae", "forces_mae", "stress_mae")),
}


def preset_of(name: str) -> Preset:
    """Look a benchmark's table up.

    Raises:
        ConfigError: There is none of this name.
    """
    if name not in PRESETS:
        raise ConfigError(f"--table: unknown table {name!r}{nearest(name, PRESETS)}")
    return PRESETS[name]


def check_names(names: Sequence[str], preset: Preset | None) -> None:
    """Refuse names that occur twice, and those that a benchmark does not have.

    Raises:
        ConfigError: Names what is wrong.
    """
    require_different_names(names)
    if preset is None or not preset.sets:
        return
    unknown = [name for name in names if name not in preset.sets]
    if unknown:
        raise ConfigError(f"data set {unknown[0]!r}: not in the table {preset.title}{nearest(unknown[0], preset.sets)}")


def errors_table(found: Mapping[str, GroupedErrors], *, preset: Preset | None, group_by: str | None) -> ResultTable:
    """Lay out the errors on data sets.

    Args:
        found: By the name of the set.
        preset: A benchmark's table, or None for all errors that the model has.
        group_by: What the sets were divided by, if anything.

    Raises:
        DataError: There is nothing to show.
    """
    whole = {name: ErrorTotals.sum(groups.values()) for name, groups in found.items()}
    if not whole:
        raise DataError("no data set was evaluated; give at least one as NAME=SRC")
    columns = [*COUNTS, *_columns(list(whole.values()), preset)]
    if preset is not None and preset.sets:
        whole = {name: whole[name] for name in preset.sets if name in whole}
    if preset is not None and preset.group_by is not None:
        rows, notes = _rows_of_groups(found)
    elif group_by is not None:
        rows, notes = _rows_of_sets_and_groups(found, whole)
    else:
        rows, notes = [_row(name, totals) for name, totals in whole.items()], []
    missing = [] if preset is None else [name for name in preset.sets if name not in whole]
    if missing:
        notes = [*notes, f"not evaluated: {', '.join(missing)}"]
    elif len(whole) > 1 and (preset is None or preset.mean):
        rows.append(_averaged_row("mean", list(whole.values()), [1] * len(whole)))
        notes = [*notes, "mean: every data set counts the same, whatever its size"]
    title = "Errors" if preset is None else preset.title
    label = "data set" if preset is None or preset.group_by is None else preset.group_by
    return ResultTable(title=title, label=label, columns=columns, rows=rows, notes=notes)


def _columns(totals: Sequence[ErrorTotals], preset: Preset | None) -> list[Column]:
    if preset is None:
        has = {name for entry in totals for name in entry.counts}
        return [column for column in ERRORS if column.key in has]
    by_key = {column.key: column for column in ERRORS}
    return [by_key[key] for key in preset.columns]


def values_of(totals: ErrorTotals) -> dict[str, Value]:
    """Errors in the units that are shown, by column."""
    means = {name: totals.mean(name) for name in totals.counts}
    shown = {name: None if mean is None else FACTORS.get(name, 1000.0) * mean for name, mean in means.items()}
    return {"structures": totals.structures, "atoms": totals.atoms, **shown}


def _row(label: str, totals: ErrorTotals, *, summary: bool = False) -> Row:
    return Row(label=label, values=values_of(totals), summary=summary)


def _rows_of_sets_and_groups(
    found: Mapping[str, GroupedErrors], whole: Mapping[str, ErrorTotals]
) -> tuple[list[Row], list[str]]:
    rows = []
    for name, groups in found.items():
        rows += [_row(f"{name} {group}", totals) for group, totals in sorted(groups.items()) if group != EVERYTHING]
        rows.append(_row(f"{name} (all)", whole[name], summary=True))
    return rows, ["(all): all structures of the data set together"]


def _rows_of_groups(found: Mapping[str, GroupedErrors]) -> tuple[list[Row], list[str]]:
    """One row per group, over all sets together, and their mean weighted by numbers of configurations."""
    groups: dict[str, ErrorTotals] = {}
    for parts in found.values():
        for group, totals in parts.items():
            groups[group] = groups[group] + totals if group in groups else totals
    rows = [_row(group, totals) for group, totals in sorted(groups.items())]
    weights = [totals.structures for totals in groups.values()]
    rows.append(_averaged_row("weighted mean", list(groups.values()), weights))
    return rows, [
        "weighted mean: the errors of a subset count as often as it has configurations, without a logarithm; published "
        "means that are called log-weighted are other figures"
    ]


def _averaged_row(label: str, parts: Sequence[ErrorTotals], weights: Sequence[int]) -> Row:
    """Mean of the errors with these weights, where all parts have them; counts are summed."""
    rows = [values_of(part) for part in parts]
    values: dict[str, Value] = {key: sum(getattr(part, key) for part in parts) for key in ("structures", "atoms")}
    for key in (column.key for column in ERRORS):
        entries = [row.get(key) for row in rows]
        numbers = [entry for entry in entries if isinstance(entry, float)]
        if len(numbers) == len(rows):
            values[key] = sum(map(float.__mul__, numbers, map(float, weights))) / sum(weights)
    return Row(label=label, values=values, summary=True)
