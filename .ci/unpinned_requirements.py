"""Print what fairchem-core and this package require, without fairchem-core itself and without its bounds."""

from __future__ import annotations

import re
from importlib.metadata import requires

NAME = re.compile(r"[A-Za-z0-9._-]+")


def names(distribution: str) -> set[str]:
    """Names of a distribution's requirements, without those of extras."""
    return {
        match.group().lower()
        for line in requires(distribution) or []
        if "extra ==" not in line and (match := NAME.match(line))
    }


wanted = (names("fairchem-core") | names("escaip-fairchem")) - {"fairchem-core"}
print("\n".join(sorted(wanted | {"pytest", "pytest-timeout", "pytest-xdist", "hypothesis"})))
