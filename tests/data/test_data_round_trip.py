"""What goes into a data set comes out of fairchem's own readers."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.db import connect
from ase.geometry import find_mic
from ase.io import write
from ase.units import GPa
from fairchem_side import open_split, section
from structure_cases import labelled, molecule, slab, vasprun

from escaip_fairchem.data.checks import Limits
from escaip_fairchem.data.convert import convert
from escaip_fairchem.data.labels import LabelOptions
from escaip_fairchem.data.options import ConvertOptions
from escaip_fairchem.data.splits import SplitOptions

IN_ORDER = SplitOptions(parts=(1.0,), shuffle=False)


def assert_same(data: object, atoms: Atoms, *, energy: bool = True) -> None:
    """Compare what fairchem hands to a model with ASE's structure; fairchem wraps positions into the cell."""
    np.testing.assert_array_equal(data.atomic_numbers.numpy(), atoms.numbers)
    tags = atoms.get_tags()  # fairchem tags everything with 1 where all tags are 0
    np.testing.assert_array_equal(data.tags.numpy(), tags if tags.any() else np.ones_like(tags))
    np.testing.assert_array_equal(data.pbc.numpy().reshape(3), atoms.pbc)
    mask = np.zeros(len(atoms))
    for constraint in atoms.constraints:
        mask[constraint.index] = 1
    np.testing.assert_array_equal(data.fixed.numpy(), mask)
    periodic = data.cell.numpy()[0][atoms.pbc]
    np.testing.assert_allclose(periodic, atoms.cell.array[atoms.pbc], rtol=1e-6)
    displacement, _ = find_mic(data.pos.numpy() - atoms.positions, atoms.cell, atoms.pbc)
    np.testing.assert_allclose(displacement, 0.0, atol=2e-5)
    if energy:
        assert data.energy == pytest.approx(atoms.calc.results["energy"], rel=1e-12)
    np.testing.assert_allclose(data.forces.numpy(), atoms.calc.results["forces"], rtol=1e-6)


def test_mixed_periodicity_constraints_tags_and_molecules_survive(tmp_path: Path):
    structures = [slab(1), molecule(2), slab(3), molecule(4)]
    write(tmp_path / "in.extxyz", structures)
    convert([str(tmp_path / "in.extxyz")], tmp_path / "out", ConvertOptions(split=IN_ORDER))
    sections = section(tmp_path / "out" / "dataset.yml")
    read = ase.io.read(tmp_path / "in.extxyz", ":")  # rounded to eight digits by the format
    dataset = open_split(sections, "train")
    assert len(dataset) == 4
    for data, atoms in zip(dataset, read, strict=True):
        assert_same(data, atoms)
    assert [data.sid for data in dataset] == [f"in.extxyz:{index}" for index in range(4)]


def test_stress_keeps_value_order_and_sign(tmp_path: Path):
    atoms = slab(5)
    atoms.calc.results["stress"] = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) * 1e-3  # xx yy zz yz xz xy
    write(tmp_path / "in.traj", atoms)
    convert([str(tmp_path / "in.traj")], tmp_path / "out", ConvertOptions(split=IN_ORDER))
    data = open_split(section(tmp_path / "out" / "dataset.yml"), "train")[0]
    expected = np.array([[1, 6, 5], [6, 2, 4], [5, 4, 3]]) * 1e-3
    np.testing.assert_allclose(data.stress.numpy().reshape(3, 3), expected, rtol=1e-6)


def test_forces_of_fixed_atoms_are_kept(tmp_path: Path):
    atoms = slab(6)
    write(tmp_path / "in.traj", atoms)
    convert([str(tmp_path / "in.traj")], tmp_path / "out", ConvertOptions(split=IN_ORDER))
    data = open_split(section(tmp_path / "out" / "dataset.yml"), "train")[0]
    assert np.abs(atoms.calc.results["forces"][:2]).min() > 0
    np.testing.assert_allclose(data.forces.numpy()[:2], atoms.calc.results["forces"][:2], rtol=1e-6)


