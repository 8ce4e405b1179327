"""Formats in which benchmarks are published, one module each.

A module defines a :class:`~escaip_fairchem.data.sources.RawFormat`; ``escaip data convert --format NAME`` reads it
then, and the benchmark's own command on top of that.
"""

from __future__ import annotations

from escaip_fairchem.data.sources import RawFormat

from .molecule_npz import MD22, RMD17
from .mptrj import MPTRJ
from .spice import SPICE

RAW_FORMATS: dict[str, RawFormat] = {raw.name: raw for raw in (MD22, MPTRJ, RMD17, SPICE)}
"""By name."""
