"""``escaip info CONFIG``: what a configuration's model is made of and what it costs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from escaip_fairchem.cli.config_files import (
    check_yaml,
    is_configuration,
    is_site,
    is_sweep,
    locate_config,
    shipped_configs,
)
from escaip_fairchem.errors import ConfigError

if TYPE_CHECKING:
    from escaip_fairchem.plugin.info import ModelInfo

# float32 weights, gradients, two moments of AdamW, and the moving average.
_BYTES_PER_TRAINED_PARAMETER = 4 * 5


def add_parser(subparsers: Any) -> None:
    """Add the sub-command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "info",
        help="parameters, memory and FLOPs of a configuration's model",
        description="Print the parameters of each part of a configuration's model, estimates of memory and "
        "floating-point operations per atom, and the configuration with its includes resolved.",
    )
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG", help="YAML files, or folders of such")
    parser.add_argument("--no-config", action="store_true", help="leave the resolved configuration out")
    parser.add_argument(
        "--table",
        action="store_true",
        help="one line per configuration, its size and its training: what several files get anyway",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print all about one configuration, or a line about each of several."""
    paths = list(dict.fromkeys(locate_config(file) for path in arguments.configs for file in _files_in(path)))
    for path in paths:
        check_yaml(path)
    if arguments.table or len(paths) > 1:
        return _print_table(paths)
    # fairchem's import takes seconds; what is wrong with the files has been said by now.
    import yaml

    from escaip_fairchem.plugin.info import inspect_config

    (path,) = paths
    if is_sweep(path):
        raise ConfigError(
            f"{path}: is a sweep, not one configuration; `fairchem main --sweep-yml {path} --dry-run` tells about its "
            "runs"
        )
    info = inspect_config(path)
    print(f"{path}")
    for line in describe(info):
        print(f"  {line}")
    if not arguments.no_config:
        print("  resolved configuration:")
        for line in yaml.safe_dump(info.config, sort_keys=False).splitlines():
            print(f"    {line}")
    return 0


def _files_in(path: Path) -> list[Path]:
    """The configurations of a folder, also of one that comes with the package; a file as it is."""
    home = shipped_configs()
    for folder in (path, *([] if home is None or path.is_absolute() else [home / path])):
        if folder.is_dir():
            files = sorted(folder.rglob("*.yml"))
            if not files:
                raise ConfigError(f"{folder}: no configuration (*.yml) is in this folder")
            return files
    return [path]


def _print_table(paths: Sequence[Path]) -> int:
    """One line per configuration; files that others are made of are named at the end."""
    from escaip_fairchem.plugin.info import ModelSizes, is_complete, resolve_includes

    sweeps = [path for path in paths if is_sweep(path)]
    configs = {path: resolve_includes(path) for path in paths if is_configuration(path)}
    # By their names, too: what lacks nothing but a size looks complete.
    complete = [path for path in configs if not path.name.startswith("base") and is_complete(configs[path])]
    sizes = ModelSizes()
    rows = [HEADINGS] + [_row(path, configs[path], sizes.of(configs[path]["model"], path)) for path in complete]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if number < 2 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    parts = [path for path in configs if path not in complete]
    sites = [path for path in paths if is_site(path)]
    reasons = {
        "they are sweeps over other files": sweeps,
        "they say what a cluster wants": sites,
        "they are parts of other files": parts,
    }
    notes = [f"left out, because {why}: {', '.join(map(str, left))}" for why, left in reasons.items() if left]
    if notes:
        print("\n".join(["", *notes]))
    return 0


HEADINGS = ("configuration", "trained on", "parameters", "batch", "rate", "epochs")


def _row(path: Path, config: Mapping[str, Any], parameters: int) -> tuple[str, ...]:
    train, optim = config["dataset"]["train"], config["optim"]
    share = "" if "fraction" not in train else f" ({100 * train['fraction']:g} %)"
    settings = (_shown(optim.get(key)) for key in ("batch_size", "lr_initial", "max_epochs"))
    return (str(path), f"{train['src']}{share}", f"{parameters:,}", *settings)


def _shown(setting: Any) -> str:
    """A setting in short; those of others may be missing, or text (YAML reads ``1e-4`` as such)."""
    if setting is None:
        return "-"
    return f"{setting:g}" if isinstance(setting, int | float) else str(setting)


def describe(info: ModelInfo) -> list[str]:
    """Lines of the report on one configuration."""
    lines = [f"{part:<20} {count:>15,} parameters" for part, count in info.parameters.items()]
    lines.append(f"{'total':<20} {info.total:>15,} parameters")
    lines.append(f"{'weights':<20} {info.total * 4 / 2**20:>15,.1f} MiB (float32)")
    training = info.total * _BYTES_PER_TRAINED_PARAMETER / 2**20
    lines.append(f"{'training state':<20} {training:>15,.1f} MiB (weights, gradients, AdamW, EMA)")
    if info.costs is not None:
        costs = info.costs
        lines += [
            f"{'forward':<20} {costs.forward_flops / 1e9:>15,.2f} GFLOP per atom, all neighbour slots in use",
            f"{'training step':<20} {3 * costs.forward_flops / 1e9:>15,.2f} GFLOP per atom (direct forces; about)",
            f"{'training memory':<20} {costs.saved_bytes / 2**20:>15,.2f} MiB per atom (float32, plain model)",
            f"{'inference memory':<20} {costs.readout_bytes / 2**20:>15,.2f} MiB per atom for the readouts alone",
        ]
    return lines
