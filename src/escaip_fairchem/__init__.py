"""EScAIP, the attention-based interatomic potential, as a plugin of fairchem-core v1.

Importing this package is light. It arranges that ``fairchem.core`` can be imported without ``torch_scatter`` and
``torch_sparse``, and that importing it registers this package's models and trainer (see ``_imports``). The public names
below are loaded when they are first used. ``escaip_fairchem.nn`` needs neither fairchem nor torch_geometric.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from escaip_fairchem import _imports

if TYPE_CHECKING:
    from escaip_fairchem.plugin.calculator import OCPCalculator
    from escaip_fairchem.plugin.models import (
        EScAIP,
        EScAIPBackbone,
        EScAIPConservativeHead,
        EScAIPDirectForceHead,
        EScAIPEnergyHead,
        EScAIPGradientEnergyForceHead,
        EScAIPRank2Head,
    )
    from escaip_fairchem.plugin.original import import_original
    from escaip_fairchem.plugin.trainer import EScAIPForcesTrainer

__all__ = [
    "EScAIP",
    "EScAIPBackbone",
    "EScAIPConservativeHead",
    "EScAIPDirectForceHead",
    "EScAIPEnergyHead",
    "EScAIPForcesTrainer",
    "EScAIPGradientEnergyForceHead",
    "EScAIPRank2Head",
    "InvariantEquiformerV2Backbone",
    "InvariantEquiformerV2ForceHead",
    "OCPCalculator",
    "import_original",
]

_HOMES = {
    "EScAIP": "plugin.models",
    "EScAIPBackbone": "plugin.models",
    "EScAIPConservativeHead": "plugin.models",
    "EScAIPDirectForceHead": "plugin.models",
    "EScAIPEnergyHead": "plugin.models",
    "EScAIPForcesTrainer": "plugin.trainer",
    "EScAIPGradientEnergyForceHead": "plugin.models",
    "EScAIPRank2Head": "plugin.models",
    "InvariantEquiformerV2Backbone": "plugin.invariant_equiformer_v2",
    "InvariantEquiformerV2ForceHead": "plugin.invariant_equiformer_v2",
    "OCPCalculator": "plugin.calculator",
    "import_original": "plugin.original",
}

try:
    __version__ = version("escaip-fairchem")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> object:
    """Load a public name from the module that defines it (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_imports.install()
