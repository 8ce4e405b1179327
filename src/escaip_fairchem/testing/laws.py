"""The laws that predictions must obey, each as a function of a predictor and structures.

A predictor maps :class:`escaip_fairchem.nn.Systems` to a dict of tensors whose levels are in ``LEVELS``. Every check
returns the largest relative error that it saw, and raises ``AssertionError`` above the named tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from escaip_fairchem.nn import Systems, build_graph
from escaip_fairchem.testing.predictors import LEVELS, Predictions, Predictor, padded
from escaip_fairchem.testing.structures import Structure, batch
from escaip_fairchem.testing.tolerances import assert_close

Predict = Callable[[Systems], Predictions]


def check_alone_equals_batched(
    predict: Predict, structures: Sequence[Structure], dtype: torch.dtype = torch.float64
) -> float:
    """A structure's predictions do not depend on what else is in the batch."""
    together = predict(batch(structures, dtype))
    alone = [predict(batch([structure], dtype)) for structure in structures]
    joined = {name: torch.cat([part[name] for part in alone]) for name in together}
    return _compare(together, joined, "same numbers", "batched against alone")


def check_structure_permutation(
    predict: Predict, structures: Sequence[Structure], order: Sequence[int], dtype: torch.dtype = torch.float64
) -> float:
    """Structures in another order give the same predictions in that order."""
    original = predict(batch(structures, dtype))
    permuted = predict(batch([structures[row] for row in order], dtype))
    first_rows = torch.tensor([0, *[len(structure) for structure in structures]]).cumsum(0).tolist()
    atoms = torch.cat([torch.arange(first_rows[row], first_rows[row + 1]) for row in order])
    rows = {"structure": torch.tensor(list(order)), "atom": atoms}
    expected = {name: value[rows[LEVELS[name]]] for name, value in original.items()}
    return _compare(permuted, expected, "same numbers", "structures permuted")


def check_atom_permutation(
    predict: Predict, structure: Structure, order: Tensor, dtype: torch.dtype = torch.float64
) -> float:
    """Atoms in another order give the same structure-level predictions, and the same forces in that order."""
    original, permuted = predict(batch([structure], dtype)), predict(batch([structure.permuted(order)], dtype))
    expected = {name: value[order] if LEVELS[name] == "atom" else value for name, value in original.items()}
    return _compare(permuted, expected, "same numbers", "atoms permuted")


def check_padding(
    predictor: Predictor, structures: Sequence[Structure], extra: int, dtype: torch.dtype = torch.float64
) -> float:
    """Empty neighbour slots change nothing, wherever they point."""
    systems = batch(structures, dtype)
    neighborhoods = predictor.neighborhoods(systems)
    reference = predictor(systems, neighborhoods=neighborhoods)
    errors = []
    for junk in (0, len(systems.numbers_N) - 1):
        actual = predictor(systems, neighborhoods=padded(neighborhoods, extra, junk))
        errors.append(_compare(actual, reference, "same numbers", f"{extra} empty slots that point to atom {junk}"))
    return max(errors)


def check_no_cross_talk(predictor: Predictor, structures: Sequence[Structure]) -> None:
    """No prediction of a structure has a gradient with respect to another structure's atoms: exactly zero."""
    systems = batch(structures)
    positions_N3 = systems.positions_N3.requires_grad_(True)
    moving = systems.with_geometry(positions_N3, systems.cell_B33)
    if predictor.kind == "conservative":  # its forces are derivatives already, with leaves of their own
        outputs = {"energy": predictor.energy_of(build_graph(moving, predictor.neighborhoods(systems)))}
    else:
        outputs = predictor(moving)
    levels = {"structure": torch.arange(len(structures)), "atom": systems.structure_N}
    for name, value in outputs.items():
        for row in range(len(structures)):
            own = value[levels[LEVELS[name]] == row]
            (gradient_N3,) = torch.autograd.grad(own.square().sum(), positions_N3, retain_graph=True)
            foreign = float(gradient_N3[systems.structure_N != row].abs().max())
            if foreign != 0.0 or not gradient_N3.any():
                raise AssertionError(f"{name} of structure {row}: gradient {foreign} with respect to other structures")


def check_translation(
    predict: Predict, structures: Sequence[Structure], shift: Tensor, dtype: torch.dtype = torch.float64
) -> float:
    """Moving all atoms of a structure together changes nothing."""
    moved = [structure.replaced(positions=structure.positions + shift) for structure in structures]
    return _compare(predict(batch(moved, dtype)), predict(batch(structures, dtype)), "moved", f"moved by {shift}")


def check_periodic_images(
    predict: Predict, structure: Structure, images: Tensor, dtype: torch.dtype = torch.float64
) -> float:
    """Replacing atoms by periodic images of themselves changes nothing.

    Args:
        predict: The predictor.
        structure: Periodic along some axes.
        images: Whole numbers of lattice vectors to move each atom by, shape (n, 3); ignored on other axes.
        dtype: Precision.
    """
    moved = structure.positions + (images * structure.pbc).double() @ structure.cell
    actual = predict(batch([structure.replaced(positions=moved)], dtype))
    return _compare(actual, predict(batch([structure], dtype)), "moved", "other periodic images")


