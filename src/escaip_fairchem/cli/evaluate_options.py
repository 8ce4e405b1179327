"""Options that the sub-commands of ``escaip evaluate`` share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from escaip_fairchem.cli.config_files import check_yaml, locate_config
from escaip_fairchem.errors import ConfigError

if TYPE_CHECKING:
    from escaip_fairchem.plugin.evaluation_sets import Reading, SetSource
    from escaip_fairchem.plugin.inference import Inference


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add CHECKPOINT, as the first positional argument."""
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="file written by training, e.g. best_checkpoint.pt"
    )


def add_model_options(parser: argparse.ArgumentParser, *, batch_size: int) -> None:
    """Add what says how the checkpoint is opened and run."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration to use instead of the checkpoint's")
    add_device_options(parser)
    parser.add_argument(
        "--batch-size",
        type=int,
        default=batch_size,
        metavar="N",
        help="structures at a time; changes nothing but time and memory (default: %(default)s)",
    )


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add where the checkpoint runs, and whether it is trusted: what every evaluation has to know."""
    parser.add_argument("--cpu", action="store_true", help="run on the CPU although there is a GPU")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="load a checkpoint that holds more than tensors and plain values, which can run foreign code",
    )


def add_set_options(parser: argparse.ArgumentParser) -> None:
    """Add the data sets, and how they are read."""
    parser.add_argument(
        "sets", nargs="+", metavar="NAME=SRC", help="data sets: what to call each, and its folder or file"
    )
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        help="lmdb, oc22_lmdb or ase_db (default: the training's, unless the files' names contradict it)",
    )
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that load data (default: %(default)s, this one)"
    )


def open_model(arguments: argparse.Namespace) -> Inference:
    """Open the checkpoint as the options say; importing what that needs takes seconds."""
    config = None if arguments.config is None else locate_config(arguments.config)
    if config is not None:
        check_yaml(config)
    from escaip_fairchem.plugin.inference import open_checkpoint

    return open_checkpoint(arguments.checkpoint, config=config, cpu=arguments.cpu, trusted=arguments.trust)


def sources_of(words: list[str]) -> list[SetSource]:
    """Read ``NAME=SRC`` words.

    Raises:
        ConfigError: A word has no name, or no place.
    """
    from escaip_fairchem.plugin.evaluation_sets import SetSource

    sources = []
    for word in words:
        name, equals, src = word.partition("=")
        if not (name and equals and src):
            raise ConfigError(f"{word!r}: is no NAME=SRC; give every data set a name, e.g. val_id=data/oc20/val_id")
        sources.append(SetSource(name=name, src=Path(src)))
    return sources


def reading_of(arguments: argparse.Namespace, **settings: Any) -> Reading:
    """How data sets are read, by the options."""
    from escaip_fairchem.plugin.evaluation_sets import Reading

    return Reading(form=arguments.format, batch_size=arguments.batch_size, workers=arguments.workers, **settings)
