"""Remedies for what breaks in fairchem-core 1.10 with today's packages, applied when the plugin is imported.

A remedy changes fairchem rather than the package whose release broke it, as far as that is possible. Where the
installed versions do not need it, nothing behaves differently with it; nor does anything when it is applied again.
"""

from __future__ import annotations

from escaip_fairchem.plugin.compat.environments import guard_lmdb_files
from escaip_fairchem.plugin.compat.loading import allow_plain_types_in_checkpoints
from escaip_fairchem.plugin.compat.remedies import (
    complete_optimizable_batch,
    give_sweeps_their_mapping,
    provide_sph_harm,
    register_transform,
)

__all__ = ["apply", "register_transform"]


def apply() -> None:
    """Apply every remedy that the installed versions need."""
    provide_sph_harm()
    give_sweeps_their_mapping()
    complete_optimizable_batch()
    allow_plain_types_in_checkpoints()
    guard_lmdb_files()
