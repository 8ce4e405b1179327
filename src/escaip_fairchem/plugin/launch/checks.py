"""What can be known to fail before anything heavy is built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from escaip_fairchem.errors import ConfigError, RunFolderError, nearest
from escaip_fairchem.plugin.checkpoints import read_checkpoint
from escaip_fairchem.plugin.launch import known_keys
from escaip_fairchem.plugin.launch.names import check_names
from escaip_fairchem.plugin.launch.references import translate_linear_references
from escaip_fairchem.plugin.sources import advice, check_atom_counts, check_source
from escaip_fairchem.plugin.trainer.metrics import CheckedEvaluator, choose_primary, default_metrics
from escaip_fairchem.plugin.trainer.retention import continuable
from escaip_fairchem.plugin.trainer.settings import complete_settings

SPLIT_OF_MODE = {"train": "train", "validate": "val", "predict": "test", "run-relaxations": "relax"}


def check_config(config: dict[str, Any]) -> None:
    """Refuse a configuration that cannot work, and fill in what fairchem would stumble over.

    Args:
        config: The whole configuration, command-line flags included; missing keys are added.

    Raises:
        ConfigError: A key is missing, unknown, or fits nothing else in the configuration.
        DataError: A data set is not where the configuration says.
        CheckpointError: The checkpoint cannot be read.
    """
    for section in ("model", "optim", "dataset"):
        if not config.get(section):
            raise ConfigError(f"{section}: this section is missing from the configuration")
    check_keys(config)
    check_names(config)
    check_data(config["dataset"], config["mode"])
    check_balancing(config)
    translate_linear_references(config)
    if config.get("loss_functions"):  # the way of writing things since fairchem 1.0; fairchem converts older ones
        complete_settings(config, inference_only=False)
        complete_metrics(config)
    check_checkpoint(config)


def check_folder(config: Mapping[str, Any]) -> None:
    """Refuse to train from a checkpoint of elsewhere in a folder that has one, which would be replaced.

    Without a checkpoint on the command line, fairchem continues from the folder's own.

    Raises:
        RunFolderError: That is so; the message says how to continue.
    """
    given = config.get("checkpoint")
    if config["mode"] != "train" or given is None or config.get("is_debug"):
        return
    own = continuable(Path(config["run_dir"]) / "checkpoints" / str(config["timestamp_id"]))
    if own and Path(given).exists() and not any(file.samefile(given) for file in own):
        raise RunFolderError(
            f"--timestamp-id {config['timestamp_id']}: {own[0]} is of an earlier training, which one that starts from "
            f"{given} would replace. Leave --checkpoint out to continue the earlier one, or choose another name"
        )


def check_keys(config: Mapping[str, Any]) -> None:
    """Refuse keys that nobody reads, where it is known who reads them.

    Raises:
        ConfigError: A key is unknown; the message names the nearest known one.
    """
    if str(config.get("trainer", "ocp")) not in known_keys.STOCK_TRAINERS:
        return
    _refuse_unknown("", config, known_keys.TOP)
    _refuse_unknown("optim.", config["optim"], known_keys.OPTIM | known_keys.scheduler_keys())
    _refuse_unknown("task.", config.get("task"), known_keys.TASK)
    _refuse_unknown("evaluation_metrics.", config.get("evaluation_metrics"), known_keys.EVALUATION)
    for name, output in (config.get("outputs") or {}).items():
        _refuse_unknown(f"outputs.{name}.", output, known_keys.OUTPUT)
    if isinstance(config["dataset"], Mapping):
        is_own = str(config.get("trainer", "ocp")) in known_keys.OWN_TRAINERS
        _check_dataset_keys(config["dataset"], known_keys.OWN_DATASET if is_own else {})


def _check_dataset_keys(dataset: Mapping[str, Any], further: Mapping[str, Set[str]]) -> None:
    _refuse_unknown("dataset.", dataset, known_keys.SPLITS)
    for split, settings in dataset.items():
        _refuse_unknown(f"dataset.{split}.", settings, settings or ())  # any key, but keys
    shared = (dataset.get("train") or {}).get("format", "lmdb")
    for split, settings in dataset.items():
        if (settings or {}).get("format", shared) in known_keys.STOCK_FORMATS:
            _refuse_unknown(f"dataset.{split}.", settings, known_keys.DATASET | further.get(split, frozenset()))


def _refuse_unknown(place: str, section: Any, known: Iterable[str]) -> None:
    if section is None:
        return
    if not isinstance(section, Mapping):
        raise ConfigError(f"{place.rstrip('.')}: {section!r} is given where keys with values are needed")
    known = set(known)
    for key in section:
        if key not in known:
            raise ConfigError(f"{place}{key}: unknown key{nearest(str(key), known)}")


def check_data(dataset: Any, mode: str) -> None:
    """Refuse data sets that are not there.

    Args:
        dataset: The ``dataset`` section: splits by name. The older forms are left to fairchem.
        mode: What is going to be done.

    Raises:
        ConfigError: The split that the mode needs is not configured.
        DataError: A path does not exist, or a folder holds no LMDB file.
    """
    if not isinstance(dataset, Mapping) or not known_keys.SPLITS & set(dataset):
        return
    needed = SPLIT_OF_MODE[mode]
    if not (dataset.get(needed) or {}).get("src"):
        key = f"dataset.{needed}.src"
        raise ConfigError(f"{key}: missing, and needed to {mode}; {advice(key)}")
    for split, settings in _splits(dataset):
        check_source(f"dataset.{split}.src", settings.get("src"), settings.get("format", "lmdb"))


def _splits(dataset: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Settings of every split, those that it takes over from the training set included."""
    shared = dict(dataset.get("train") or {})
    shared.pop("src", None)
    for split in sorted(known_keys.SPLITS & set(dataset)):
        own = dataset[split] or {}
        yield split, {**shared, **own} if own.get("use_train_settings", True) else dict(own)


