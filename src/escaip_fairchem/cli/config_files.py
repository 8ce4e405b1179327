"""Find configuration files, and read them before anything slow is imported."""

from __future__ import annotations

from pathlib import Path

import yaml

import escaip_fairchem
from escaip_fairchem.errors import ConfigError, nearest

_PACKAGE = Path(escaip_fairchem.__file__).parent
_LONGEST_LIST = 400
"""Characters; in a message of a hundred files nobody finds what it says."""


def shipped_configs() -> Path | None:
    """Folder that holds ``configs/``: the package, or the source tree that it is run from."""
    for folder in (_PACKAGE, _PACKAGE.parents[1]):
        if (folder / "configs").is_dir():
            return folder
    return None


def is_sweep(path: Path) -> bool:
    """Whether a file is a sweep over trainings rather than a training or a part of one, by its name: ``*sweep.yml``."""
    return path.name.endswith("sweep.yml")


def is_site(path: Path) -> bool:
    """Whether a file holds what a cluster wants of every job, for ``--slurm-yml``."""
    return path.name.endswith("site.yml")


def is_configuration(path: Path) -> bool:
    """Whether a file is a configuration, or part of one."""
    return not is_sweep(path) and not is_site(path)


def locate_config(path: Path, flag: str = "--config-yml") -> Path:
    """Find a configuration file.

    Args:
        path: As given on the command line. What is not found from the working folder is looked for among the files that
            come with the package.
        flag: The option that it was given with.

    Returns:
        A path that exists.

    Raises:
        ConfigError: There is no such file.
    """
    if path.is_file():
        return path
    home = shipped_configs()
    if home is not None and not path.is_absolute() and (home / path).is_file():
        return home / path
    files = [] if home is None else sorted((home / "configs").rglob("*.yml"))
    fits = {"--sweep-yml": is_sweep, "--slurm-yml": is_site}.get(flag, is_configuration)
    shipped = [str(file.relative_to(home)) for file in files if home is not None and fits(file)]
    what = (
        "is a folder, not a file"
        if path.is_dir()
        else f"no such configuration file, neither in {Path.cwd()} nor shipped"
    )
    known = nearest(str(path), shipped) if shipped else ""
    if len(known) > _LONGEST_LIST:
        known = f"; those that come with the package are in {home}/configs"
    raise ConfigError(f"{flag} {path}: {what}{known}")


def check_yaml(path: Path, included_from: tuple[Path, ...] = ()) -> None:
    """Read a file and what it includes, to report what is no YAML.

    Args:
        path: The file.
        included_from: The files that lead here.

    Raises:
        ConfigError: A file cannot be read, is not YAML, holds no keys, or includes what is missing or itself.
    """
    chain = "".join(f", included from {file}" for file in reversed(included_from))
    if path in included_from:
        raise ConfigError(f"{path}: includes itself{chain}")
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}){chain}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML{chain}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {type(content).__name__} where keys with values are needed{chain}")
    includes = content.get("includes", [])
    if not isinstance(includes, list):
        raise ConfigError(f"{path}: includes: {includes!r} has to be a list of files{chain}")
    for include in includes:
        # fairchem looks from the working folder first.
        found = next((file for file in (Path(include), path.parent / include) if file.exists()), None)
        if found is None:
            raise ConfigError(
                f"{path}: includes {include}, which is neither in {Path.cwd()} nor in {path.parent}{chain}"
            )
        check_yaml(found, (*included_from, path))
