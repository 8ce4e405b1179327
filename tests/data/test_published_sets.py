"""What the configurations of published sets name is what the conversions write, and fairchem reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fairchem_side import open_split
from raw_cases import mptrj_entry, sgdml_arrays, spice_group, write_spice

from escaip_fairchem.data.convert import convert
from escaip_fairchem.data.published_sets import MoleculeOptions, MPtrjOptions, SpiceOptions, convert_molecules

CONFIGS = Path(__file__).parents[2] / "configs"


def make_spice() -> None:
    molecules = {f"m{k}": spice_group(f"C{'C' * k}", [6, 1], frames=4, seed=k) for k in range(20)}
    write_spice(Path("spice.hdf5"), molecules)
    convert(["spice.hdf5"], Path("data/spice"), SpiceOptions().convert_options())


def make_mptrj() -> None:
    random = np.random.default_rng(0)
    entries = {
        f"mp-{k}": {f"mp-{k}-0-0": mptrj_entry(f"mp-{k}", energy=-10.0 + random.normal(), force=_balanced(random))}
        for k in range(20)
    }
    Path("mptrj.json").write_text(json.dumps(entries))
    convert(["mptrj.json"], Path("data/mptrj"), MPtrjOptions().convert_options())


def _balanced(random: np.random.Generator) -> list[list[float]]:
    force = random.normal(0.0, 0.3, 3)
    return [force.tolist(), (-force).tolist()]


def make_md22() -> None:
    np.savez("md22_AT-AT.npz", **sgdml_arrays(40))
    convert_molecules(["md22_AT-AT.npz"], Path("data/md22"), MoleculeOptions(form="md22"))


def merged(*names: str) -> dict[str, Any]:
    """The dataset section of some configurations, later ones over earlier ones."""
    section: dict[str, Any] = {}
    for name in names:
        _merge(section, yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8")).get("dataset", {}))
    return section


def _merge(onto: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(onto.get(key), dict):
            _merge(onto[key], value)
        else:
            onto[key] = value


SETS = {
    "spice": (make_spice, ["spice/base.yml", "spice/escaip_spice.yml"]),
    "mptrj": (make_mptrj, ["mptrj/base.yml", "mptrj/base_direct.yml"]),
    "mptrj, conservative": (make_mptrj, ["mptrj/base.yml", "mptrj/escaip_mptrj_conservative.yml"]),
    "md22": (make_md22, ["md22/base.yml", "md22/escaip_md22_at_at.yml"]),
}


@pytest.mark.parametrize("name", list(SETS))
def test_configurations_find_everything(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    from fairchem.core.modules.normalization.element_references import create_element_references
    from fairchem.core.modules.normalization.normalizer import create_normalizer

    make, configurations = SETS[name]
    monkeypatch.chdir(tmp_path)
    make()
    section = merged(*configurations)
    transforms = section["train"].get("transforms", {})
    section["train"].pop("rotations", None)  # this package's, which fairchem does not know
    labels = {label.removeprefix("r_") for label in section["train"]["a2g_args"]}
    splits = {split: open_split(section, split) for split in section}
    assert all(len(dataset) for dataset in splits.values())
    assert labels <= set(splits["train"][0].keys())
    for target, settings in transforms.get("normalizer", {}).items():
        normalizer = create_normalizer(**settings)
        assert normalizer.rmsd > 0
        if "file" in settings:
            with np.load(settings["file"]) as saved:
                assert float(normalizer.rmsd) == saved["rmsd"]
                assert (float(normalizer.mean), saved["mean"].shape) == (saved["mean"], ())
        if target in ("energy", "forces") and "file" in settings:
            assert _spread_after(splits["train"], target, transforms, normalizer) == pytest.approx(
                _expected_spread(name, target, transforms), rel=1e-5
            )
    for settings in transforms.get("element_references", {}).values():
        assert create_element_references(**settings).element_references[11] != 0


def _spread_after(dataset: Any, target: str, transforms: dict[str, Any], normalizer: Any) -> float:
    values = np.concatenate([np.ravel(np.asarray(data[target])) for data in dataset])
    if target == "energy" and "element_references" in transforms:
        with np.load(transforms["element_references"]["energy"]["file"]) as saved:
            references = saved["element_references"]
        values = values - [references[data.atomic_numbers.long().numpy()].sum() for data in dataset]
    freedom = len(values) - (target == "energy")  # the mean of the energies was fitted, that of the forces is zero
    return float(np.sqrt(((values - float(normalizer.mean)) ** 2).sum() / freedom) / float(normalizer.rmsd))


def _expected_spread(name: str, target: str, transforms: dict[str, Any]) -> float:
    """1; with one scale for all, that of the energies over that of the forces."""
    if "conservative" not in name or target == "forces":
        return 1.0
    with np.load("data/mptrj/normalizers/energy.npz") as own, np.load("data/mptrj/normalizers/forces.npz") as shared:
        return float(own["rmsd"] / shared["rmsd"])


def test_the_scale_files_are_what_the_sections_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    make_mptrj()
    folder = Path("data/mptrj")
    assert set(_files(folder / "normalizers")) == {
        *("energy", "forces", "stress", "stress_isotropic", "stress_anisotropic"),
        *("conservative_energy", "conservative_forces", "conservative_stress"),
    }
    for prefix, file in (("", "dataset.yml"), ("conservative_", "dataset_conservative.yml")):
        section = yaml.safe_load((folder / file).read_text(encoding="utf-8"))["dataset"]["train"]
        for target, settings in section["transforms"]["normalizer"].items():
            with np.load(folder / f"normalizers/{prefix}{target}.npz") as saved:
                assert {key: float(saved[key]) for key in saved} == pytest.approx(settings, rel=1e-9)


def _files(folder: Path) -> Iterator[str]:
    return (path.stem for path in folder.iterdir())