def check_balancing(config: Mapping[str, Any]) -> None:
    """Refuse to balance numbers of atoms that are not known; fairchem does so late, and with one process as well.

    Args:
        config: The configuration.

    Raises:
        DataError: A data set has no ``metadata.npz``.
    """
    optim, dataset = config["optim"], config["dataset"]
    if optim.get("load_balancing") is None or optim.get("load_balancing_on_error", "raise") != "raise":
        return
    if not isinstance(dataset, Mapping):
        return
    for split, settings in _splits(dataset):
        if settings.get("format", "lmdb") in known_keys.STOCK_FORMATS:
            check_atom_counts(f"dataset.{split}.src", settings.get("src"), settings.get("metadata_path"))


def complete_metrics(config: dict[str, Any]) -> None:
    """Refuse metrics and losses of what is not an output, and choose the metric that decides which checkpoint is best.

    fairchem reports 0.0 for a metric of something that is not an output.

    Args:
        config: The configuration; missing metrics are added.

    Raises:
        ConfigError: A metric or a loss cannot be computed.
    """
    targets = dict(config["outputs"])
    for settings in config["outputs"].values():
        targets.update(settings.get("decomposition") or {})
    for index, terms in enumerate(config["loss_functions"]):
        for target in terms:
            if target not in targets:
                raise ConfigError(
                    f"loss_functions.{index}.{target}: it is not among the outputs{nearest(target, targets)}"
                )
    evaluation = config["evaluation_metrics"]
    evaluation["metrics"] = evaluation.get("metrics") or default_metrics(targets)
    labels = CheckedEvaluator("ocp", evaluation["metrics"], targets).labels
    evaluation["primary_metric"] = choose_primary(evaluation.get("primary_metric"), labels)


def check_checkpoint(config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that cannot be read, and a mode that needs one without one.

    Raises:
        ConfigError: None is given, and the mode needs one.
        CheckpointError: There is no such file, or it is no checkpoint.
    """
    path = config.get("checkpoint")
    if path is not None and not Path(path).is_dir():  # a folder is one of torch's distributed checkpoints
        trusted = bool((config.get("task") or {}).get("trust_checkpoint"))
        read_checkpoint(path, trusted=trusted)
    if path is None and config["mode"] != "train":
        raise ConfigError(
            f"--mode {config['mode']} needs a trained model: add --checkpoint checkpoints/…/best_checkpoint.pt"
        )
