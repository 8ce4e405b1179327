"""Measure EScAIP as fairchem v2 has it. Run by an interpreter of fairchem v2's environment, without this package.

``PYTHON fairchem2_script.py ANSWER.json < REQUEST.json``. The request holds ``device``, ``seed``, ``budget`` (s) and
``batches``, each with ``positions``, ``cells``, ``numbers``, ``counts`` and ``tags``.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

SETTINGS: dict[str, Any] = {
    "regress_forces": True, "direct_forces": True, "hidden_size": 512, "num_layers": 10, "activation": "gelu",
    "use_compile": False, "use_padding": False, "use_pbc": True, "max_num_elements": 90, "max_atoms": 100000,
    "max_batch_size": 1024, "max_radius": 12.0, "knn_k": 20, "knn_soft": True, "knn_sigmoid_scale": 0.2,
    "knn_lse_scale": 0.1, "knn_use_low_mem": True, "knn_pad_size": 30, "distance_function": "gaussian",
    "atten_name": "memory_efficient", "atten_num_heads": 8, "energy_reduce": "mean", "mlp_dropout": 0.1,
    "atten_dropout": 0.1,
}  # fmt: skip
"""As near to the paper's small model as v2's EScAIP comes; its 20 neighbours, chosen softly, take up to 30 slots."""

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main() -> dict[str, Any]:
    """Measure, and return an outcome's fields."""
    request = json.load(sys.stdin)
    try:
        import torch
        from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch
        from fairchem.core.models.escaip import EScAIP
        from torch.utils.flop_counter import FlopCounterMode
    except ImportError as error:
        return {"missing": f"fairchem v2's EScAIP cannot be imported: {error}"}
    device, on_gpu = request["device"], request["device"] == "cuda"
    batches = [atomicdata_list_to_batch(_structures(content, AtomicData)) for content in request["batches"]]
    base = _resident_bytes("VmRSS")
    _forget_peak()
    torch.manual_seed(request["seed"])
    backbone = EScAIP.EScAIPBackbone(**SETTINGS)
    heads = [EScAIP.EScAIPEnergyHead(backbone), EScAIP.EScAIPDirectForceHead(backbone)]
    modules = [part.to(device).eval() for part in (backbone, *heads)]

    def run(batch: Any) -> None:
        embedding = modules[0](batch)
        for head in modules[1:]:
            head(batch, embedding)

    seconds, peaks = [], []
    begin = time.perf_counter()
    with torch.no_grad():
        counter = FlopCounterMode(display=False)
        with counter:
            run(batches[0].clone().to(device))
        flops = counter.get_total_flops() / sum(request["batches"][0]["counts"])
        for batch in batches:
            prepared = batch.clone().to(device)
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            start = time.perf_counter()
            run(prepared)
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            peaks.append(torch.cuda.max_memory_allocated() if on_gpu else _resident_bytes("VmHWM") - base)
            if time.perf_counter() - begin > request["budget"]:
                break
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return {
        "seconds": seconds,
        "atoms": [sum(content["counts"]) for content in request["batches"]][: len(seconds)],
        "peak_bytes": peaks,
        "flops": flops,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "weight_bytes": sum(parameter.numel() * parameter.element_size() for parameter in parameters),
    }


def _structures(content: dict[str, Any], atomic_data: Any) -> list[Any]:
    """The structures of a batch as fairchem v2 wants them."""
    from ase import Atoms

    structures, first = [], 0
    for cell, count in zip(content["cells"], content["counts"], strict=True):
        part = slice(first, first + count)
        atoms = Atoms(numbers=content["numbers"][part], positions=content["positions"][part], cell=cell, pbc=True)
        atoms.set_tags(content["tags"][part])
        structures.append(atomic_data.from_ase(atoms))
        first += count
    return structures


def _resident_bytes(key: str) -> int:
    """The resident set as it is (``VmRSS``) or its peak (``VmHWM``); the peak where the system does not say."""
    if not STATUS.is_file():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def _forget_peak() -> None:
    """Set the peak back to what is in use: importing needs more than what is measured, for a moment."""
    if os.access(FORGET, os.W_OK):
        FORGET.write_text("5", encoding="ascii")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(main()), encoding="utf-8")
