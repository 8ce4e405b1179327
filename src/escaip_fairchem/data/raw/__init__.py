"""Formats in which benchmarks are published, one module each.

A module defines a :class:`~escaip_fairchem.data.sources.RawFormat`, which ``escaip data convert --format NAME`` reads
and which the benchmark's own command stands on.
"""

from __future__ import annotations

from escaip_fairchem.data.sources import RawFormat

_ALL: tuple[RawFormat, ...] = ()

RAW_FORMATS = {raw.name: raw for raw in _ALL}
"""By name."""
