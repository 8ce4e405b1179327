"""Start fairchem's tasks: ``fairchem main``, with checks and defaults, and fairchem's own command as it is."""

from __future__ import annotations

from escaip_fairchem.plugin.launch.main import run_main, run_upstream

__all__ = ["run_main", "run_upstream"]
