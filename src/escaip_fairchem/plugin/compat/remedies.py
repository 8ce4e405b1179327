"""The small remedies, a function each."""

from __future__ import annotations

import collections
import collections.abc
import types
from collections.abc import Callable
from typing import Any

import scipy.special
from fairchem.core.common import utils
from fairchem.core.common.relaxation import optimizable
from fairchem.core.modules import transforms

from escaip_fairchem.errors import ConfigError


def provide_sph_harm() -> None:
    """Give ``scipy.special`` the ``sph_harm`` that scipy 1.17 removed and fairchem's GemNet modules import.

    Its successor takes degree before order and the polar angle before the azimuth.
    """
    if hasattr(scipy.special, "sph_harm"):
        return

    def sph_harm(m: Any, n: Any, theta: Any, phi: Any) -> Any:
        """Spherical harmonic of order m and degree n at azimuth theta and polar angle phi."""
        return scipy.special.sph_harm_y(n, m, phi, theta)

    scipy.special.sph_harm = sph_harm


def give_sweeps_their_mapping() -> None:
    """Let ``--sweep-yml`` find ``collections.MutableMapping``, which left that module in Python 3.10.

    fairchem's module gets a ``collections`` of its own, so that nobody else sees an attribute that should not be there.
    """
    if hasattr(utils.collections, "MutableMapping"):
        return
    module = types.ModuleType("collections", collections.__doc__)
    vars(module).update(vars(collections), MutableMapping=collections.abc.MutableMapping)
    utils.collections = module


def complete_optimizable_batch() -> None:
    """Let fairchem's batches of relaxing structures be built under ase ≥ 3.26.

    ase declared methods of its own optimizers abstract there, which fairchem's optimizer never calls.
    """
    for cls in (optimizable.OptimizableBatch, optimizable.OptimizableUnitCellBatch):
        cls.__abstractmethods__ = frozenset()


def register_transform(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Make a function usable under its name in a dataset's ``transforms:``; works as a decorator.

    fairchem looks transforms up by ``eval`` in its own module, so that is where they have to be.

    Args:
        function: Takes a data object and the settings given under its name, returns a data object.

    Returns:
        The function itself.

    Raises:
        ConfigError: Something else has that name already.
    """
    name = function.__name__
    present = getattr(transforms, name, function)
    if (present.__module__, present.__qualname__) != (function.__module__, function.__qualname__):
        raise ConfigError(f"a transform named {name!r} exists already, in {present.__module__}; choose another name")
    setattr(transforms, name, function)
    return function
