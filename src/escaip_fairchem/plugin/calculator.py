"""fairchem's ASE calculator, ready to import where fairchem's own cannot be, and without its surprises."""

from __future__ import annotations

import logging
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

from escaip_fairchem.errors import CheckpointError
from escaip_fairchem.plugin.checkpoints import read_checkpoint
from escaip_fairchem.plugin.trainer.ema import adopt_average, averaged_weights, check_average


class OCPCalculator(FairchemCalculator):
    """An ASE calculator from a checkpoint: energy (eV), forces (eV/Å), stress (eV/Å³), whatever it was trained on.

    It takes the same arguments as ``fairchem.core.OCPCalculator``. Besides, it

    - predicts with the averaged (EMA) weights wherever the checkpoint has them, whatever trainer wrote it;
    - leaves the global random number generators and the level of logging as they were;
    - gives stress in ASE's Voigt order, so that ``atoms.get_stress()`` and cell filters work;
    - has ``free_energy`` (equal to the energy), which ASE's optimisers ask for.

    Args:
        checkpoint_path: File written by training or by ``escaip import-checkpoint``.
        cpu: Whether to run on the CPU although there is a GPU.
        arguments: fairchem's other arguments.

    Raises:
        CheckpointError: The checkpoint is missing or damaged, or its averaged weights do not fit.
    """

    def __init__(self, checkpoint_path: str | Path | None = None, cpu: bool = True, **arguments: Any) -> None:
        checkpoint = None if checkpoint_path is None else read_checkpoint(checkpoint_path)
        with global_state_untouched():
            super().__init__(checkpoint_path=checkpoint_path, cpu=cpu, **arguments)
        if checkpoint is not None:
            self._use_averaged_weights(checkpoint, str(checkpoint_path))
        if "energy" in self.trainer.config["outputs"]:
            self.implemented_properties: list[str] = [*self.trainer.config["outputs"], "free_energy"]

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
            self.results["stress"] = _voigt(np.asarray(stress).reshape(3, 3))


def _voigt(stress_33: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Symmetric (3, 3) to ASE's (xx, yy, zz, yz, xz, xy)."""
    symmetric_33 = 0.5 * (stress_33 + stress_33.T)
    voigt_6: npt.NDArray[np.floating[Any]] = symmetric_33[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    return voigt_6


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
