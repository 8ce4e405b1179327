"""Stand-in for ``torch_sparse`` in plain PyTorch: the part of `SparseTensor` that fairchem-core 1.10 uses.

``SparseStorage`` is absent on purpose: torch_geometric takes the pair for the real package.
"""

from __future__ import annotations

from escaip_fairchem._imports import missing_attribute

from .tensor import SparseTensor

__version__ = "0.0.0+escaip.standin"
__all__ = ["SparseTensor"]


def __getattr__(name: str) -> object:
    """Name the package to install for whatever is not defined here."""
    raise missing_attribute("torch_sparse", f"torch_sparse.{name}")
