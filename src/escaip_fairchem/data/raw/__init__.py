"""Formats in which benchmarks are published, one module each.

A module defines a :class:`~escaip_fairchem.data.sources.RawFormat`, which ``escaip data convert --format NAME`` reads
and which the benchmark's own command stands on.
"""

from __future__ import annotations

from escaip_fairchem.data.sources import RawFormat

from .molecule_npz import MD22, RMD17
from .mptrj import MPTRJ
from .spice import SPICE

_ALL: tuple[RawFormat, ...] = (MD22, MPTRJ, RMD17, SPICE)

RAW_FORMATS = {raw.name: raw for raw in _ALL}
"""By name."""
