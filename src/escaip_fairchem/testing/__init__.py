"""What every implementation of the network is tested with: tiny structures, named tolerances, the laws it must obey.

Nothing here imports a test framework, fairchem or ASE. A law is a plain function: it takes a predictor and structures
and raises ``AssertionError`` with both values where they differ.
"""

from escaip_fairchem.testing.laws import (
    check_alone_equals_batched,
    check_atom_permutation,
    check_choice_of_cell,
    check_finite_difference_forces,
    check_finite_difference_stress,
    check_no_cross_talk,
    check_padding,
    check_periodic_images,
    check_rotation,
    check_structure_permutation,
    check_translation,
)
from escaip_fairchem.testing.predictors import (
    KINDS,
    LEVELS,
    TINY,
    Predictor,
    randomize,
    tiny_config,
    tiny_predictor,
)
from escaip_fairchem.testing.structures import Structure, batch
from escaip_fairchem.testing.tolerances import TOLERANCES, relative_error

__all__ = [
    "KINDS",
    "LEVELS",
    "TINY",
    "TOLERANCES",
    "Predictor",
    "Structure",
    "batch",
    "check_alone_equals_batched",
    "check_atom_permutation",
    "check_choice_of_cell",
    "check_finite_difference_forces",
    "check_finite_difference_stress",
    "check_no_cross_talk",
    "check_padding",
    "check_periodic_images",
    "check_rotation",
    "check_structure_permutation",
    "check_translation",
    "randomize",
    "relative_error",
    "tiny_config",
    "tiny_predictor",
]
