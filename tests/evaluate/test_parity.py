"""Labels, predictions and how they are joined."""

from __future__ import annotations

import numpy as np
import pytest

from escaip_fairchem.data.demo_set import DemoOptions, write_demo
from escaip_fairchem.errors import DataError
from escaip_fairchem.evaluate.labels import Labels, read_labels
from escaip_fairchem.evaluate.parity import free_forces, join, mean_absolute_force, read_predictions


def labels(name: str, atoms: int, energy: float) -> Labels:
    forces = np.arange(3.0 * atoms).reshape(atoms, 3) + energy
    free = np.arange(atoms) > 0
    return Labels(identifier=name, energy=energy, forces=forces, free=free)


@pytest.fixture
def known() -> dict[str, Labels]:
    return {"7_0": labels("7_0", 3, 1.0), "10_2": labels("10_2", 2, -4.0)}


def test_predictions_are_joined_by_name_and_free_atoms(known, tmp_path):
    # Written in another order, with an error of 0.5 eV and, for free atoms, 0.25 eV/Å.
    forces = [known["10_2"].forces + 0.25, known["7_0"].forces + 0.25]
    forces[0][0] += 100.0  # a fixed atom
    np.savez(
        tmp_path / "p.npz",
        ids=["10_2", "7_0"],
        energy=np.array([-3.5, 1.5], dtype=np.float32),
        forces=np.concatenate(forces),
        chunk_idx=[2],
    )
    parity = join(known, read_predictions(tmp_path / "p.npz"))
    assert parity.energy_mae == pytest.approx(0.5)
    assert parity.forces_mae == pytest.approx(0.25)
    assert parity.forces_ratio == pytest.approx(0.25 / mean_absolute_force(free_forces(known)))
    np.testing.assert_array_equal(parity.energy_label, [1.0, -4.0])
    assert parity.forces_label.shape == (3, 3)


@pytest.mark.parametrize("wrong", [{}, {"7_0": (0.0, np.zeros((4, 3)))}])
def test_what_was_not_predicted_is_named(known, wrong):
    with pytest.raises(DataError, match="structure 7_0"):
        join(known, wrong)


def test_both_formats_give_the_same_labels(tmp_path):
    write_demo(tmp_path, DemoOptions(train=1, val=12, test=0))
    classic, ase_format = read_labels(tmp_path / "lmdb/val"), read_labels(tmp_path / "aselmdb/val")
    assert list(classic) == list(ase_format)
    assert len(classic) == 12
    for name, entry in classic.items():
        other = ase_format[name]
        assert entry.energy == pytest.approx(other.energy, abs=1e-9)
        np.testing.assert_allclose(entry.forces, other.forces, atol=1e-5)
        np.testing.assert_array_equal(entry.free, other.free)
        assert 0 < entry.free.sum() < len(entry.free)


def test_a_folder_without_data_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no \*\.lmdb"):
        read_labels(tmp_path)
