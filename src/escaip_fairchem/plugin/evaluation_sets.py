"""Data sets to evaluate on: opened by the keys of a training, read in the order of the file, faults named."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
from ase.calculators.calculator import PropertyNotImplementedError
from fairchem.core.common.registry import registry
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from escaip_fairchem.errors import ConfigError, DataError, nearest
from escaip_fairchem.lmdb_files import open_readonly
from escaip_fairchem.plugin.backbone import EScAIPBackbone
from escaip_fairchem.plugin.inference import Inference
from escaip_fairchem.plugin.samples import text_of_id
from escaip_fairchem.plugin.trainer.loaders import Collater, build_loader, rows_or_fault

FORMATS = ("lmdb", "oc22_lmdb", "ase_db")
SPLITS = {"OC20": ("id", "ood_ads", "ood_cat", "ood_both"), "OC22": ("id", "ood")}
"""Sets to evaluate on, by benchmark: those of validation, and likewise those of the leaderboards."""
CLASSIC_NAMES = {"y": "energy", "force": "forces"}
"""Names of labels in OC20's and OC22's files, and what they are called here."""
GROUP = "group_of_evaluation"
"""Under which a structure holds its group: under the key's own name the model might read it, as ``natoms``."""
_CONVERTED = ("pos", "cell", "pbc", "natoms", "atomic_numbers", "tags", "fixed", "sid", "fid")
"""What fairchem makes of every structure of an ASE database, whether its data hold an entry of that name or not."""
_NEEDED = ("pos", "natoms", "atomic_numbers")
_SELECTING = (
    *("src", "metadata_path", "first_n", "sample_n", "no_shuffle", "subset_to", "max_atoms", "splits", "seed"),
    *("fraction", "rotations", "shard", "total_shards", "data2train", "use_train_settings", "keep_in_memory"),
    *("train_split_settings", "val_split_settings", "test_split_settings"),
)
"""Keys that say which structures are used, and how often: all of a set are evaluated, once."""


@dataclass(frozen=True, kw_only=True)
class SetSource:
    """A data set as a command names it.

    Attributes:
        name: What its row is called.
        src: Folder or file.
    """

    name: str
    src: Path

    def __str__(self) -> str:
        return f"{self.name}={self.src}"


def require_different_names(names: Sequence[str]) -> None:
    """Refuse names of data sets that occur twice.

    Raises:
        ConfigError: Names one.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"data set {twice[0]!r}: named twice; every NAME=SRC needs a name of its own")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How data sets are read.

    Attributes:
        form: fairchem's name of their format; None: the training's, unless the files contradict it.
        labels: Labels that every structure must have.
        group_by: Name of the value that divides a set into groups, or None.
        batch_size: Structures per batch.
        workers: Processes that load; 0 loads in this one.
    """

    form: str | None = None
    labels: Sequence[str] = ()
    group_by: str | None = None
    batch_size: int = 16
    workers: int = 0

    def __post_init__(self) -> None:
        if self.form is not None and self.form not in FORMATS:
            raise ConfigError(f"--format: unknown format {self.form!r}{nearest(self.form, FORMATS)}")
        if self.batch_size < 1 or self.workers < 0:
            raise ConfigError(f"--batch-size {self.batch_size}, --workers {self.workers}: must be at least 1 and 0")


class EvaluationSet(Dataset[Any]):
    """A data set whose faults name the set, the structure and the remedy.

    Args:
        source: What it is called, and where it is.
        dataset: fairchem's data set.
        form: Its format.
        reading: What every structure must have.
    """

    def __init__(self, source: SetSource, dataset: Any, form: str, reading: Reading) -> None:
        self.source, self.dataset, self.form, self.reading = source, dataset, form, reading

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Any:
        """Read one structure.

        Raises:
            DataError: It cannot be read, or lacks a label or the value to group by.
        """
        key = self.reading.group_by
        try:
            sample = self.dataset[row]
            absent = [name for name in _NEEDED if sample.get(name) is None]
        except Exception as error:  # pickles of others raise anything; the message says what
            raise self._fault(row, error) from error
        if absent:
            raise DataError(f"{self._place(row, sample)}: has no {absent[0]!r}; remove it from the set")
        missing = [label for label in self.reading.labels if sample.get(label) is None]
        if missing:
            raise DataError(f"{self._place(row, sample)}: has no label {missing[0]!r}; {self._how_to_label(missing)}")
        if key is not None:
            if sample.get(key) is None:
                raise DataError(f"{self._place(row, sample)}: {_without_group(key, sample.keys())}")
            sample[GROUP] = text_of_id(sample[key])
        return sample

    def __getitems__(self, rows: Sequence[int]) -> list[Any]:
        """Read the structures of a batch, or hand over what is wrong with one; see `rows_or_fault`."""
        return rows_or_fault(self, rows)

    def _place(self, row: int, sample: Any = None) -> str:
        sid = None if sample is None else sample.get("sid")
        return f"{self.source}: structure {row}{'' if sid is None else f' (sid {text_of_id(sid)})'}"

    def _fault(self, row: int, error: Exception) -> DataError:
        if self.form == "ase_db" and isinstance(error, KeyError) and error.args == (self.reading.group_by,):
            return DataError(f"{self._place(row)}: {_without_group(str(error.args[0]), self._info_keys(row))}")
        if self.form == "ase_db" and isinstance(error, PropertyNotImplementedError | RuntimeError):
            return DataError(f"{self._place(row)}: {error}; {self._how_to_label(self.reading.labels)}")
        return DataError(
            f"{self._place(row)}: cannot be read as {self.form} ({type(error).__name__}: {error}); name its format "
            f"with --format ({', '.join(FORMATS)}), or its keys with --config"
        )

    def _info_keys(self, row: int) -> list[str]:
        return [str(key) for key in self.dataset.get_atoms(self.dataset.ids[row]).info]

    def _how_to_label(self, labels: Sequence[str]) -> str:
        if self.form == "ase_db":
            return f"the database must hold {' and '.join(labels)} of every structure, as the checkpoint predicts them"
        return (
            "if it is stored under another name, give a configuration with dataset.train.key_mapping: "
            f"{{NAME: {labels[0]}}} (--config FILE)"
        )


