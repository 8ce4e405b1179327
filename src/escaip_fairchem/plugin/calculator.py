"""fairchem's ASE calculator, ready to import where fairchem's own cannot be, and without its surprises."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ase import Atoms
from ase.calculators.calculator import all_changes
from fairchem.core.common.relaxation.ase_utils import OCPCalculator as FairchemCalculator
from fairchem.core.models.model_registry import model_name_to_local_file

from escaip_fairchem.errors import CheckpointError, ConfigError
from escaip_fairchem.nn import find_neighbors
from escaip_fairchem.nn.neighbors_skin import SkinSearch
from escaip_fairchem.plugin.backbone import EScAIPBackbone
from escaip_fairchem.plugin.checkpoints import read_checkpoint
from escaip_fairchem.plugin.trainer.ema import adopt_average, averaged_weights, check_average


class OCPCalculator(FairchemCalculator):
    """An ASE calculator from a checkpoint: energy (eV), forces (eV/Å), stress (eV/Å³), whatever it was trained on.

    It takes the same arguments as ``fairchem.core.OCPCalculator``, in the same order. Besides, it

    - predicts with the averaged (EMA) weights wherever the checkpoint has them, whatever trainer wrote it;
    - leaves the global random number generators and the level of logging as they were;
    - gives stress in ASE's Voigt order, so that ``atoms.get_stress()`` and cell filters work;
    - has ``free_energy`` (equal to the energy), which ASE's optimisers ask for.

    Args:
        config_yml: A configuration (path or mapping) to use instead of the checkpoint's own.
        checkpoint_path: File written by training or by ``escaip import-checkpoint``.
        model_name: Name of one of fairchem's published models, instead of ``checkpoint_path``.
        local_cache: Folder for published models.
        trainer: Name of the trainer to use instead of the checkpoint's own.
        cpu: Whether to run on the CPU although there is a GPU.
        seed: For models that draw random numbers.
        only_output: Names of the outputs that are wanted, instead of all.
        disable_amp: Whether to compute in float32 what was trained in half precision.
        trusted: Whether the checkpoint may hold other objects than tensors and plain values. Loading such a file can
            run any code that its author put there.
        skin: How far beyond the neighbours atoms are remembered between calls, Å, so that dynamics and relaxations
            need not search anew while atoms move little. Results are the same to the last bit. 0 remembers nothing.

    Raises:
        ConfigError: Neither a checkpoint nor a published model is named, or the skin is negative.
        CheckpointError: The checkpoint is missing or damaged, or its averaged weights do not fit.
    """

    def __init__(
        self,
        config_yml: str | dict[str, Any] | None = None,
        checkpoint_path: str | Path | None = None,
        model_name: str | None = None,
        local_cache: str | None = None,
        trainer: str | None = None,
        cpu: bool = True,
        seed: int | None = None,
        only_output: list[str] | None = None,
        disable_amp: bool = True,
        *,
        trusted: bool = False,
        skin: float = 1.0,
    ) -> None:
        if checkpoint_path is None and model_name is None:
            raise ConfigError("OCPCalculator: no model; give checkpoint_path=… (or model_name=… and local_cache=…)")
        if checkpoint_path is None and local_cache is not None:
            checkpoint_path, model_name = model_name_to_local_file(str(model_name), local_cache), None
        search = find_neighbors if skin == 0 else SkinSearch(skin)
        self._trusted = trusted
        if checkpoint_path is not None:
            self._read(checkpoint_path)  # fairchem reads without asking what is in it, under some versions of torch
        with global_state_untouched(), _torch_trusts_files(trusted):
            super().__init__(
                config_yml=config_yml,
                checkpoint_path=checkpoint_path,
                model_name=model_name,
                local_cache=local_cache,
                trainer=trainer,
                cpu=cpu,
                seed=seed,
                only_output=only_output,
                disable_amp=disable_amp,
            )
        for module in self.trainer.model.modules():
            if isinstance(module, EScAIPBackbone):
                module.search = search
        if "energy" in self.trainer.config["outputs"]:
            self.implemented_properties: list[str] = [*self.trainer.config["outputs"], "free_energy"]

    def load_checkpoint(self, checkpoint_path: str | Path, checkpoint: dict[str, Any] | None = None) -> None:
        """Load weights, the averaged ones if there are any.

        Args:
            checkpoint_path: The file.
            checkpoint: Its contents, if they were read already.

        Raises:
            CheckpointError: It cannot be read, or does not fit the model.
        """
        if checkpoint is None:
            checkpoint = self._read(checkpoint_path)
        super().load_checkpoint(checkpoint_path, checkpoint)
        self._use_averaged_weights(checkpoint, str(checkpoint_path))

    def _read(self, path: str | Path) -> dict[str, Any]:
        return read_checkpoint(path, trusted=self._trusted, how_to_trust="give OCPCalculator `trusted=True`")

    def _use_averaged_weights(self, checkpoint: dict[str, Any], source: str) -> None:
        """Trainers of fairchem itself load the raw weights; ours have taken the averaged ones already."""
        average = averaged_weights(checkpoint)
        if average is None:
            return
        parameters = list(self.trainer.model.parameters())
        check_average(parameters, average["shadow_params"], source)
        adopt_average(parameters, average["shadow_params"])
        self.trainer.ema = None

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Predict everything that the model was trained on, for one structure.

        Raises:
            CheckpointError: No structure is attached.
        """
        structure = self.atoms if atoms is None else atoms
        if structure is None:
            raise CheckpointError("OCPCalculator: no structure; attach the calculator with `atoms.calc = calculator`")
        super().calculate(structure, properties or self.implemented_properties, system_changes)
        if "energy" in self.results:
            self.results["free_energy"] = self.results["energy"]
        stress = self.results.get("stress")
        if stress is not None and np.size(stress) == 9:
            self.results["stress"] = voigt(np.asarray(stress).reshape(3, 3))


def voigt(stress_33: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Symmetric (3, 3) to ASE's (xx, yy, zz, yz, xz, xy)."""
    symmetric_33 = 0.5 * (stress_33 + stress_33.T)
    voigt_6: npt.NDArray[np.floating[Any]] = symmetric_33[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    return voigt_6


@contextmanager
def _torch_trusts_files(trusted: bool) -> Iterator[None]:
    """Let ``torch.load`` read any file in the block, also where fairchem calls it, if that is what the user wants."""
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    if trusted:
        os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


@contextmanager
def global_state_untouched() -> Iterator[None]:
    """Restore the random number generators, cuDNN's switches and the root logger after the block."""
    python, numpy, torch_cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    # Asking for CUDA's states would start CUDA, also for a calculator on the CPU.
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    switches = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    root = logging.getLogger()
    level, handlers, disabled = root.level, list(root.handlers), root.manager.disable
    # fairchem sets its own level while it starts, and then prints the whole configuration.
    logging.disable(max(disabled, logging.INFO))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        else:
            torch.cuda.manual_seed_all(torch.initial_seed())  # what it would have started with; waits until it starts
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = switches
        logging.disable(disabled)
        root.setLevel(level)
        root.handlers = handlers
