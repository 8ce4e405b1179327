"""Each remedy on the thing that it remedies."""

from __future__ import annotations

import builtins
import collections
import os
import pathlib
import pickle
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import scipy.special
import torch
from torch_geometric.data import Data

import escaip_fairchem.plugin  # noqa: F401
from escaip_fairchem.errors import ConfigError, DataError
from escaip_fairchem.plugin.compat import apply, register_transform, remedies
from escaip_fairchem.plugin.compat.environments import SharedEnvironment, open_shared, open_whole
from escaip_fairchem.plugin.compat.loading import allow_plain_types_in_checkpoints


def test_applying_twice_changes_nothing():
    from fairchem.core.common import utils

    before = utils.collections, scipy.special.sph_harm
    apply()
    assert (utils.collections, scipy.special.sph_harm) == before


def test_sph_harm_takes_order_degree_azimuth_and_polar_angle(monkeypatch):
    if not hasattr(scipy.special, "sph_harm_y"):
        pytest.skip("this scipy has the old function only")
    monkeypatch.delattr(scipy.special, "sph_harm")
    remedies.provide_sph_harm()
    azimuth, polar = np.linspace(0.1, 6, 7), np.linspace(0.2, 3, 7)
    expected = -0.5 * np.sqrt(15 / (2 * np.pi)) * np.sin(polar) * np.cos(polar) * np.exp(1j * azimuth)  # Y_2^1
    np.testing.assert_allclose(scipy.special.sph_harm(1, 2, azimuth, polar), expected, atol=1e-14)


def test_sweeps_can_be_read(tmp_path: Path):
    from fairchem.core.common.utils import create_grid

    (tmp_path / "sweep.yml").write_text("optim:\n  lr: [1, 2]\n  deep: {er: [a, b]}\n")
    grid = create_grid({"identifier": "x", "optim": {"lr": 0, "deep": {"er": 0}}}, tmp_path / "sweep.yml")
    assert [(c["optim"]["lr"], c["optim"]["deep"]["er"]) for c in grid] == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert not hasattr(collections, "MutableMapping")  # nobody else sees it


def test_batches_of_relaxing_structures_can_be_built():
    from fairchem.core.common.relaxation.optimizable import OptimizableBatch, OptimizableUnitCellBatch

    assert OptimizableBatch.__new__(OptimizableBatch).ignored_changes is OptimizableBatch.ignored_changes
    assert isinstance(OptimizableUnitCellBatch.__new__(OptimizableUnitCellBatch), OptimizableBatch)


# -- files of torch.save ----------------------------------------------------------------------------------------------


def test_normalizers_and_references_are_read_back_from_their_files(tmp_path: Path):
    from fairchem.core.modules.normalization.element_references import LinearReferences
    from fairchem.core.modules.normalization.normalizer import create_normalizer, load_normalizers_from_config

    torch.save({"energy": create_normalizer(mean=1.5, rmsd=2.5)}, tmp_path / "normalizers.pt")
    read = load_normalizers_from_config({"file": str(tmp_path / "normalizers.pt")}, dataset=None)
    assert (read["energy"].mean.item(), read["energy"].rmsd.item()) == (1.5, 2.5)
    torch.save({"energy": LinearReferences(torch.arange(4.0))}, tmp_path / "references.pt")
    references = torch.load(tmp_path / "references.pt", weights_only=True)
    assert references["energy"].element_references.tolist() == [0, 1, 2, 3]


def test_plain_types_of_older_checkpoints_are_read(tmp_path: Path):
    stored = {
        "best_val_metric": np.float64(0.25),
        "step": np.int64(3),
        "rng": np.arange(5, dtype=np.uint32),
        "flags": np.array([True, False]),
        "run_dir": pathlib.Path("/tmp/run"),
        "names": {"a", "b"},
    }
    torch.save(stored, tmp_path / "checkpoint.pt")
    read = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (read["rng"] == stored["rng"]).all()
    assert (read["flags"] == stored["flags"]).all()
    assert {key: read[key] for key in stored if key not in ("rng", "flags")} == {
        key: value for key, value in stored.items() if key not in ("rng", "flags")
    }


