"""The trainer ``escaip_forces``: fairchem's, with exact resume, atomic checkpoints, bf16, and clear stops."""

from __future__ import annotations

from escaip_fairchem.plugin.trainer.trainer import EScAIPForcesTrainer

__all__ = ["EScAIPForcesTrainer"]
