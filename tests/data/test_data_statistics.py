"""Energy references and normalisers against numbers worked out by hand, and as fairchem takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from fairchem_side import open_split, section
from structure_cases import labelled, slab

from escaip_fairchem.data.checks import Limits
from escaip_fairchem.data.convert import convert
from escaip_fairchem.data.labels import LabelOptions
from escaip_fairchem.data.options import ConvertOptions
from escaip_fairchem.data.schema import FrameTable, Structure
from escaip_fairchem.data.splits import SplitOptions
from escaip_fairchem.data.statistics import (
    Normalizer,
    fit_element_references,
    fit_normalizers,
    float32_loss,
    shared_scale,
)
from escaip_fairchem.data.units import ENERGY_UNITS, FORCE_UNITS, STRESS_UNITS
from escaip_fairchem.errors import DataError

ALL = SplitOptions(parts=(1.0,), shuffle=False)


def compositions(*formulas: str) -> np.ndarray:
    return np.array([np.bincount(Atoms(formula).numbers, minlength=119) for formula in formulas], dtype=np.uint16)


def test_references_solve_an_exact_system():
    references = fit_element_references(compositions("H2", "H2O", "O2"), np.array([-2.0, -7.0, -10.0]))
    assert references[1] == pytest.approx(-1.0)
    assert references[8] == pytest.approx(-5.0)
    assert np.count_nonzero(references) == 2


def test_references_are_the_least_squares_compromise():
    """H: minimise (h + 3)² + (h + 1)² + (2h + 7)² → h = −18/6 = −3."""
    references = fit_element_references(compositions("H", "H", "H2"), np.array([-3.0, -1.0, -7.0]))
    assert references[1] == pytest.approx(-(3 + 1 + 14) / 6)


def test_references_of_one_compound_have_the_least_norm():
    """One equation 2h + o = −10: the shortest solution is −10/5 · (2, 1)."""
    references = fit_element_references(compositions("H2O", "H2O"), np.array([-9.0, -11.0]))
    assert references[[1, 8]] == pytest.approx([-4.0, -2.0])


def test_references_of_huge_energies_are_exact_in_float64():
    energy = np.array([-1480152.7205232282, -1480153.1, -740076.0])
    counts = compositions("Au2", "Au2", "Au")
    residual = energy - counts.astype(float) @ fit_element_references(counts, energy)
    # least squares: a = (2·E1 + 2·E2 + E3) / 9
    expected = energy - counts[:, 79] * ((2 * energy[0] + 2 * energy[1] + energy[2]) / 9)
    np.testing.assert_allclose(residual, expected, atol=1e-8)


def test_no_structures_give_zero_references():
    assert not fit_element_references(np.empty((0, 119), dtype=np.uint16), np.empty(0)).any()


def structure(energy: float, forces: list, fixed: list[bool], stress: list | None = None) -> Structure:
    count = len(forces)
    return Structure(
        sid="a", fid=0, numbers=np.ones(count, dtype=int), positions=np.zeros((count, 3)), cell=np.eye(3),
        pbc=np.ones(3, dtype=bool), tags=np.zeros(count, dtype=int), fixed=np.array(fixed), energy=energy,
        forces=np.array(forces, dtype=float), stress=None if stress is None else np.array(stress, dtype=float),
    )  # fmt: skip


def test_normalizers_worked_by_hand():
    table = FrameTable.of(
        [
            structure(1.0, [[3, 0, 0], [100, 0, 0]], [False, True], [1, 1, 1, 0, 0, 0]),
            structure(4.0, [[0, 4, 0]], [False], [0, 0, 0, 2, 0, 0]),
        ]
    )
    normalizers = fit_normalizers(table, None)
    assert normalizers["energy"] == Normalizer(2.5, pytest.approx(np.sqrt(4.5)))  # sample deviation of 1 and 4
    assert normalizers["forces"] == Normalizer(0.0, pytest.approx(np.sqrt(25 / 6)))  # fixed atom left out
    assert normalizers["stress"].rmsd == pytest.approx(np.sqrt((3 + 8) / 18))  # a shear counts twice
    assert normalizers["stress_isotropic"].mean == pytest.approx(np.sqrt(3) / 2)  # traces 3 and 0, over √3
    assert normalizers["stress_anisotropic"].rmsd == pytest.approx(np.sqrt(8 / 2 / 5))


def test_conservative_models_get_one_scale():
    given = {"energy": Normalizer(2.0, 5.0), "forces": Normalizer(0.0, 0.5), "stress": Normalizer(0.0, 0.01)}
    shared = shared_scale(given | {"stress_isotropic": Normalizer(0.1, 0.2)})
    assert shared == {"energy": Normalizer(2.0, 0.5), "forces": Normalizer(0.0, 0.5), "stress": Normalizer(0.0, 0.5)}


def test_more_atoms_than_sixteen_bits_count():
    many = structure(-70_000.0, [[0, 0, 0]] * 70_000, [False] * 70_000)
    table = FrameTable.of([many])
    number = int(many.numbers[0])
    assert table.composition[0, number] == table.natoms[0] == 70_000
    assert fit_element_references(table.composition, table.energy)[number] == pytest.approx(-1.0)


def test_labels_without_spread_are_not_scaled():
    table = FrameTable.of([structure(1.0, [[0, 0, 0]], [False])] * 3)
    assert fit_normalizers(table, None)["energy"] == Normalizer(1.0, 1.0, degenerate=True)
    assert fit_normalizers(table, None)["forces"].rmsd == 1.0


def test_float32_loss_is_what_float32_loses():
    assert float32_loss(np.array([0.5, np.nan])) == 0
    assert float32_loss(np.array([2.0**24 + 1])) == 1


def converted(tmp_path: Path, structures: list[Atoms], **options: object) -> tuple[dict, dict]:
    write(tmp_path / "in.traj", structures)
    summary = convert([str(tmp_path / "in.traj")], tmp_path / "out", ConvertOptions(split=ALL, **options))
    return summary, section(tmp_path / "out" / "dataset.yml")


def test_fairchem_loads_and_agrees_with_its_own_fit(tmp_path: Path):
    """References and energy normaliser equal what fairchem fits itself on the same data (in float32)."""
    from fairchem.core.modules.normalization.element_references import (
        fit_linear_references,
        load_references_from_config,
    )
    from fairchem.core.modules.normalization.normalizer import fit_normalizers as fit_fairchem
    from fairchem.core.modules.normalization.normalizer import load_normalizers_from_config

    import escaip_fairchem  # noqa: F401

    random = np.random.default_rng(0)
    formulas = [f"H{random.integers(1, 5)}O{random.integers(1, 5)}" for _ in range(40)]
    structures = []
    for seed, formula in enumerate(formulas):
        atoms = Atoms(formula, cell=[20] * 3, pbc=True)
        atoms.positions = 3.0 * np.arange(len(atoms))[:, None]
        structures.append(labelled(atoms, energy=-float(atoms.numbers.sum()) + random.normal(), seed=seed))
    _, sections = converted(tmp_path, structures)
    dataset = open_split(sections, "train")
    transforms = sections["train"]["transforms"]
    loaded = load_references_from_config(transforms["element_references"], dataset)
    fitted = fit_linear_references(["energy"], dataset, batch_size=40, shuffle=False, log_metrics=False)
    ours = loaded["energy"].element_references.float()
    np.testing.assert_allclose(ours.numpy(), fitted["energy"].element_references.numpy(), atol=2e-4)
    normalizers = load_normalizers_from_config(transforms["normalizer"], dataset, element_references=loaded)
    theirs = fit_fairchem(["energy"], dataset, batch_size=40, override_values={}, element_references=loaded)
    assert normalizers["energy"].mean.item() == pytest.approx(theirs["energy"].mean.item(), abs=1e-4)
    assert normalizers["energy"].rmsd.item() == pytest.approx(theirs["energy"].rmsd.item(), rel=1e-3)
    free = np.concatenate([atoms.calc.results["forces"] for atoms in structures])
    assert normalizers["forces"].rmsd.item() == pytest.approx(np.sqrt((free**2).mean()), rel=1e-5)


def test_stress_decomposed_by_fairchem_has_the_spread_of_its_normalizers(tmp_path: Path):
    summary, sections = converted(tmp_path, [slab(seed) for seed in range(10)])
    decomposition = {"stress_isotropic": {"irrep_dim": 0}, "stress_anisotropic": {"irrep_dim": 2}}
    transforms = {"decompose_tensor": {"tensor": "stress", "rank": 2, "decomposition": decomposition}}
    dataset = open_split(sections, "train", transforms=transforms)
    isotropic = np.array([data.stress_isotropic.item() for data in dataset])
    anisotropic = np.concatenate([data.stress_anisotropic.numpy().ravel() for data in dataset])
    fitted = summary["normalizers"]
    assert fitted["stress_isotropic"]["mean"] == pytest.approx(isotropic.mean(), rel=1e-4)
    assert fitted["stress_isotropic"]["rmsd"] == pytest.approx(isotropic.std(ddof=1), rel=1e-4)
    assert fitted["stress_anisotropic"]["rmsd"] == pytest.approx(np.sqrt((anisotropic**2).mean()), rel=1e-4)


def test_statistics_come_from_the_training_split_alone(tmp_path: Path):
    structures = [labelled(Atoms("H", [[0, 0, 0]]), energy=energy) for energy in (-1.0, -2.0, -3.0, 1000.0)]
    write(tmp_path / "in.traj", structures)
    options = ConvertOptions(split=SplitOptions(parts=(3, 1), shuffle=False))
    summary = convert([str(tmp_path / "in.traj")], tmp_path / "out", options)
    assert summary["element_references_eV"] == {"H": pytest.approx(-2.0)}
    assert summary["normalizers"]["energy"]["rmsd"] == pytest.approx(1.0)


def test_references_can_be_left_out(tmp_path: Path):
    summary, sections = converted(tmp_path, [slab(k) for k in range(4)], linear_references=False)
    assert "element_references" not in sections["train"]["transforms"]
    assert not (tmp_path / "out" / "element_references.npz").exists()
    assert sections["train"]["transforms"]["normalizer"]["energy"]["mean"] == pytest.approx(-3.2515)
    assert summary["element_references_eV"] == {}


def test_subtracted_references_are_exact_and_recorded(tmp_path: Path):
    """Energies that float32 would round by 0.06 eV: stored minus their references, they keep a micro-electronvolt."""
    energies = [-1480152.7205232282, -1480153.1, -1480150.9]
    structures = [labelled(Atoms("Au2", [[0, 0, 0], [0, 0, 3]]), energy=energy) for energy in energies]
    _, plain = converted(tmp_path, structures)
    assert "element_references" in plain["train"]["transforms"]
    write(tmp_path / "in.traj", structures)
    summary = convert(
        [str(tmp_path / "in.traj")], tmp_path / "exact", ConvertOptions(split=ALL, subtract_references=True)
    )
    sections = section(tmp_path / "exact" / "dataset.yml")
    assert "element_references" not in sections["train"]["transforms"]
    dataset = open_split(sections, "train", a2g_args={"r_energy": True, "r_data_keys": ["reference_energy"]})
    mean = np.mean(energies)
    for data, energy in zip(dataset, energies, strict=True):
        assert data.energy == pytest.approx(energy - mean, abs=1e-6)
        assert data.energy + data.reference_energy == pytest.approx(energy, abs=1e-9)
    assert summary["normalizers"]["energy"]["rmsd"] == pytest.approx(np.std(energies, ddof=1), rel=1e-6)


def test_rounding_by_float32_is_noted(tmp_path: Path):
    summary, _ = converted(tmp_path, [labelled(Atoms("Au"), energy=-1480152.72)])
    assert any("--subtract-references" in note for note in summary["notes"])


def test_references_that_explain_everything_are_noted(tmp_path: Path):
    atoms = Atoms("HO", [[0, 0, 0], [0, 0, 1]])
    summary, sections = converted(tmp_path, [labelled(atoms, energy=-5.0)] * 3)
    assert sections["train"]["transforms"]["normalizer"]["energy"]["rmsd"] == 1.0
    assert any("nothing to learn" in note for note in summary["notes"])


def test_units_are_those_of_the_handbook():
    assert ENERGY_UNITS["Hartree"] == pytest.approx(27.211386, abs=1e-5)
    assert ENERGY_UNITS["kcal/mol"] == pytest.approx(0.0433641, abs=1e-6)
    assert ENERGY_UNITS["kJ/mol"] == pytest.approx(0.0103643, abs=1e-6)
    assert FORCE_UNITS["Hartree/Bohr"] == pytest.approx(51.42207, abs=1e-4)
    assert FORCE_UNITS["kJ/mol/nm"] == pytest.approx(0.00103643, abs=1e-7)
    assert STRESS_UNITS["GPa"] == pytest.approx(0.00624151, abs=1e-7)
    assert STRESS_UNITS["kBar"] == pytest.approx(0.000624151, abs=1e-8)


def test_units_and_sign_are_applied(tmp_path: Path):
    atoms = slab(0)
    labels = LabelOptions(energy_units="Hartree", force_units="kcal/mol/Ang", stress_units="kBar", negate_stress=True)
    _, sections = converted(tmp_path, [atoms], labels=labels)
    data = open_split(sections, "train")[0]
    assert data.energy == pytest.approx(atoms.calc.results["energy"] * 27.211386, rel=1e-6)
    np.testing.assert_allclose(data.forces.numpy(), atoms.calc.results["forces"] * 0.0433641, rtol=1e-5)
    np.testing.assert_allclose(data.stress.numpy()[0, 0], -atoms.calc.results["stress"][0] * 0.000624151, rtol=1e-5)


def test_unknown_units_are_refused():
    with pytest.raises(DataError, match="unknown unit 'kcal'; known here are eV, meV, Hartree"):
        LabelOptions(energy_units="kcal")


@pytest.mark.shared
def test_kilocalories_taken_for_electronvolts_are_noticed_and_converted(tmp_path: Path, shared: Path):
    """Aspirin: −405681.6 kcal/mol is −17592 eV; its forces are 1 eV/Å, not 25."""
    path = str(shared / "data" / "raw_formats" / "rmd17" / "aspirin_15_kcal.xyz")
    wrong = convert([path], tmp_path / "wrong", ConvertOptions(limits=Limits(max_force=float("inf"))))
    assert any("--energy-units" in note for note in wrong["notes"])
    labels = LabelOptions(energy_units="kcal/mol", force_units="kcal/mol/Ang")
    right = convert([path], tmp_path / "right", ConvertOptions(labels=labels))
    assert right["skipped"] == []
    assert not any("--energy-units" in note for note in right["notes"])
    assert right["splits"]["train"]["energy_eV"]["mean"] == pytest.approx(-17592, abs=3)
    assert 0.5 < right["splits"]["train"]["force_component_rms_eV_per_A"] < 2.0


def test_the_section_is_plain_yaml_with_floats(tmp_path: Path):
    converted(tmp_path, [labelled(Atoms("H"), energy=1e-5 * k) for k in range(4)])
    normalizers = section(tmp_path / "out" / "dataset.yml")["train"]["transforms"]["normalizer"]
    assert all(isinstance(value, float) for entry in normalizers.values() for value in entry.values())
