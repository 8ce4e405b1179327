"""All ratios that must be reached, from one run on one machine."""

from __future__ import annotations

from escaip_fairchem.bench.comparison import comparison_table
from escaip_fairchem.bench.device_ratios import DeviceRatios
from escaip_fairchem.bench.gpu_ratios import GpuRatios, gpu_requirements
from escaip_fairchem.bench.options import Session
from escaip_fairchem.bench.processor_ratios import ProcessorRatios
from escaip_fairchem.bench.requirements import Finding, requirements_table
from escaip_fairchem.bench.tables import MakeTables, Table


def measure_ratios(ratios: DeviceRatios) -> MakeTables:
    """Measure everything.

    Returns:
        Makes the table of ratios, and those of the times that it is made from.
    """
    findings = ratios.findings()
    if ratios.device == "cpu":
        missing = gpu_requirements(ratios.model)
        findings += [Finding(requirement=requirement, how="needs a GPU") for requirement in missing]
    notes = [
        f"model: {ratios.model}, direct energy and forces, random weights from seed {ratios.options.seed}, the same "
        "for all variants; ratios are of medians",
        "outputs are compared with the plain path's, in units of its root mean square",
    ]
    requirements = requirements_table(findings, notes)
    return lambda: [requirements, *(comparison_table(outcome, ratios.session) for outcome in ratios.compared)]


def run_ratios(session: Session) -> MakeTables:
    """Measure and work out all ratios; their file is ``ratios.csv``, that of times ``ratios_times_0.csv`` and so on."""
    make = measure_ratios((GpuRatios if session.options.device == "cuda" else ProcessorRatios)(session))

    def saved() -> list[Table]:
        tables = make()
        names = ["ratios", *(f"ratios_times_{number}" for number in range(len(tables) - 1))]
        return [session.save(table, name) for table, name in zip(tables, names, strict=True)]

    return saved
