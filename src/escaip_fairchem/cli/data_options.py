"""Options that several sub-commands of ``escaip data`` have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from escaip_fairchem.data import defaults
from escaip_fairchem.data.pool import available_cores

ANY_DISTANCE = 0.0
ANY_FORCE = float("inf")


def add_running(parser: Any) -> None:
    """Add how the command runs, which has no influence on the result."""
    parser.add_argument(
        "--workers",
        type=int,
        default=available_cores(),
        metavar="N",
        help="processes; the result does not depend on their number (default: the cores available, here %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier command wrote into OUT")


def add_limits(parser: Any, *, distance: float = ANY_DISTANCE, force: float = ANY_FORCE) -> None:
    """Add what structures must satisfy; published sets are kept whole unless somebody asks for less."""
    parser.add_argument(
        "--min-distance",
        type=float,
        default=distance,
        metavar="Å",
        help=f"closer atoms overlap; 0: any (default: {distance or 'any'})",
    )
    parser.add_argument(
        "--max-force",
        type=float,
        default=force,
        metavar="eV/Å",
        help=f"largest |F| of any atom; inf: any (default: {'any' if force == ANY_FORCE else force})",
    )


def add_split(parser: Any, parts: Sequence[float]) -> None:
    """Add how many structures go where, and the number that decides which."""
    parser.add_argument(
        "--split",
        nargs="+",
        type=float,
        default=list(parts),
        metavar="PART",
        help=f"train, val and test, as fractions that add up to 1 or as counts (default: {' '.join(map(str, parts))})",
    )
    parser.add_argument(
        "--seed", type=int, default=defaults.SEED, metavar="N", help="decides the shuffling (default: %(default)s)"
    )


def add_shard_size(parser: Any, size: int = defaults.SHARD_ROWS, *, what: str = "structures per file") -> None:
    """Add how much goes into a file."""
    parser.add_argument(
        "--shard-size",
        type=int,
        default=size,
        metavar="N",
        help=f"{what} (default: %(default)s)",
    )
