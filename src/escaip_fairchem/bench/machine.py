"""The machine that is measured on: what it is, and the two rates that floors are made of."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from escaip_fairchem.bench.timing import Timer
from escaip_fairchem.data.pool import available_cores
from escaip_fairchem.errors import ConfigError

GEMM_SHAPES = ((4096, 512, 1024), (8192, 1024, 512))
"""Matrix products (rows, inner, columns) like the model's own."""

LARGE_GEMM = {"cpu": (2048, 2048, 2048), "cuda": (8192, 8192, 8192)}
"""A product that is large enough to show the machine's ceiling."""

COPIED_BYTES = {"cpu": 2**28, "cuda": 2**32}
"""Size of the block that is copied to measure bandwidth: several times any cache."""

PACKAGES = ("torch", "numpy", "e3nn", "triton", "fairchem-core", "torch-geometric", "ase", "escaip-fairchem")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine and its measured rates.

    Attributes:
        device: ``cpu`` or ``cuda``.
        name: Of the processor or GPU.
        cores: Processor cores that this process may use.
        threads: Threads of torch.
        memory_bytes: Memory of the device.
        versions: Of Python and of the packages that matter; missing ones are left out.
        date: Day of the measurement, ISO 8601.
        gemm_rates: FLOP/s of matrix products by precision (``fp32``, ``bf16``, ``tf32``) and shape (``4096x512x1024``).
        copy_rate: Bytes per second of a copy within the device's memory, bytes read and bytes written counted.
        fp32_rates: FLOP/s of the fastest float32 product, one per measurement that the rates are the highest of.
    """

    device: str
    name: str
    cores: int
    threads: int
    memory_bytes: int
    versions: dict[str, str]
    date: str
    gemm_rates: dict[str, dict[str, float]] = field(default_factory=dict)
    copy_rate: float = float("nan")
    fp32_rates: tuple[float, ...] = ()

    def best_of(self, other: Machine) -> Machine:
        """This machine with the higher of each two rates.

        A shared machine has slow moments, which last minutes; a floor must be what it can do in its best one.

        Args:
            other: The same machine, measured at another time, in the same precisions and shapes.
        """
        rates = {
            precision: {shape: max(rate, other.gemm_rates[precision][shape]) for shape, rate in rates.items()}
            for precision, rates in self.gemm_rates.items()
        }
        return replace(
            self,
            gemm_rates=rates,
            copy_rate=max(self.copy_rate, other.copy_rate),
            fp32_rates=(*self.fp32_rates, *other.fp32_rates),
        )

    def rate(self, precision: str) -> float:
        """FLOP/s of the fastest matrix product measured in a precision; NaN where it was not measured."""
        return max(self.gemm_rates.get(precision, {}).values(), default=float("nan"))

    @property
    def slug(self) -> str:
        """File name for the machine's results: ``cpu``, or the GPU's name."""
        if self.device == "cpu":
            return "cpu"
        return "-".join("".join(c if c.isalnum() else " " for c in self.name.lower()).split())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_device(device: str) -> torch.device:
    """Make sure that a device can be measured on.

    Raises:
        ConfigError: It does not exist here; nothing is measured on another one in its stead.
    """
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device}: must be cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda or "none"
        raise ConfigError(
            f"--device cuda: torch {torch.__version__} (CUDA {built}) finds no GPU here; run this on a machine that "
            "has one, or measure with --device cpu. Nothing was measured"
        )
    return torch.device(device)


def describe_machine(device: str) -> Machine:
    """Say what the machine is, without measuring anything."""
    check_device(device)
    is_gpu = device == "cuda"
    return Machine(
        device=device,
        name=torch.cuda.get_device_name() if is_gpu else processor_name(),
        cores=available_cores(),
        threads=torch.get_num_threads(),
        memory_bytes=torch.cuda.get_device_properties(0).total_memory if is_gpu else _host_memory(),
        versions=_versions(),
        date=datetime.date.today().isoformat(),
    )


def measure_machine(device: str, *, quick: bool = False, longest: float = 2.0) -> Machine:
    """Describe the machine and measure its rates.

    Args:
        device: ``cpu`` or ``cuda``.
        quick: Whether to use small sizes, for rates that are too low but there within a second.
        longest: Seconds for the repetitions of each product, and of the copy.
    """
    machine = describe_machine(device)
    precisions = ("fp32", "bf16", "tf32") if device == "cuda" else ("fp32", "bf16")
    shapes = ((512, 128, 256),) if quick else (*GEMM_SHAPES, LARGE_GEMM[device])
    rates = {
        precision: {
            "x".join(map(str, shape)): gemm_rate(device, precision, shape, quick=quick, longest=longest)
            for shape in shapes
        }
        for precision in precisions
    }
    copied = copy_rate(device, 2**24 if quick else COPIED_BYTES[device], longest=longest)
    if device == "cuda":
        torch.cuda.empty_cache()  # for the processes that measure
    return replace(machine, gemm_rates=rates, copy_rate=copied, fp32_rates=(max(rates["fp32"].values()),))


def gemm_rate(
    device: str, precision: str, shape: tuple[int, int, int], *, quick: bool = False, longest: float = 2.0
) -> float:
    """FLOP/s of ``(m, k) @ (k, n)`` on random data: the median of repeated products.

    Args:
        device: ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16`` or ``tf32``.
        shape: m, k, n.
        quick: Whether a few repetitions are enough.
        longest: Seconds after which no repetition is begun.
    """
    rows, inner, columns = shape
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    left = torch.randn(rows, inner, device=device, generator=generator).to(dtype)
    right = torch.randn(inner, columns, device=device, generator=generator).to(dtype)
    with float32_products("high" if precision == "tf32" else "highest"):
        seconds = _typical(device, lambda: left @ right, repeats=3 if quick else 15, longest=longest)
    return 2.0 * rows * inner * columns / seconds


def copy_rate(device: str, size: int, *, longest: float = 2.0) -> float:
    """Bytes per second of a copy of ``size`` bytes, read and written bytes counted."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2.0 * size / _typical(device, lambda: target.copy_(source), repeats=7, longest=longest)


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Set how exact matrix products of float32 tensors are (``highest``, ``high``) within a block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _typical(device: str, function: Callable[[], object], *, repeats: int, longest: float) -> float:
    """Median seconds of a function after a warm-up, stopping early where it takes long."""
    timer = Timer(device)
    timer.measure(function)
    seconds: list[float] = []
    while len(seconds) < repeats and (len(seconds) < 3 or sum(seconds) < longest):
        seconds.append(timer.measure(function))
    return median(seconds)


def processor_name() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _host_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # a system that does not tell
        return 0


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    versions["torch"] = torch.__version__  # with the build's suffix
    return versions
