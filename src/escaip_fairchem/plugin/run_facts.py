"""What a run folder tells about a training: its model, its data, its cost and its best errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from escaip_fairchem.errors import RunFolderError
from escaip_fairchem.plugin.checkpoints import read_checkpoint
from escaip_fairchem.plugin.inference import data_sections
from escaip_fairchem.plugin.info import build_model
from escaip_fairchem.plugin.trainer.state import RESUME_KEY

BEST, LATEST = "best_checkpoint.pt", "checkpoint.pt"
_CONSERVATIVE = ("EScAIPConservativeHead", "EScAIPGradientEnergyForceHead", "escaip_conservative_head")


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A training; None stands for what its folder does not tell.

    Attributes:
        name: Name of the run.
        folder: Folder of its checkpoints, an absolute path.
        family: Kind of its model, e.g. ``EScAIP`` or ``EScAIP (conservative)``.
        parameters: Of the model.
        structures: Structures trained on, each counted once.
        steps: Optimisation steps so far.
        batch_size: Structures per process and step.
        processes: Number of processes, one per GPU.
        on_gpu: Whether it ran on GPUs.
        validation: Validation set, by the last two parts of its path.
        validation_limit: Structures of it that were evaluated at most (``dataset.val.at_most``); None: all of them.
        energy_mae: Of the best checkpoint on what was evaluated, eV.
        forces_mae: Likewise, eV/Å.
    """

    name: str
    folder: Path
    family: str
    parameters: int
    structures: int | None
    steps: int | None
    batch_size: int
    processes: int | None
    on_gpu: bool
    validation: str | None
    validation_limit: int | None
    energy_mae: float | None
    forces_mae: float | None

    @property
    def logs(self) -> list[Path]:
        """Folders that its logs may be in."""
        return sorted(self.folder.parents[1].glob(f"logs/*/{self.folder.name}"))


def run_folders(path: Path) -> list[Path]:
    """Find the runs that a folder holds.

    Args:
        path: ``RUN_DIR/checkpoints/NAME``, or ``RUN_DIR`` with all of its runs.

    Raises:
        RunFolderError: There is no run.
    """
    candidates = [path, *sorted(path.glob("checkpoints/*"))]
    found = [folder for folder in candidates if (folder / BEST).is_file() or (folder / LATEST).is_file()]
    if not found:
        raise RunFolderError(
            f"{path}: no run is there; give a run's folder of checkpoints (RUN_DIR/checkpoints/NAME, with {BEST} or "
            f"{LATEST}), or the --run-dir of trainings"
        )
    return found


def read_run(folder: Path, *, trusted: bool = False) -> RunFacts:
    """Read what a run's checkpoints tell.

    Args:
        folder: One of `run_folders`.
        trusted: Whether they may hold other objects than tensors and plain values.

    Raises:
        CheckpointError: A checkpoint cannot be read.
        RunFolderError: None holds the configuration.
    """
    folder = folder.resolve()  # the logs lie beside its parent, which "." does not name
    files = [folder / name for name in (BEST, LATEST) if (folder / name).is_file()]
    contents = {file.name: read_checkpoint(file, trusted=trusted, how_to_trust="add --trust") for file in files}
    config = next((entry["config"] for entry in contents.values() if isinstance(entry.get("config"), Mapping)), None)
    if config is None or not isinstance(config.get("model"), Mapping):
        raise RunFolderError(f"{files[0]}: holds no configuration with a model section; only runs of fairchem 1.x do")
    latest = contents.get(LATEST, {})
    recorded = latest.get(RESUME_KEY) or {}
    gpus = int(config.get("gpus") or 0)
    # A save by a signal records the process that got it alone; fairchem's count of GPUs is right in any case.
    processes = gpus or len(recorded.get("ranks") or ()) or None
    metrics = contents.get(BEST, {}).get("val_metrics") or {}
    _, validation = data_sections(config)
    return RunFacts(
        name=folder.name,
        folder=folder,
        family=family_of(config["model"]),
        parameters=sum(parameter.numel() for parameter in build_model(config["model"], files[0]).parameters()),
        structures=recorded.get("structures"),
        steps=latest.get("step"),
        batch_size=int((config.get("optim") or {}).get("batch_size") or 1),
        processes=processes,
        on_gpu=gpus > 0,
        validation=_short_path(validation.get("src")),
        validation_limit=validation.get("at_most"),
        energy_mae=_metric(metrics, "energy_mae"),
        forces_mae=_metric(metrics, "forces_mae"),
    )


def _metric(metrics: Mapping[str, Any], name: str) -> float | None:
    entry = metrics.get(name)
    return float(entry["metric"]) if isinstance(entry, Mapping) and entry.get("metric") is not None else None


def _short_path(src: Any) -> str | None:
    """Enough of a path to tell data sets apart, whatever folder the run was started from."""
    sources = src if isinstance(src, list | tuple) else [src]
    return " + ".join("/".join(Path(str(one)).parts[-2:]) for one in sources) if src else None


def family_of(model: Mapping[str, Any]) -> str:
    """Kind of a model: the class of its backbone if it has one, and whether its forces are derivatives."""
    backbone = model.get("backbone") if isinstance(model.get("backbone"), Mapping) else {}
    assert isinstance(backbone, Mapping)
    name = str(model["name"]).rpartition(".")[2]
    if name == "hydra":
        name = str(backbone.get("model", name)).rpartition(".")[2].removesuffix("_backbone").removesuffix("Backbone")
    heads = [str(head.get("module", "")) for head in (model.get("heads") or {}).values() if isinstance(head, Mapping)]
    direct = backbone.get("direct_force", model.get("direct_force"))
    is_escaip = name.lower().startswith("escaip")
    derived = (is_escaip and direct is False) or any(head.endswith(_CONSERVATIVE) for head in heads)
    return f"{name} (conservative)" if derived else name