def _without_group(key: str, known: Sequence[str]) -> str:
    return (
        f"has no {key!r} in its data{nearest(key, known) if known else ''}; name a key that every structure has with "
        "--group-by, or leave the grouping out"
    )


def open_set(source: SetSource, inference: Inference, reading: Reading) -> EvaluationSet:
    """Open a data set by the keys that a model was trained with.

    Args:
        source: Name and place.
        inference: The model, which knows the keys.
        reading: Format, labels and grouping.

    Raises:
        DataError: It is not there, is empty, or cannot be read in this format.
    """
    if not source.src.exists():
        raise DataError(f"{source}: does not exist (looked in {Path.cwd()}); give a folder or file as NAME=SRC")
    configured = str(inference.dataset.get("format") or "lmdb")
    form = reading.form or _format_of(source.src, configured)
    settings = dataset_settings(inference.dataset, form, reading)
    try:
        _check_files(source, form)
        dataset = registry.get_dataset_class(form)({**settings, "src": str(source.src)})
    except DataError:
        raise
    except (ValueError, AssertionError, OSError, RuntimeError, lmdb.Error, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{source}: cannot be read as {form}, or is empty ({reason}); name its format with --format "
            f"({', '.join(FORMATS)})"
        ) from error
    if len(dataset) == 0:
        raise DataError(f"{source}: is empty, there is nothing to evaluate on; check the path")
    return EvaluationSet(source, dataset, form, reading)


def _check_files(source: SetSource, form: str) -> None:
    """Open every LMDB file once: the readers would complain a second time, when the one that failed is deleted.

    Raises:
        DataError: A file was cut off.
    """
    is_ase = form.startswith("ase")
    files = [source.src] if source.src.is_file() else sorted(source.src.glob("*.aselmdb" if is_ase else "*.lmdb"))
    if not files and not is_ase:  # ASE's readers know files of many other kinds
        raise ValueError("the folder holds no *.lmdb file")
    for file in files:
        if not is_ase or file.suffix == ".aselmdb":
            open_readonly(file).close()


def _format_of(src: Path, configured: str) -> str:
    """The training's format, unless the files' names say that they hold the other kind."""
    suffixes = {path.suffix for path in ([src] if src.is_file() else src.iterdir())}
    kinds = suffixes & {".lmdb", ".aselmdb"}
    if kinds == {".aselmdb"} and not configured.startswith("ase"):
        return "ase_db"
    if kinds == {".lmdb"} and configured.startswith("ase"):
        return "lmdb"
    return configured


def dataset_settings(configured: Mapping[str, Any], form: str, reading: Reading) -> dict[str, Any]:
    """Keys of a data set, from those of a training: everything but which structures are taken.

    Args:
        configured: The training's.
        form: Format of the data set, which may be another than the training's.
        reading: Labels and grouping that the reader has to be asked for.
    """
    settings = {key: value for key, value in configured.items() if key not in _SELECTING}
    same_kind = str(settings.get("format") or "lmdb").startswith("ase") == form.startswith("ase")
    settings["format"] = form
    if not form.startswith("ase"):
        settings.pop("a2g_args", None)
        if not same_kind:
            settings["key_mapping"] = dict(CLASSIC_NAMES)
        return settings
    if not same_kind:
        settings.pop("key_mapping", None)
    arguments = dict(settings.get("a2g_args") or {})
    arguments.update({f"r_{label}": label in reading.labels for label in ("energy", "forces", "stress")})
    if reading.group_by is not None and reading.group_by not in _CONVERTED:
        arguments["r_data_keys"] = sorted({*(arguments.get("r_data_keys") or ()), reading.group_by})
    settings["a2g_args"] = arguments
    return settings


def load_set(dataset: EvaluationSet, inference: Inference) -> DataLoader[Any]:
    """A loader of a set in the order of its file, which searches neighbours for models of this package."""
    model = inference.trainer.model
    collate = Collater(stored_edges=not inference.trainer.config["model"].get("otf_graph", False))
    backbones = [part for part in model.modules() if isinstance(part, EScAIPBackbone)]
    collate.search = backbones[0].neighbor_search() if backbones else None
    sampler = BatchSampler(SequentialSampler(dataset), dataset.reading.batch_size, drop_last=False)
    return build_loader(
        dataset, sampler, collate=collate, workers=dataset.reading.workers, device=inference.trainer.device
    )
