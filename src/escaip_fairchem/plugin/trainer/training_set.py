"""What becomes of data sets before they are used: shares of training sets, orientations, short evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from fairchem.core.datasets.base_dataset import BaseDataset, Subset
from fairchem.core.modules.transforms import decompose_tensor
from torch import Tensor

from escaip_fairchem.errors import ConfigError, DataError
from escaip_fairchem.nn.config import parse_config
from escaip_fairchem.plugin.trainer.loaders import rows_or_fault

VECTORS = ("pos", "forces", "force", "pos_relaxed", "cell", "cell_relaxed")
"""Entries of a sample whose rows are vectors."""
TENSORS = ("stress", "virial")
"""Entries of a sample that hold one tensor of rank 2, as 3 × 3 or 9 numbers."""


@dataclass(frozen=True, kw_only=True)
class Rotations:
    """Keys of ``dataset.train.rotations``.

    Attributes:
        copies: How often every structure occurs, each time in another orientation.
        seed: Decides the orientations.
    """

    copies: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise ConfigError(f"copies: must be at least 1, got {self.copies!r}")


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """What the training set is to become. Other splits stay as they are.

    Attributes:
        fraction: Share of it that is taken.
        rotations: How its structures are turned around, or None.
    """

    fraction: float = 1.0
    rotations: Rotations | None = None

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> TrainingSet:
        """Read the keys ``fraction`` and ``rotations`` of ``dataset.train``.

        Raises:
            ConfigError: A value cannot be used, or contradicts another key.
        """
        fraction = settings.get("fraction", 1.0)
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0.0 < fraction <= 1.0:
            raise ConfigError(f"dataset.train.fraction: must be a share above 0 and up to 1, got {fraction!r}")
        others = [key for key in ("first_n", "sample_n", "no_shuffle") if settings.get(key)]
        if fraction < 1.0 and others:
            raise ConfigError(f"dataset.train.fraction: draws structures, as {others[0]} does; give one of them")
        section = settings.get("rotations")
        if section is not None and not isinstance(section, Mapping):
            raise ConfigError(f"dataset.train.rotations: needs the key copies, got {section!r}")
        rotations = None if section is None else parse_config(Rotations, section, "dataset.train.rotations")
        return cls(fraction=float(fraction), rotations=rotations)

    @property
    def changes_nothing(self) -> bool:
        """Whether the data set is used as it is."""
        return self.fraction == 1.0 and self.rotations is None

    def distinct(self, dataset: Subset) -> int:
        """Number of structures that are taken; each counts once, in however many orientations."""
        return max(round(self.fraction * len(dataset)), 1)

    def of(self, dataset: Subset) -> BaseDataset[Any]:
        """Make it from fairchem's data set, whose rows have been shuffled by ``dataset.train.seed``.

        With the same seed, a smaller share is a part of a larger one.
        """
        taken = Subset(dataset.dataset, dataset.indices[: self.distinct(dataset)], metadata=dataset.metadata)
        return taken if self.rotations is None else RotatedDataset(taken, self.rotations)


def limited(dataset: Subset, settings: Mapping[str, Any]) -> Subset:
    """A data set for evaluations during training, cut to its key ``at_most``.

    Args:
        dataset: fairchem's data set, whose rows have been shuffled by its key ``seed``.
        settings: Of ``dataset.val``.

    Raises:
        ConfigError: The key is no positive number.
    """
    limit = settings.get("at_most")
    if limit is None:
        return dataset
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"dataset.val.at_most: must be a number of structures, at least 1, got {limit!r}")
    return Subset(dataset.dataset, dataset.indices[:limit], metadata=dataset.metadata)


def check_directions(sample: Any, outputs: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> None:
    """Refuse to turn structures around under labels that would stay as they are, or that have another layout.

    Args:
        sample: A structure of the data set.
        outputs: Settings of what the model predicts, by name.
        config: Keys of the data set.

    Raises:
        ConfigError: An output has a direction that is not known here.
        DataError: A label has another shape than that of a vector per atom, or of a tensor.
    """
    decomposition = (config.get("transforms") or {}).get("decompose_tensor") or {}
    known = {*VECTORS, *TENSORS, *(decomposition.get("decomposition") or {})}
    for name, settings in outputs.items():
        label = sample.get(name)
        rows = int(sample.natoms) if settings.get("level") == "atom" else 1
        components = label.numel() // rows if isinstance(label, Tensor) else 1
        if name not in known and (components > 1 or int(settings.get("irrep_dim") or 0) > 0):
            raise ConfigError(
                f"dataset.train.rotations: the output {name!r} has a direction ({components} components per "
                f"{settings.get('level')}), but only {', '.join((*VECTORS, *TENSORS))} are turned around with the "
                "structures; leave out the rotations, or that output"
            )
    turned(sample, torch.eye(3, dtype=torch.float64))


class RotatedDataset(BaseDataset[Any]):
    """Every structure several times, each time in another orientation that is always the same.

    Args:
        dataset: The structures.
        rotations: How often, and from which seed.
    """

    def __init__(self, dataset: BaseDataset[Any], rotations: Rotations) -> None:
        super().__init__(dataset.config)
        self.dataset = dataset
        self.rotations = rotations
        self.num_samples = rotations.copies * len(dataset)
        self._decomposition = (dataset.config.get("transforms") or {}).get("decompose_tensor")

    @cached_property
    def _metadata(self) -> Any:
        return self.dataset._metadata

    def get_metadata(self, attr: str, idx: Any) -> Any:
        """Entries of the data set's metadata, as fairchem's samplers ask for them."""
        rows = [int(row) // self.rotations.copies for row in idx] if isinstance(idx, list) else idx
        return self.dataset.get_metadata(attr, rows if isinstance(idx, list) else int(idx) // self.rotations.copies)

    def check_outputs(self, outputs: Mapping[str, Mapping[str, Any]]) -> None:
        """Look at the first structure; see `check_directions`."""
        check_directions(self.dataset[0], outputs, self.dataset.config)

    def __getitems__(self, rows: Sequence[int]) -> list[Any]:
        """Read the structures of a batch, or hand over what is wrong with one; see `rows_or_fault`."""
        return rows_or_fault(self, rows)

    def __getitem__(self, row: int) -> Any:
        sample = self.dataset[row // self.rotations.copies]
        generator = torch.Generator().manual_seed((self.rotations.seed * 1_000_003 + row) % 2**63)
        sample = turned(sample, random_rotation(generator))
        return sample if self._decomposition is None else decompose_tensor(sample, self._decomposition)


def random_rotation(generator: torch.Generator) -> Tensor:
    """A rotation matrix drawn evenly from all, shape (3, 3), float64 (Shoemake 1992: a random unit quaternion)."""
    w, x, y, z = torch.nn.functional.normalize(torch.randn(4, generator=generator, dtype=torch.float64), dim=0).tolist()
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.tensor(rows, dtype=torch.float64)


def turned(sample: Any, rotation_33: Tensor) -> Any:
    """A copy of a sample with everything in it that has a direction turned around.

    Args:
        sample: With ``pos``, ``cell`` and labels; each entry keeps its dtype and shape.
        rotation_33: Acts on columns.

    Raises:
        DataError: An entry has another shape than that of vectors, or of one tensor.
    """
    sample = sample.clone()
    for name in VECTORS:
        value = sample.get(name)
        if isinstance(value, Tensor):
            _require(value.shape[-1:] == (3,), sample, name, "its last dimension must be 3")
            sample[name] = (value.double() @ rotation_33.T).to(value.dtype)
    for name in TENSORS:
        value = sample.get(name)
        if isinstance(value, Tensor):
            _require(value.numel() == 9, sample, name, "it must hold 9 components, xx, xy, xz, yx, …, zz")
            tensor_33 = rotation_33 @ value.double().reshape(3, 3) @ rotation_33.T
            sample[name] = tensor_33.reshape(value.shape).to(value.dtype)
    return sample


def _require(fits: bool, sample: Any, name: str, rule: str) -> None:
    if not fits:
        raise DataError(
            f"sid {sample.get('sid')!r}: {name} has the shape {tuple(sample[name].shape)}, which cannot be turned "
            f"(dataset.train.rotations): {rule}; convert the data, or leave out the rotations"
        )
