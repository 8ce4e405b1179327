"""Files written by ``torch.save``, where ``torch.load`` accepts tensors and plain containers only."""

from __future__ import annotations

import codecs
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from fairchem.core.modules.normalization.element_references import LinearReferences
from fairchem.core.modules.normalization.normalizer import Normalizer

# One letter for every type of number; see numpy.sctypeDict.
_NUMBERS = "?bhilqBHILQefdg"
# numpy 2 renamed the module by which files name its two functions.
_NUMPY_HOMES = ("numpy.core.multiarray", "numpy._core.multiarray")


def allow_plain_types_in_checkpoints() -> None:
    """Let ``torch.load`` read what fairchem writes, still without running code that a file brings along.

    ``normalizers.pt`` and ``element_references.pt`` hold fairchem's two modules; ``normalizer: file:`` reads them back.
    Checkpoints of older releases hold numpy numbers (metrics), numpy arrays (random states) and paths.

    Torch before 2.6 asks for this where ``weights_only=True`` is given, as this package gives it.
    """
    types = [Normalizer, LinearReferences, set, codecs.encode, *_numpy_types(), *_path_types()]
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        types = [_under_its_name(*entry) if isinstance(entry, tuple) else entry for entry in types]
    torch.serialization.add_safe_globals(types)


def _under_its_name(target: Callable[..., Any], name: str) -> Any:
    """What torch before 2.6 finds under a name that is not the target's own: it looks at the attributes alone."""
    module, _, own = name.rpartition(".")
    if (target.__module__, target.__name__) == (module, own):
        return target

    def call(*arguments: Any) -> Any:
        return target(*arguments)

    call.__module__, call.__name__ = module, own
    return call


def _numpy_types() -> list[Any]:
    functions: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]]
    named = [(function, f"{home}.{function.__name__}") for function in functions for home in _NUMPY_HOMES]
    return [np.ndarray, np.dtype, *named, *{type(np.dtype(letter)) for letter in _NUMBERS}]


def _path_types() -> list[Any]:
    # Python 3.13 moved the classes, and a file names the place they had when it was written.
    names = ("PosixPath", "PurePosixPath")
    return [(getattr(pathlib, name), f"{home}.{name}") for name in names for home in ("pathlib", "pathlib._local")]
