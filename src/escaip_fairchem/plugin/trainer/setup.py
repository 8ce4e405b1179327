"""How the trainer is put together from a configuration."""

from __future__ import annotations

import copy
import logging
from typing import Any, ClassVar

import torch
from fairchem.core.common import distutils, gp_utils
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from fairchem.core.trainers import OCPTrainer
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.utils.data import DataLoader

from escaip_fairchem.plugin.backbone import EScAIPBackbone
from escaip_fairchem.plugin.loggers import logger_or_null  # the import registers the null logger
from escaip_fairchem.plugin.prepared import to_device
from escaip_fairchem.plugin.run_folder import RunFolderLock, unique_run_name
from escaip_fairchem.plugin.trainer.amp import Precision
from escaip_fairchem.plugin.trainer.distributed import from_master, on_master
from escaip_fairchem.plugin.trainer.ema import WeightSwap
from escaip_fairchem.plugin.trainer.finite import FiniteGuard
from escaip_fairchem.plugin.trainer.loaders import Collater, DividedBatchSampler, build_loader
from escaip_fairchem.plugin.trainer.metrics import CheckedEvaluator, choose_primary, default_metrics
from escaip_fairchem.plugin.trainer.objective import Objective, parse_terms
from escaip_fairchem.plugin.trainer.optimizer import build_optimizer
from escaip_fairchem.plugin.trainer.outputs import read_outputs
from escaip_fairchem.plugin.trainer.resume import RandomState
from escaip_fairchem.plugin.trainer.schedule import build_schedule
from escaip_fairchem.plugin.trainer.settings import check_sources, complete_settings
from escaip_fairchem.plugin.trainer.standing import Standing
from escaip_fairchem.plugin.trainer.stops import Stops
from escaip_fairchem.plugin.trainer.training_set import TrainingSet, limited
from escaip_fairchem.plugin.trainer.window import LossWindow


