"""Translation, periodic images, choice of cell, rotation: what must not matter, and what is declared to."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3

from escaip_fairchem.testing import (
    KINDS,
    TOLERANCES,
    batch,
    check_alone_equals_batched,
    check_choice_of_cell,
    check_periodic_images,
    check_rotation,
    check_translation,
    structures,
    tiny_predictor,
)
from escaip_fairchem.testing.tolerances import root_mean_square

DTYPES = (torch.float32, torch.float64)
WITHOUT_TIES = [
    structures.disordered(1),
    structures.disordered(2, 8),
    structures.molecule(3),
    structures.disordered(5, 5, (True, True, False)),
]
MODELS = [*((kind, torch.float64) for kind in KINDS), ("direct", torch.float32), ("conservative", torch.float32)]
all_models = pytest.mark.parametrize(("kind", "dtype"), MODELS, ids=str)
rotations = pytest.mark.parametrize("improper", [False, True], ids=["rotation", "reflection"])


def wigner(rotation):
    """e3nn's Wigner D of l = 2, which is exact in double precision only where that is the default."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return o3.Irrep("2e").D_from_matrix(rotation)
    finally:
        torch.set_default_dtype(default)


def test_the_promised_tolerances():
    assert TOLERANCES["turned"].float32 <= 1e-5
    assert TOLERANCES["turned"].float64 <= 1e-10
    assert TOLERANCES["original"].float32 <= 1e-5


@all_models
def test_translation(kind, dtype):
    zoo = [*WITHOUT_TIES, structures.slab(), structures.rock_salt(), structures.copper(), structures.isolated(26)]
    check_translation(tiny_predictor(kind, dtype=dtype), zoo, torch.tensor([1.3, -0.4, 2.2]), dtype)


@all_models
@pytest.mark.parametrize("structure", [structures.slab(), structures.disordered(6)], ids=["slab", "disordered"])
def test_choice_of_periodic_image(kind, dtype, structure):
    images = torch.randint(-1, 2, (len(structure), 3))
    assert images.any()
    check_periodic_images(tiny_predictor(kind, dtype=dtype), structure, images, dtype)


@pytest.mark.parametrize("structure", [structures.rock_salt(), structures.silicon()], ids=["NaCl", "Si"])
@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_choice_of_periodic_image_in_perfect_crystals(kind, structure):
    """In double precision: near perfect order, conservative forces are a thousand times stiffer than elsewhere."""
    check_periodic_images(tiny_predictor(kind), structure, torch.randint(-3, 4, (len(structure), 3)))


def test_positions_far_outside_the_cell():
    structure = structures.disordered(6)
    check_periodic_images(tiny_predictor("conservative"), structure, torch.randint(-1000, 1000, (len(structure), 3)))


TRANSFORMS = {
    "left-handed": [[0, 1, 0], [1, 0, 0], [0, 0, 1]],
    "skewed": [[1, 0, 0], [2, 1, 0], [-1, 3, 1]],
    "mirrored axis": [[-1, 0, 0], [0, 1, 0], [0, 0, 1]],
}


@all_models
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_choice_of_lattice_vectors(kind, dtype, transform):
    structure = structures.disordered(7)
    check_choice_of_cell(tiny_predictor(kind, dtype=dtype), structure, torch.tensor(transform), dtype)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_choice_of_lattice_vectors_of_a_perfect_crystal(kind, transform):
    check_choice_of_cell(tiny_predictor(kind), structures.copper(cubic=True), torch.tensor(transform))


@pytest.mark.parametrize("kind", ["direct", "conservative"])
def test_lattice_vectors_of_a_slab_may_be_exchanged(kind):
    check_choice_of_cell(tiny_predictor(kind), structures.slab(), torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]]))


