"""What fairchem-core v1 sees of this package; importing it registers every name and applies the remedies.

It is imported by itself right after ``fairchem.core`` (see ``escaip_fairchem._imports``).
"""

from __future__ import annotations

from escaip_fairchem.plugin import compat, loggers, models, trainer

__all__ = ["compat", "loggers", "models", "trainer"]

compat.apply()