class TrainerSetup(OCPTrainer):
    """Construction, and the way from a batch to predictions."""

    import_path: ClassVar[str] = "escaip_fairchem.EScAIPForcesTrainer"
    """Name under which a fresh process finds the trainer of a checkpoint without registering anything first."""

    config: dict[str, Any]
    scheduler: Any
    train_dataset: Any
    train_sampler: Any
    train_loader: Any
    val_dataset: Any
    val_sampler: Any
    val_loader: Any
    primary_metric: str | None
    best_val_metric: float | None
    epoch: float
    step: int

    def __init__(self, **settings: Any) -> None:
        """Build the trainer as fairchem builds its own.

        For inference nothing is written, locked or logged.

        Args:
            **settings: fairchem's keyword arguments. ``logger`` may also be None, False or ``none``; absent means
                TensorBoard.
        """
        if settings.get("inference_only"):
            settings["is_debug"] = True
        settings["logger"] = _logger_settings(settings)
        self.precision = Precision()
        self._lock: RunFolderLock | None = None
        self.swap = WeightSwap()
        self.window = LossWindow()
        self.generators: RandomState | None = None
        self.evaluated_step: int | None = None
        self.hidden_ema: ExponentialMovingAverage | None = None  # while fairchem must not see it
        self._loaded_generators: dict[str, Any] | None = None
        self._rank_states: tuple[int, list[dict[str, Any]]] | None = None
        self._resume_problem: str | None = None
        self._loaded_from: str | None = None
        self._fit_is_due = False
        self.training_structures: int | None = None
        self.saved_step: int | None = None  # of the newest checkpoint, if it is whole
        self.stops = Stops()
        self.standing = Standing(None, run="", processes=1, gpus=0)
        super().__init__(**settings)

    @property
    def scaler(self) -> GradScaler | None:
        """Loss scaling, with fp16 only."""
        return self._scaler

    @scaler.setter
    def scaler(self, value: GradScaler | None) -> None:
        # Setting None is how OCPCalculator switches reduced precision off; bf16 and TF32 have no scaler to vanish.
        self._scaler = value
        if value is None:
            self.precision = Precision()

    @staticmethod
    def _get_timestamp(device: torch.device, suffix: str | None) -> str:
        """Name of a new run, the same on every process; fairchem's repeats within 128 s."""
        name: str = from_master(unique_run_name(suffix))
        return name

    def load(self, inference_only: bool) -> None:
        """Check the settings, take the run folder, and build everything.

        Args:
            inference_only: Whether to stop after the model.

        Raises:
            ConfigError: The configuration cannot work.
            DataError: A data set does not exist.
            RunFolderError: Another run uses the folder.
        """
        self.config = copy.deepcopy(self.config)
        self.config["trainer"] = self.import_path
        self.stops.run = self.timestamp_id
        complete_settings(self.config, inference_only=inference_only)
        self.precision = Precision.from_settings(self.config["optim"], amp=bool(self.config["amp"]))
        self._scaler = self.precision.grad_scaler(self.device)
        if not inference_only:
            if self.config["cmd"]["seed"] is None:
                self.config["cmd"]["seed"] = 0
                logging.info("seed: none was given, 0 is used, so that the order of the data can be repeated")
            check_sources(self.config)
            self._take_folder()
        super().load(inference_only)

    def _take_folder(self) -> None:
        """Lock the run folder, on the first process; all processes stop if it is taken."""

        def take() -> None:
            self._lock = RunFolderLock(self.config["cmd"]["checkpoint_dir"])
            self._lock.acquire()

        if not self.is_debug:
            on_master(take)
        if not self.is_debug and distutils.is_master():
            self.standing = Standing(
                self.config["cmd"]["checkpoint_dir"],
                run=self.timestamp_id,
                processes=distutils.get_world_size(),
                gpus=int(self.config["gpus"]),
                log=self.config["slurm"].get("log"),
            )
            self.standing.begin()

    def close(self) -> None:
        """Give the run folder back. The end of the process does the same."""
        if self._lock is not None:
            self._lock.release()

    def load_task(self) -> None:
        """Read outputs and metrics, with checks and defaults that fairchem lacks."""
        super().load_task()
        configured = self.evaluation_metrics.get("metrics") or default_metrics(self.output_targets)
        self.evaluator = self._new_evaluator(configured)
        self.evaluation_metrics["metrics"] = configured
        self.primary_metric_wanted = choose_primary(
            self.evaluation_metrics.get("primary_metric"), self.evaluator.labels
        )
        self.evaluation_metrics["primary_metric"] = self.primary_metric_wanted

    def _new_evaluator(self, metrics: dict[str, list[str]]) -> CheckedEvaluator:
        return CheckedEvaluator(self.name, metrics, self.output_targets)

    def load_datasets(self) -> None:
        """Load the data sets, and make of the training set what its keys ``fraction`` and ``rotations`` say."""
        super().load_datasets()
        wanted = TrainingSet.from_settings(self.config["dataset"])
        if self.train_loader is None:
            return
        self.training_structures = wanted.distinct(self.train_dataset)
        if wanted.changes_nothing:
            return
        self.train_dataset = wanted.of(self.train_dataset)
        logging.info(f"training set: {len(self.train_dataset):,} structures after fraction and rotations")
        self.train_sampler = self.get_sampler(
            self.train_dataset, self.config["optim"].get("batch_size", 1), shuffle=True
        )
        self.train_loader = self.get_dataloader(self.train_dataset, self.train_sampler)

    def shorten_validation(self) -> None:
        """Cut the validation set to its key ``at_most``, for evaluations during a training. Others take all of it."""
        if self.val_loader is None:
            return
        shorter = limited(self.val_dataset, self.config["val_dataset"])
        if len(shorter) == len(self.val_dataset):
            return
        logging.info(f"validation set: {len(shorter):,} of {len(self.val_dataset):,} structures while training")
        self.val_dataset = shorter
        size = self.config["optim"].get("eval_batch_size", self.config["optim"].get("batch_size", 1))
        self.val_sampler = self.get_sampler(shorter, size, shuffle=False)
        self.val_loader = self.get_dataloader(shorter, self.val_sampler)

    def get_sampler(self, dataset: Any, batch_size: int, shuffle: bool) -> Any:
        """Build a sampler: fairchem's for training; for evaluations by several processes one that repeats nothing."""
        processes = distutils.get_world_size()
        if processes > 1 and not gp_utils.initialized():
            # Not for structures to be relaxed: fairchem joins the results of processes that all have some.
            if not shuffle and dataset is not getattr(self, "relax_dataset", None):
                return DividedBatchSampler(
                    dataset, batch_size=batch_size, processes=processes, rank=distutils.get_rank()
                )
            repeated = -len(dataset) % processes
            if repeated and distutils.is_master():
                logging.info(
                    f"training set: {len(dataset):,} structures do not divide by {processes} processes; {repeated} of "
                    "them, others in every epoch, are taken twice"
                )
        return super().get_sampler(dataset, batch_size, shuffle)

    def get_dataloader(self, dataset: Any, sampler: Any, workers: int | None = None) -> DataLoader[Any]:
        """Build a loader; see `build_loader`."""
        count = self.config["optim"]["num_workers"] if workers is None else workers
        collate = Collater(stored_edges=not self.config["model"].get("otf_graph", False))
        return build_loader(dataset, sampler, collate=collate, workers=count, device=self.device)

    def load_references_and_normalizers(self) -> None:
        """Read references and normalisers; put off fitting them until it is known that no checkpoint has them."""
        transforms = self.config["dataset"].get("transforms") or {}
        sections = [transforms.get(name) or {} for name in ("element_references", "normalizer")]
        self._fit_is_due = any("fit" in section for section in sections)
        if not self._fit_is_due:
            super().load_references_and_normalizers()

    def finish_normalizers(self) -> None:
        """Fit what the configuration wants fitted, unless a checkpoint brought it. Collective."""
        if not self._fit_is_due:
            return
        self._fit_is_due = False
        transforms = self.config["dataset"].get("transforms") or {}
        loaded = {"element_references": dict(self.elementrefs), "normalizer": dict(self.normalizers)}
        if all(_wanted(transforms.get(name) or {}) <= modules.keys() for name, modules in loaded.items()):
            logging.info("References and normalisers are those of the checkpoint; nothing is fitted")
            return
        super().load_references_and_normalizers()
        self.elementrefs.update(loaded["element_references"])
        self.normalizers.update(loaded["normalizer"])

    def load_loss(self) -> None:
        """Read the loss functions."""
        self.objective = Objective(parse_terms(self.config["loss_functions"], self.output_targets), self.output_targets)

    def load_optimizer(self) -> None:
        """Build the optimizer, with norms, embeddings and biases exempt from weight decay."""
        self.optimizer = build_optimizer(self._unwrapped_model, self.config["optim"])

    def load_extras(self) -> None:
        """Build the schedule, the average of the weights, and the guard against NaN; tell the loaders of the model."""
        optim = self.config["optim"]
        steps_per_epoch = None if self.train_loader is None else len(self.train_loader)
        self.scheduler = build_schedule(self.optimizer, optim, steps_per_epoch)
        self.clip_grad_norm = optim.get("clip_grad_norm")
        self.ema_decay = optim.get("ema_decay")
        self.ema = self._new_average()
        self.guard = FiniteGuard(self.model, gradients_may_overflow=self._scaler is not None)
        self._let_loaders_search()

    def _let_loaders_search(self) -> None:
        """Let the loaders search neighbours for the model, if it is ours."""
        backbones = [part for part in self.model.modules() if isinstance(part, EScAIPBackbone)]
        search = backbones[0].neighbor_search() if backbones else None
        # Not the loader of structures that will be relaxed: theirs would hold for the first step only.
        for loader in (self.train_loader, self.val_loader, self.test_loader):
            if loader is not None:
                loader.collate_fn.search = search

    def _new_average(self) -> ExponentialMovingAverage | None:
        """An average that starts from the current weights, if the configuration wants one."""
        return ExponentialMovingAverage(self.model.parameters(), self.ema_decay) if self.ema_decay else None

    def _forward(self, batch: Any) -> dict[str, Tensor]:
        """Predict.

        Args:
            batch: fairchem's batch, on any device.

        Returns:
            One tensor per output, in normalised units and at least float32; see `read_outputs`.
        """
        batch = to_device(batch, self.device)
        # DistributedDataParallel waits for the other processes, which in an evaluation may have fewer batches.
        model = self.model if self.model.training else self._unwrapped_model
        with self.precision.forward(self.device):
            raw = model(batch)
        return read_outputs(
            raw,
            self.output_targets,
            n_atoms=batch.pos.shape[0],
            n_structures=batch.natoms.numel(),
            denormalize=lambda name, value: self._denorm_preds(name, value, batch),
        )

    def _denorm_preds(self, target_key: str, prediction: Tensor, batch: Any) -> Tensor:
        """Bring predictions into physical units: undo the normaliser, add the references."""
        if target_key in self.normalizers:
            prediction = self.normalizers[target_key](prediction)
        if target_key in self.elementrefs:
            flat = self.elementrefs[target_key](prediction.reshape(-1), batch, reshaped=False)
            prediction = flat.reshape(prediction.shape)
        return prediction

    def normalize_label(self, target: str, label: Tensor, batch: Any) -> Tensor:
        """Bring labels into the units of the model: subtract the references, normalise."""
        if target in self.elementrefs:
            # Shapes are given flat, because fairchem's reshaping waits for the device.
            flat = self.elementrefs[target].dereference(label.reshape(-1), batch, reshaped=False)
            label = flat.reshape(label.shape)
        if target in self.normalizers:
            label = self.normalizers[target].norm(label)
        return label


def _wanted(section: dict[str, Any]) -> set[str]:
    """Outputs for which a section gives, reads or fits something; a file's contents are not known before it is read."""
    fitted = set((section.get("fit") or {}).get("targets", ()))
    return fitted | (section.keys() - {"fit", "file"})


def _logger_settings(settings: dict[str, Any]) -> Any:
    """The logger's settings: TensorBoard unless asked otherwise, never the network by default."""
    return logger_or_null(settings.get("logger", "tensorboard"))
