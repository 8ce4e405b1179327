"""What a user may decide about a conversion."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ase.io.formats import ioformats

from escaip_fairchem.errors import DataError, nearest

from .checks import Limits
from .defaults import SHARD_ROWS
from .labels import LabelOptions
from .raw import RAW_FORMATS
from .sources import DATABASE_FORMS
from .splits import SplitOptions


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Everything but the input that decides what a conversion writes.

    Attributes:
        form: ASE's name of the input's format, or a raw format's; None recognises each file.
        labels: Where the labels are, and their units.
        limits: What is usable.
        split: How to divide the structures.
        split_by: Entry of ``info`` whose values never span two splits, or ``file``.
        linear_references: Fit energies per element and name them in the dataset section.
        subtract_references: Store energies minus their references instead, for energies so large that float32, in
            which fairchem collates them, rounds away what matters.
        limit: Read this many structures at most.
        shard_rows: Structures per file.
        count_by: Entry of ``info`` by whose values usable structures are counted.
        remarks: Makes sentences for the report, about what the other options mean, from these counts; None: none.
    """

    form: str | None = None
    labels: LabelOptions = field(default_factory=LabelOptions)
    limits: Limits = field(default_factory=Limits)
    split: SplitOptions = field(default_factory=SplitOptions)
    split_by: str | None = None
    linear_references: bool = True
    subtract_references: bool = False
    limit: int | None = None
    shard_rows: int = SHARD_ROWS
    count_by: str | None = None
    remarks: Callable[[Mapping[str, int]], Iterable[str]] | None = None

    def __post_init__(self) -> None:
        _check_format(self.form)
        if self.subtract_references and "energy" not in self.limits.require:
            raise DataError("--subtract-references needs the energy of every structure: add energy to --require")
        if self.subtract_references and not self.linear_references:
            raise DataError("--subtract-references needs references: leave out --no-linear-references")
        if (self.limit is not None and self.limit < 1) or self.shard_rows < 1:
            raise DataError(f"--limit and --shard-size must be at least 1, got {self.limit} and {self.shard_rows}")


def _check_format(form: str | None) -> None:
    if form is None or form in DATABASE_FORMS or form in RAW_FORMATS:
        return
    if form not in ioformats:
        raise DataError(f"--format: ASE knows no format {form!r}{nearest(form, [*ioformats, *RAW_FORMATS])}")
    if not ioformats[form].can_read:
        raise DataError(f"--format: ASE writes {form!r}, but cannot read it")
