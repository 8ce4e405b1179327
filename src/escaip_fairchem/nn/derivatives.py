"""Conservative forces and stress: derivatives of the energy with respect to positions and strain.

A structure is strained by a symmetric matrix ε as ``r → r (1 + ε)``, ``cell → cell (1 + ε)`` (vectors are rows).
Then ``F = −∂E/∂r`` and ``σ = (1/V) ∂E/∂ε`` at ε = 0: eV/Å and eV/Å³, tension positive, as in ASE.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from escaip_fairchem.nn.systems import Systems


@dataclass(frozen=True, kw_only=True)
class StrainedSystems:
    """Structures whose energy can be differentiated.

    Attributes:
        systems: Positions and cells that depend on the two leaves below.
        positions_N3: Leaf for the forces, shape (N, 3).
        strain_B33: Leaf for the stress, zero, shape (B, 3, 3).
    """

    systems: Systems
    positions_N3: Tensor
    strain_B33: Tensor


def make_differentiable(systems: Systems) -> StrainedSystems:
    """Attach leaves for positions and strain to the structures. Gradients must be enabled."""
    positions_N3 = systems.positions_N3.detach().clone().requires_grad_(True)
    strain_B33 = torch.zeros_like(systems.cell_B33).requires_grad_(True)
    symmetric_B33 = 0.5 * (strain_B33 + strain_B33.transpose(-1, -2))
    moved_N3 = positions_N3 + _strained(positions_N3, symmetric_B33[systems.structure_N])
    cell_B33 = systems.cell_B33 + _strained(systems.cell_B33, symmetric_B33.unsqueeze(1))
    return StrainedSystems(
        systems=systems.with_geometry(moved_N3, cell_B33), positions_N3=positions_N3, strain_B33=strain_B33
    )


def _strained(vectors: Tensor, strain: Tensor) -> Tensor:
    """``v ε`` for row vectors (..., 3) and strains (..., 3, 3).

    No matrix product, whose backward pass would be rounded where TF32 is allowed.
    """
    return (vectors.unsqueeze(-1) * strain).sum(dim=-2)


def energy_derivatives(energy_B1: Tensor, strained: StrainedSystems, *, create_graph: bool) -> tuple[Tensor, Tensor]:
    """Differentiate the energies.

    Args:
        energy_B1: Energies of shape (B, 1) computed from ``strained.systems``.
        strained: What :func:`make_differentiable` returned.
        create_graph: Whether the results will be differentiated again (training).

    Returns:
        Forces of shape (N, 3), and the virial ∂E/∂ε of shape (B, 3, 3).
    """
    gradient_N3, virial_B33 = torch.autograd.grad(
        energy_B1.sum(),
        (strained.positions_N3, strained.strain_B33),
        create_graph=create_graph,
        retain_graph=create_graph,
    )
    return -gradient_N3, virial_B33


def stress_from_virial(virial_B33: Tensor, cell_B33: Tensor, pbc_B3: Tensor) -> Tensor:
    """Divide by the volumes.

    Args:
        virial_B33: Energy's derivative with respect to strain, shape (B, 3, 3).
        cell_B33: Lattice vectors, shape (B, 3, 3), Å.
        pbc_B3: Which of them repeat, shape (B, 3), bool.

    Returns:
        Shape (B, 3, 3). Zero where there is no volume: for cells without one, and for molecules whatever cell they
        come with (fairchem's converter puts a cube of 1 Å where there was none).
    """
    volume_B = torch.linalg.det(cell_B33).abs()
    has_volume_B = (volume_B > 0) & pbc_B3.any(dim=1)
    safe_B = torch.where(has_volume_B, volume_B, torch.ones_like(volume_B)).reshape(-1, 1, 1)
    return torch.where(has_volume_B.reshape(-1, 1, 1), virial_B33 / safe_B, torch.zeros_like(virial_B33))