@pytest.mark.parametrize("kind", ["direct", "energy", "original rank-2", "equivariant rank-2"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@rotations
def test_scalars_are_invariant_under_rotation_and_reflection(kind, dtype, improper):
    names = ["energy"] + (["isotropic"] if "rank-2" in kind else [])
    check_rotation(
        tiny_predictor(kind, dtype=dtype),
        WITHOUT_TIES,
        structures.rotation_matrix(1, improper=improper),
        invariant=names,
        dtype=dtype,
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@rotations
def test_conservative_forces_and_stress_turn_with_the_structure(seed, dtype, improper):
    check_rotation(
        tiny_predictor("conservative", seed=seed, dtype=dtype),
        WITHOUT_TIES,
        structures.rotation_matrix(seed, improper=improper),
        vectors=["forces"],
        tensors=["stress"],
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conservative_forces_turn_with_the_paper_s_basis(dtype):
    predictor = tiny_predictor(
        "conservative",
        dtype=dtype,
        max_radius=12.0,
        edge_distance_expansion_size=600,
        node_direction_expansion_size=10,
    )
    # Molecules: in a small cell, images of the same atom at ± a lattice vector are equally far, and may be tied.
    molecules = [structures.molecule(3), structures.molecule(6, 8), structures.molecule(7, 3)]
    rotation = structures.rotation_matrix(4)
    check_rotation(predictor, molecules, rotation, vectors=["forces"], dtype=dtype, tolerance="turned, narrow basis")
    forces = predictor(batch(molecules, dtype))["forces"] @ rotation.T.to(dtype)
    turned = predictor(batch([molecule.rotated(rotation) for molecule in molecules], dtype))["forces"]
    error = root_mean_square(turned - forces) / root_mean_square(forces)
    assert error < TOLERANCES["turned"].at(dtype), "on average as exact as promised"


@pytest.mark.parametrize("kind", ["direct", "original rank-2", "equivariant rank-2"])
def test_direct_forces_are_declared_not_equivariant(kind):
    with pytest.raises(AssertionError, match="forces, rotated: relative error"):
        check_rotation(tiny_predictor(kind), WITHOUT_TIES, structures.rotation_matrix(2), vectors=["forces"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@rotations
def test_the_equivariant_rank_2_head_turns_by_wigner_d(dtype, improper):
    rotation = structures.rotation_matrix(3, improper=improper)
    check_rotation(
        tiny_predictor("equivariant rank-2", dtype=dtype),
        WITHOUT_TIES,
        rotation,
        invariant=["energy", "isotropic"],
        quadrupoles=["anisotropic"],
        wigner=wigner(rotation),
        dtype=dtype,
    )


def test_the_original_rank_2_head_is_declared_not_equivariant():
    rotation = structures.rotation_matrix(3)
    with pytest.raises(AssertionError, match="anisotropic, rotated: relative error"):
        check_rotation(
            tiny_predictor("original rank-2"),
            WITHOUT_TIES,
            rotation,
            quadrupoles=["anisotropic"],
            wigner=wigner(rotation),
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_molecule_s_cell_is_not_looked_at(kind):
    molecule = structures.molecule()
    in_a_box = molecule.replaced(cell=8.0 * torch.eye(3, dtype=torch.float64))
    in_a_skewed_box = molecule.replaced(cell=structures.disordered(1).cell)
    far_images = molecule.replaced(cell=40.0 * torch.eye(3, dtype=torch.float64), pbc=torch.tensor([True] * 3))
    predictor = tiny_predictor(kind)
    expected = predictor(batch([molecule]))
    for other in (in_a_box, in_a_skewed_box, far_images):
        actual = predictor(batch([other]))
        periodic_and_per_volume = {"stress"} if other is far_images else set()
        for name in expected.keys() - periodic_and_per_volume:
            assert torch.allclose(actual[name], expected[name], rtol=1e-10, atol=1e-12)


def test_a_molecule_has_no_stress_whatever_cell_it_comes_with():
    molecule = structures.molecule()
    boxed = molecule.replaced(cell=torch.eye(3, dtype=torch.float64))
    stress = tiny_predictor("conservative")(batch([molecule, boxed, structures.slab()]))["stress"]
    assert not stress[:2].any()
    assert stress[2].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_zoo_is_sensitive_enough(kind):
    """Every prediction changes when an atom moves, an element changes, or the cell does: no law holds trivially."""
    predictor, structure = tiny_predictor(kind), structures.disordered(1)
    moved = structure.positions.clone()
    moved[0] += 0.05
    changed = [
        structure.replaced(positions=moved),
        structure.replaced(numbers=structure.numbers.roll(1)),
        structure.replaced(cell=structure.cell * 1.01),
        structure.replaced(pbc=torch.tensor([True, True, False])),
    ]
    reference = predictor(batch([structure]))
    for other in changed:
        for name, value in predictor(batch([other])).items():
            assert (value - reference[name]).abs().max() > 1e-5 * reference[name].abs().max()


def test_the_check_notices_a_predictor_that_breaks_the_law():
    def breaks(systems):
        return {"energy": systems.positions_N3.sum().reshape(1, 1).expand(systems.num_structures, 1)}

    with pytest.raises(AssertionError):
        check_translation(breaks, WITHOUT_TIES, torch.ones(3))
    with pytest.raises(AssertionError):
        check_alone_equals_batched(breaks, WITHOUT_TIES)
    with pytest.raises(AssertionError):
        check_rotation(breaks, WITHOUT_TIES, structures.rotation_matrix(0))
