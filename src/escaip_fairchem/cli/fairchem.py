"""The command ``fairchem``: upstream's own, plus ``fairchem main``, which checks first and fills gaps."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from escaip_fairchem.cli.config_files import check_yaml, locate_config
from escaip_fairchem.cli.reporting import run_reporting


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The words after ``fairchem``; by default those that the process was started with.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["main"]:
        return run_reporting("fairchem main", lambda: _main(words[1:]), debug="--debug" in words)
    if arguments is not None:
        sys.argv[1:] = words  # upstream's parser reads it from there
    return run_reporting("fairchem", _upstream, debug="--debug" in words)


def _main(words: list[str]) -> int:
    words = _with_located_config(words)
    # fairchem's import takes seconds; what is wrong with the file has been said by now.
    from escaip_fairchem.plugin.launch import run_main

    return run_main(words)


def _upstream() -> None:
    from escaip_fairchem.plugin.launch import run_upstream

    run_upstream()


def _with_located_config(words: list[str]) -> list[str]:
    """Replace the paths of YAML files by those of files that exist and are YAML."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in _FILES:
        parser.add_argument(flag, type=Path, dest=flag)
    given, rest = parser.parse_known_args(words)
    located: list[str] = []
    for flag, path in vars(given).items():
        if path is None:
            continue  # fairchem's parser says what is missing, or prints its help
        found = locate_config(path, flag)
        if found != path:
            # Printed, because fairchem sets logging up later, and only where nobody has done so yet.
            print(f"{flag} {path}: not in {Path.cwd()}, using the shipped {found}")
        check_yaml(found)
        located += [flag, str(found)]
    return [*located, *rest]


_FILES = ("--config-yml", "--sweep-yml", "--slurm-yml")


if __name__ == "__main__":
    sys.exit(main())
