"""Errors that tell a user what went wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class EScAIPError(Exception):
    """Base of every error that the package raises for a user to read.

    The command line prints its message without a traceback.
    """

    EXIT_STATUS: ClassVar[int] = 2
    """Of commands and of processes of a run that stop with such an error."""


class ConfigError(EScAIPError, ValueError):
    """A setting is unknown, missing, of the wrong type or out of range."""


class DataError(EScAIPError, ValueError):
    """A structure or a data file cannot be used as it is."""


class CheckpointError(EScAIPError, RuntimeError):
    """A checkpoint cannot be read, or does not fit the model."""


class NonFiniteError(EScAIPError, FloatingPointError):
    """A loss, a gradient or a prediction is NaN or infinite."""


class RunFolderError(EScAIPError, RuntimeError):
    """A run folder cannot be used, for example because another run is using it."""


class MissingDependencyError(EScAIPError, ImportError):
    """Something needs an optional package that is not installed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the known name that a mistyped one most resembles.

    Args:
        name: What the user wrote.
        known: The names that would have been accepted.

    Returns:
        `` (did you mean 'x'?)``, or the sorted list of known names where none is close.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {', '.join(names)})"