@pytest.mark.parametrize("end", ["extxyz", "xyz", "extxyz.gz", "extxyz.xz", "traj", "db", "aselmdb"])
def test_every_kind_of_file_gives_the_same_structures(tmp_path: Path, end: str):
    structures = [slab(seed, sid=f"s{seed}", fid=seed) for seed in range(3)]
    path = tmp_path / f"in.{end}"
    if path.suffix in (".db", ".aselmdb"):
        with connect(path) as database:
            for atoms in structures:
                database.write(atoms, data=atoms.info)
    else:
        write(path, structures, format="extxyz" if "xyz" in end else None)
    convert([str(path)], tmp_path / "out", ConvertOptions(split=IN_ORDER))
    dataset = open_split(section(tmp_path / "out" / "dataset.yml"), "train")
    for data, atoms in zip(dataset, structures, strict=True):
        np.testing.assert_allclose(data.forces.numpy(), atoms.calc.results["forces"], atol=1e-7)
        np.testing.assert_array_equal(data.fixed.numpy(), [1, 1, 0, 0, 0, 0])
    assert [(data.sid, data.fid) for data in dataset] == [("s0", 0), ("s1", 1), ("s2", 2)]


def test_outputs_of_a_dft_code_are_read_through_ase(tmp_path: Path):
    """Two steps of a vasprun.xml: stress in kBar with VASP's sign, selective dynamics as fixed atoms."""
    folder = tmp_path / "relaxation"
    folder.mkdir()
    (folder / "vasprun.xml").write_text(vasprun(energies=[-10.0, -10.5]))
    (folder / "notes.md").write_text("not a structure\n")
    summary = convert([str(folder)], tmp_path / "out", ConvertOptions(split=IN_ORDER))
    skipped = [(Path(skip["file"]).name, skip["reason"]) for skip in summary["skipped"]]
    assert skipped == [("notes.md", "unreadable file")]
    dataset = open_split(section(tmp_path / "out" / "dataset.yml"), "train")
    assert [data.energy for data in dataset] == pytest.approx([-10.0, -10.5])
    assert [data.sid for data in dataset] == ["vasprun.xml:0", "vasprun.xml:1"]
    np.testing.assert_array_equal(dataset[0].fixed.numpy(), [1, 0])
    np.testing.assert_allclose(dataset[0].forces.numpy(), [[0.1, 0, 0], [-0.1, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(dataset[0].stress.numpy().reshape(3, 3), np.diag([-10, -20, -30]) * 0.1 * GPa, rtol=1e-5)


def test_metadata_serves_the_balanced_sampler(tmp_path: Path):
    from fairchem.core.common.data_parallel import BalancedBatchSampler

    import escaip_fairchem  # noqa: F401

    write(tmp_path / "in.extxyz", [slab(k) if k % 2 else molecule(k) for k in range(12)])
    convert([str(tmp_path / "in.extxyz")], tmp_path / "out", ConvertOptions(split=IN_ORDER))
    dataset = open_split(section(tmp_path / "out" / "dataset.yml"), "train")
    assert [int(n) for n in dataset.get_metadata("natoms", list(range(12)))[0]] == [3, 6] * 6
    sampler = BalancedBatchSampler(dataset, batch_size=2, num_replicas=2, rank=0, seed=0, mode="atoms", shuffle=False)
    assert not sampler.disabled
    assert list(sampler._get_natoms([0, 1, 5])) == [3, 6, 6]
    assert len(next(iter(sampler))) == 2


BALANCED_RANK = """
import sys
import torch.distributed
import escaip_fairchem
from fairchem.core.common.data_parallel import BalancedBatchSampler
from fairchem.core.datasets.ase_datasets import AseDBDataset
rank, store, source = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
dataset = AseDBDataset({"src": source})
sampler = BalancedBatchSampler(dataset, batch_size=2, num_replicas=2, rank=rank, seed=0, mode="atoms", shuffle=False)
print([int(sum(dataset[int(i)].natoms for i in batch)) for batch in sampler])
"""


@pytest.mark.slow
def test_two_processes_get_batches_of_equal_size(tmp_path: Path):
    """Every second structure is large; without balancing, one process would get all of them."""
    write(tmp_path / "in.extxyz", [slab(k) if k % 2 else molecule(k) for k in range(12)])
    convert([str(tmp_path / "in.extxyz")], tmp_path / "out", ConvertOptions(split=IN_ORDER))
    command = [sys.executable, "-c", BALANCED_RANK]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store"), str(tmp_path / "out" / "train")], stdout=-1)
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=300)[0].decode().strip() for process in ranks]
    assert outputs == ["[9, 9, 9]"] * 2


def test_identifiers_are_unique_and_uniformly_typed(tmp_path: Path):
    """fairchem drops predictions with repeated identifiers, and cannot collate numbers with strings."""
    write(tmp_path / "a.extxyz", [slab(0, sid=7, fid=0), slab(1, sid=7, fid=0), slab(2), slab(3, sid="7~2", fid=0)])
    summary = convert([str(tmp_path / "a.extxyz")], tmp_path / "out", ConvertOptions(split=IN_ORDER))
    dataset = open_split(section(tmp_path / "out" / "dataset.yml"), "train")
    identities = [(data.sid, data.fid) for data in dataset]
    assert identities == [("7", 0), ("7~3", 0), ("a.extxyz:2", 0), ("7~2", 0)]
    assert any("1 structures had the identifier of another one" in note for note in summary["notes"])


def test_the_numbers_of_frames_identify_those_of_a_system_without_fid(tmp_path: Path):
    write(tmp_path / "a.extxyz", [slab(k, sid="run") for k in range(3)])
    convert([str(tmp_path / "a.extxyz")], tmp_path / "out", ConvertOptions(split=IN_ORDER))
    dataset = open_split(section(tmp_path / "out" / "dataset.yml"), "train")
    assert [(data.sid, data.fid) for data in dataset] == [("run", 0), ("run", 1), ("run", 2)]


def test_another_entry_may_be_the_identifier(tmp_path: Path):
    write(tmp_path / "a.extxyz", [slab(0, material="mp-1"), slab(1)])
    summary = convert(
        [str(tmp_path / "a.extxyz")],
        tmp_path / "out",
        ConvertOptions(split=IN_ORDER, labels=LabelOptions(id_key="material")),
    )
    dataset = open_split(section(tmp_path / "out" / "dataset.yml"), "train")
    assert [data.sid for data in dataset] == ["mp-1", "a.extxyz:1"]
    assert "1 structures have no material in their info and are identified by file and position" in summary["notes"]


def test_other_contents_are_kept_in_info_or_named(tmp_path: Path):
    atoms = slab(0, charge=1, comment="as computed", weights=np.array([1.0, 2.0]))
    atoms.set_array("local_energy", np.arange(6.0))
    write(tmp_path / "a.extxyz", atoms)
    summary = convert([str(tmp_path / "a.extxyz")], tmp_path / "out", ConvertOptions(split=IN_ORDER))
    dataset = open_split(
        section(tmp_path / "out" / "dataset.yml"), "train", a2g_args={"r_data_keys": ["charge", "weights", "comment"]}
    )
    assert dataset[0].charge == 1
    assert dataset[0].comment == "as computed"
    np.testing.assert_array_equal(dataset[0].weights.numpy(), [1.0, 2.0])
    assert "not stored: local_energy" in summary["notes"]


def test_energies_keep_float64(tmp_path: Path):
    energy = -1480152.7205232282
    write(tmp_path / "a.traj", labelled(Atoms("H"), energy=energy))
    convert([str(tmp_path / "a.traj")], tmp_path / "out", ConvertOptions(split=IN_ORDER))
    assert open_split(section(tmp_path / "out" / "dataset.yml"), "train")[0].energy == energy


def test_a_large_data_set_is_written_in_several_files(tmp_path: Path):
    write(tmp_path / "a.extxyz", [slab(k, sid=str(k), fid=0) for k in range(7)])
    convert([str(tmp_path / "a.extxyz")], tmp_path / "out", ConvertOptions(split=IN_ORDER, shard_rows=3))
    names = sorted(path.name for path in (tmp_path / "out" / "train").iterdir())
    assert names == ["data.0000.aselmdb", "data.0001.aselmdb", "data.0002.aselmdb", "metadata.npz"]
    dataset = open_split(section(tmp_path / "out" / "dataset.yml"), "train")
    assert [data.sid for data in dataset] == list("0123456")


def test_the_files_belong_to_the_public_format(tmp_path: Path):
    """ASE's own database interface reads them, so that a data set is no dead end."""
    write(tmp_path / "a.extxyz", [slab(0), molecule(1)])
    convert([str(tmp_path / "a.extxyz")], tmp_path / "out", ConvertOptions(split=IN_ORDER))
    with connect(tmp_path / "out" / "train" / "data.0000.aselmdb", readonly=True, use_lock_file=False) as database:
        assert len(database) == 2
        assert [row.natoms for row in database.select()] == [6, 3]
        assert database.get(id=2).toatoms().get_potential_energy() == pytest.approx(-14.01)


@pytest.mark.shared
def test_all_reference_files_survive(tmp_path: Path, shared: Path):
    """Every labelled structure of every kind: what fairchem reads equals what ASE reads."""
    skips = {"vasp_C8Nb16O8_relax_49.extxyz": [1], "ethanol_test_dimers.extxyz": [0, 1, 2]}
    for path in sorted((shared / "data").glob("*.extxyz")):
        if path.stat().st_size > 3_000_000:
            continue
        out = tmp_path / path.stem
        energy_only = path.name.startswith("ethanol")
        require = ("energy",) if energy_only else ("energy", "forces")
        options = ConvertOptions(
            split=IN_ORDER, limits=Limits(require=require, max_force=float("inf")), linear_references=False
        )
        summary = convert([str(path)], out, options)
        skipped = [skip["position"] for skip in summary["skipped"]]
        assert skipped == skips.get(path.name, []), path.name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = [atoms for index, atoms in enumerate(ase.io.read(path, ":")) if index not in skipped]
        dataset = open_split(section(out / "dataset.yml"), "train")
        assert len(dataset) == len(read), path.name
        for data, atoms in list(zip(dataset, read, strict=True))[:: max(len(read) // 10, 1)]:
            if energy_only:
                assert data.energy == pytest.approx(atoms.calc.results["energy"], rel=1e-12)
            else:
                assert_same(data, atoms)


def test_the_summary_counts(tmp_path: Path):
    write(tmp_path / "a.extxyz", [slab(k) if k % 2 else molecule(k) for k in range(10)])
    summary = convert([str(tmp_path / "a.extxyz")], tmp_path / "out", ConvertOptions(split=SplitOptions(parts=(6, 2))))
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["read"], summary["usable"], summary["not_needed"]) == (10, 10, 2)
    train, val = summary["splits"]["train"], summary["splits"]["val"]
    assert (train["structures"], val["structures"]) == (6, 2)
    assert set(train["elements"]) == {"Cu", "O", "H"}
    assert (train["atoms"]["smallest"], train["atoms"]["largest"]) == (3, 6)
    mean = train["force_component_mean_absolute_eV_per_A"]
    heading, _, cells = [
        line
        for line in (tmp_path / "out" / "report.txt").read_text().splitlines()
        if line.startswith(("spl", "--", "tra"))
    ][:3]
    assert "mean |F|" not in heading  # that would be the mean size of the vectors
    column = heading.index("mean |component|")
    assert float(cells[column : column + len("mean |component|")]) == pytest.approx(mean, rel=1e-4)