@pytest.mark.parametrize("home", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_names_from_before_and_since_numpy_2_are_read(tmp_path: Path, home: str):
    torch.save({"metric": np.float64(0.25)}, tmp_path / "checkpoint.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "checkpoint.pt").read_bytes()
    own = np.float64(0).__reduce__()[0].__module__
    renamed = content.replace(f"{own}\n".encode(), f"{home}\n".encode())
    assert (renamed != content) == (own != home)
    (tmp_path / "old.pt").write_bytes(renamed)
    assert torch.load(tmp_path / "old.pt", weights_only=True)["metric"] == 0.25


class Malicious:
    def __reduce__(self):
        return builtins.exec, ("raise SystemExit('ran code from a file')",)


def test_code_in_files_is_still_refused(tmp_path: Path):
    allow_plain_types_in_checkpoints()
    torch.save({"metric": Malicious()}, tmp_path / "checkpoint.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "checkpoint.pt", weights_only=True)


# -- transforms -------------------------------------------------------------------------------------------------------


def test_transforms_are_found_by_their_name(monkeypatch):
    from fairchem.core.modules import transforms

    monkeypatch.setattr(transforms, "double_energy", None, raising=False)
    monkeypatch.delattr(transforms, "double_energy")

    @register_transform
    def double_energy(data: Data, config: dict) -> Data:
        data.energy = config["factor"] * data.energy
        return data

    data = Data(energy=torch.tensor([3.0]))
    assert transforms.DataTransforms({"double_energy": {"factor": 2}})(data).energy.item() == 6
    assert register_transform(double_energy) is double_energy

    def decompose_tensor(data: Data, config: dict) -> Data:
        return data

    with pytest.raises(ConfigError, match="'decompose_tensor' exists already"):
        register_transform(decompose_tensor)


# -- LMDB files that are opened twice ---------------------------------------------------------------------------------

READ = {"subdir": False, "readonly": True, "lock": False}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.lmdb"
    environment = lmdb.open(str(path), subdir=False, lock=False, map_size=2**20)
    with environment.begin(write=True) as transaction:
        transaction.put(b"key", b"value")
    environment.close()
    return path


def read(environment) -> bytes:
    with environment.begin() as transaction:
        return transaction.get(b"key")


def test_one_file_can_be_opened_twice_and_closed_once_by_each(file: Path):
    first, second = open_shared(str(file), **READ), open_shared(str(file), **READ)
    assert isinstance(first, SharedEnvironment)
    assert read(first) == read(second) == b"value"
    assert first.stat()["entries"] == 1
    first.close()
    first.close()
    assert read(second) == b"value"
    with pytest.raises(lmdb.Error, match="has been closed"):
        read(first)
    second.close()
    with open_shared(str(file), **READ) as third:
        assert read(third) == b"value"


def test_a_link_is_the_same_file_and_a_new_file_is_not(file: Path, tmp_path: Path):
    os.link(file, tmp_path / "link.lmdb")
    first = open_shared(str(file), **READ)
    assert read(open_shared(str(tmp_path / "link.lmdb"), **READ)) == b"value"
    file.unlink()
    environment = lmdb.open(str(file), subdir=False, lock=False, map_size=2**20)
    with environment.begin(write=True) as transaction:
        transaction.put(b"key", b"new")
    environment.close()
    assert read(open_shared(str(file), **READ)) == b"new"
    assert read(first) == b"value"


def test_handles_travel_to_other_processes_and_are_dropped_with_their_owner(file: Path):
    copy = pickle.loads(pickle.dumps(open_shared(str(file), **READ)))
    assert read(copy) == b"value"
    del copy
    environment = open_shared(str(file), subdir=False, lock=False, map_size=2**20)  # for writing: nothing is shared
    assert isinstance(environment, lmdb.Environment)
    environment.close()


def test_a_forked_process_opens_its_own(file: Path):
    parents = open_shared(str(file), **READ)
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        own = open_shared(str(file), **READ)
        is_own = own._entry is not parents._entry and read(own) == b"value"
        entry = parents._entry
        parents.close()
        own.close()
        os.write(sender, b"own" if is_own and entry.environment.path() else b"inherited")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(receiver, 20) == b"own"
    assert read(parents) == b"value"


@pytest.mark.parametrize("opener", [open_shared, open_whole])
def test_a_file_that_was_cut_off_is_refused_before_reading_it_kills_the_process(opener: Any, tmp_path: Path):
    path = tmp_path / "copied.lmdb"
    with lmdb.open(str(path), subdir=False, lock=False, map_size=2**24) as environment:
        with environment.begin(write=True) as transaction:
            for number in range(100):
                transaction.put(str(number).encode(), bytes(5000))
        used = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    content = path.read_bytes()[:used]
    path.write_bytes(content)
    with opener(str(path), **READ) as whole:
        assert whole.stat()["entries"] == 100
    path.write_bytes(content[: used // 2])
    with pytest.raises(DataError, match=rf"copied\.lmdb: was cut off: {used // 2} of {used} bytes"):
        opener(str(path), **READ)
    path.write_bytes(content)  # and nothing was left open that could not be opened again
    opener(str(path), **READ).close()


def test_fairchems_readers_refuse_a_file_that_was_cut_off():
    from ase_db_backends import aselmdb
    from fairchem.core.datasets import lmdb_dataset, oc22_lmdb_dataset

    for module in (lmdb_dataset, oc22_lmdb_dataset, aselmdb):
        assert module.lmdb.open in (open_shared, open_whole)


def test_files_that_cannot_be_opened_say_so(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        open_shared(str(tmp_path / "none.lmdb"), **READ)
    (tmp_path / "text.lmdb").write_text("no database")
    for _ in range(2):
        with pytest.raises(lmdb.Error):
            open_shared(str(tmp_path / "text.lmdb"), **READ)