def check_choice_of_cell(
    predict: Predict, structure: Structure, transform: Tensor, dtype: torch.dtype = torch.float64
) -> float:
    """Lattice vectors that span the same lattice give the same predictions.

    Args:
        predict: The predictor.
        structure: Periodic.
        transform: Whole numbers with determinant ±1, shape (3, 3): the new cell is ``transform @ cell``. It may only
            mix axes of equal periodicity.
        dtype: Precision.
    """
    pbc = (transform.abs().double() @ structure.pbc.double()) > 0
    other = structure.replaced(cell=transform.double() @ structure.cell, pbc=pbc)
    actual = predict(batch([other], dtype))
    return _compare(actual, predict(batch([structure], dtype)), "moved", f"cell transformed by {transform.tolist()}")


def check_rotation(
    predict: Predict,
    structures: Sequence[Structure],
    rotation: Tensor,
    *,
    invariant: Sequence[str] = ("energy",),
    vectors: Sequence[str] = (),
    tensors: Sequence[str] = (),
    quadrupoles: Sequence[str] = (),
    wigner: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    tolerance: str = "turned",
) -> float:
    """Predictions turn with the structure, each by its kind.

    Args:
        predict: The predictor.
        structures: Without ties among neighbours, which no rule can break invariantly.
        rotation: Orthogonal, shape (3, 3).
        invariant: Names of scalars.
        vectors: Names of vectors (…, 3).
        tensors: Names of matrices (…, 3, 3).
        quadrupoles: Names of l = 2 components (…, 5).
        wigner: Their rotation, shape (5, 5).
        dtype: Precision.
        tolerance: Name of the tolerance.
    """
    original = predict(batch(structures, dtype))
    turned = predict(batch([structure.rotated(rotation) for structure in structures], dtype))
    matrix = rotation.to(dtype)
    expected = {name: original[name] for name in invariant}
    expected |= {name: original[name] @ matrix.T for name in vectors}
    expected |= {name: matrix @ original[name] @ matrix.T for name in tensors}
    if wigner is not None:
        expected |= {name: original[name] @ wigner.to(dtype).T for name in quadrupoles}
    return _compare({name: turned[name] for name in expected}, expected, tolerance, "rotated")


def check_finite_difference_forces(predict: Predict, structure: Structure, *, step: float = 1e-3) -> float:
    """Forces are minus the derivative of the energy with respect to the positions (float64)."""

    def displaced(displacement: Tensor) -> Structure:
        return structure.replaced(positions=structure.positions + displacement)

    numeric = -_numeric_gradient(predict, displaced, structure.positions.shape, step)
    actual = predict(batch([structure]))["forces"]
    return assert_close(actual, numeric, "derivative", "forces against finite differences")


def check_finite_difference_stress(predict: Predict, structure: Structure, *, step: float = 1e-3) -> float:
    """Stress is the energy's derivative with respect to a symmetric strain, over the volume (float64)."""

    def strained(strain: Tensor) -> Structure:
        return structure.strained(0.5 * (strain + strain.T))

    volume = torch.linalg.det(structure.cell).abs()
    numeric = _numeric_gradient(predict, strained, structure.cell.shape, step) / volume
    actual = predict(batch([structure]))["stress"][0]
    return assert_close(actual, numeric, "derivative", "stress against straining the cell")


def _numeric_gradient(
    predict: Predict, changed: Callable[[Tensor], Structure], shape: torch.Size, step: float
) -> Tensor:
    """Gradient of the energy at zero change by fourth-order central differences, all structures in one batch."""
    count = shape.numel()
    multiples = torch.tensor([-2.0, -1.0, 1.0, 2.0], dtype=torch.float64)
    changes = step * multiples.reshape(4, 1, 1) * torch.eye(count, dtype=torch.float64)
    structures = [changed(change.reshape(shape)) for change in changes.reshape(4 * count, count)]
    energies = predict(batch(structures))["energy"].detach().reshape(4, count)
    weights = torch.tensor([1.0, -8.0, 8.0, -1.0], dtype=torch.float64) / (12 * step)
    return (weights @ energies).reshape(shape)


# What tiny models predict where nothing cancels. Means over atoms can come out near zero, and so do the conservative
# forces of a crystal; a fraction of nearly nothing is no measure.
_SMALLEST_UNIT = {"energy": 0.1, "isotropic": 0.1, "forces": 1e-2}


def _compare(actual: Predictions, expected: Predictions, tolerance: str, what: str) -> float:
    """Compare all predictions; return the largest relative error."""
    return max(
        assert_close(actual[name], value, tolerance, f"{name}, {what}", floor=_SMALLEST_UNIT.get(name, 1e-3))
        for name, value in expected.items()
    )
