"""The measuring process: cases come in as lines of JSON on standard input, outcomes go out likewise.

A process of its own gives every case a memory of its own, whose peak nobody has raised before, and lets a case that
runs out of memory or time end without its neighbours.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import sys
import traceback
import warnings
from pathlib import Path
from typing import TextIO

import torch

from escaip_fairchem.bench.cases import FAILED, NOT_AVAILABLE, OUT_OF_MEMORY, Case, Outcome, case_from
from escaip_fairchem.errors import EScAIPError

MEASURES = {
    "passes": ("passes", "measure_passes"),
    "compare": ("passes", "measure_comparison"),
    "neighbors": ("searches", "measure_search"),
    "dynamics": ("dynamics", "measure_dynamics"),
    "growth": ("growth", "measure_growth"),
    "trainer": ("trainer", "measure_trainer"),
    "accuracy": ("accuracy", "measure_accuracy"),
}
"""Where each kind of case is measured: module beside this one, and its function."""

SHARE_OF_MEMORY = 0.95
"""Of the memory that is free when a process starts; a case that wants more fails, rather than the machine."""


def measure(case: Case) -> Outcome:
    """Measure a case; what goes wrong is an outcome too."""
    module, function = MEASURES[case.kind]
    try:
        outcome: Outcome = getattr(importlib.import_module(f"escaip_fairchem.bench.{module}"), function)(case)
    except ImportError as error:  # what is not installed; NotAvailableError is one, too
        return Outcome(case=case, status=NOT_AVAILABLE, reason=str(error))
    except (RuntimeError, MemoryError, ValueError, AttributeError, TypeError, IndexError, EScAIPError) as error:
        # Models of others fail in many ways; the table says how, and the traceback goes to the log.
        traceback.print_exc()
        return Outcome(case=case, status=FAILED, reason=brief(error))
    finally:
        gc.collect()
        if case.device == "cuda":
            torch.cuda.empty_cache()
    return outcome


def brief(error: BaseException) -> str:
    """One line about an error."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in text:
        return OUT_OF_MEMORY
    return f"{type(error).__name__}: {text}"[:200]


def limit_memory() -> None:
    """Let allocations fail before the system has to end processes to find memory."""
    info = Path("/proc/meminfo")
    if not info.is_file():
        return
    for line in info.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            allowed = int(int(line.split()[1]) * 1024 * SHARE_OF_MEMORY)
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            if hard == resource.RLIM_INFINITY or allowed < hard:
                resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))


def main(answers: TextIO) -> None:
    """Measure the cases of standard input, one per line, until it ends.

    Args:
        answers: Gets a line per case. Whatever libraries print goes elsewhere.
    """
    warnings.filterwarnings("ignore")
    for line in sys.stdin:
        case = case_from(json.loads(line))
        if case.device == "cpu":
            limit_memory()
        with contextlib.redirect_stdout(sys.stderr):
            outcome = measure(case)
        answers.write(json.dumps(outcome.as_dict()) + "\n")
        answers.flush()


if __name__ == "__main__":
    # Libraries that write to the file of standard output by itself write to the log as well.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stream:
        os.dup2(2, 1)
        main(stream)
