"""``escaip evaluate relax`` and ``escaip evaluate dynamics``: what a checkpoint is worth in simulations."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from escaip_fairchem.cli.evaluate_options import add_checkpoint, add_device_options
from escaip_fairchem.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from escaip_fairchem.evaluate.dynamics import DynamicsPlan
    from escaip_fairchem.evaluate.formation_energies import FormationEnergies
    from escaip_fairchem.evaluate.relaxation_pool import RelaxationOptions
    from escaip_fairchem.evaluate.relaxations import RunOptions


def add_parsers(commands: Any) -> None:
    """Add both to the sub-commands of ``escaip evaluate``."""
    _add_relax(commands)
    _add_dynamics(commands)


def _add_relax(commands: Any) -> None:
    parser = commands.add_parser(
        "relax",
        help="relax many structures, as Matbench-Discovery does",
        description="Relax structures with FIRE, many in one batch of the model. OUT gets the relaxed structures "
        "(relaxed.jsonl.gz), the same table without them (relaxed.csv.gz) and summary.json. A structure that cannot be "
        "relaxed is a row with the reason. A run that was stopped is continued by the same command.",
    )
    _add_common(parser)
    group = parser.add_argument_group("relaxation")
    group.add_argument(
        "--fmax",
        type=float,
        default=0.02,
        metavar="eV/Å",
        help="longest row of forces to end at (default: %(default)s)",
    )
    group.add_argument("--steps", type=int, default=500, metavar="N", help="steps at most (default: %(default)s)")
    group.add_argument(
        "--cell", action=argparse.BooleanOptionalAction, default=True, help="relax the cell too (default); needs stress"
    )
    group.add_argument(
        "--max-force",
        type=float,
        default=1000.0,
        metavar="eV/Å",
        help="a larger force on an atom is a failure (default: %(default)s)",
    )
    group.add_argument(
        "--max-volume-change",
        type=float,
        default=5.0,
        metavar="X",
        help="so is a volume that changes by more than this factor (default: %(default)s)",
    )
    group = parser.add_argument_group("work and output")
    group.add_argument(
        "--batch-atoms", type=int, default=2000, metavar="N", help="atoms in one batch (default: %(default)s)"
    )
    group.add_argument("--ids", metavar="KEY", help="entry with the ids (default: material_id, or file and number)")
    group.add_argument("--limit", type=int, metavar="N", help="take the first N structures only")
    group.add_argument(
        "--part",
        metavar="K/N",
        help="relax only every N-th structure from the K-th; the same command without --part joins finished parts",
    )
    group.add_argument(
        "--columns", nargs="+", default=[], metavar="NAME=RENAMED", help="give columns of the tables other names"
    )
    group.add_argument(
        "--element-references",
        type=Path,
        metavar="FILE",
        help="energies of elements, eV per atom by symbol (YAML or JSON): adds the column e_form_per_atom_NAME",
    )
    group.add_argument(
        "--energy-corrections",
        type=Path,
        metavar="FILE",
        help="what is added to the energies of whole structures before that, eV by id (YAML or JSON); default: nothing",
    )
    group.add_argument("--model-name", metavar="NAME", help="ends the name of that column (default: escaip)")
    group.add_argument(
        "--save-every", type=float, default=60.0, metavar="SECONDS", help="between saves (default: %(default)s)"
    )
    parser.set_defaults(run=run_relax)


def _add_dynamics(commands: Any) -> None:
    parser = commands.add_parser(
        "dynamics",
        help="molecular dynamics in a bath, compared with reference frames, as for MD22",
        description="Run Langevin dynamics from a molecule and measure the distribution of its interatomic distances "
        "h(r) against reference frames, how long it stays stable, its temperature and the speed. OUT gets "
        "summary.json, distances.csv, frames.csv, dynamics.png and the trajectory. A run that was stopped goes on "
        "exactly where its last frame was saved by the same command.",
    )
    _add_common(parser)
    group = parser.add_argument_group("dynamics")
    group.add_argument(
        "--temperature", type=float, default=500.0, metavar="K", help="of the bath (default: %(default)s)"
    )
    group.add_argument("--timestep", type=float, default=0.5, metavar="fs", help="default: %(default)s")
    group.add_argument("--friction", type=float, default=0.5, metavar="X", help="default: %(default)s")
    group.add_argument(
        "--friction-unit",
        default="1/ps",
        metavar="UNIT",
        help="1/ps, 1/fs, or ase for ASE's own, one over 10.18 fs (default: %(default)s)",
    )
    group.add_argument("--steps", type=int, default=200_000, metavar="N", help="default: %(default)s")
    group.add_argument(
        "--every", type=int, default=10, metavar="N", help="steps between saved frames (default: %(default)s)"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="decides velocities and noise")
    group.add_argument(
        "--starts", type=int, default=1, metavar="N", help="start from the first N structures (default: %(default)s)"
    )
    group = parser.add_argument_group("measures")
    group.add_argument("--reference", nargs="+", metavar="DATA", help="frames of the same molecule to compare with")
    group.add_argument("--reference-format", metavar="NAME", help="name of their format (default: recognise each file)")
    group.add_argument("--bin-width", type=float, default=0.05, metavar="Å", help="of h(r) (default: %(default)s)")
    group.add_argument(
        "--skip",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the first frames that h(r) and temperature leave out (default: %(default)s)",
    )
    group.add_argument(
        "--max-bond-change",
        type=float,
        default=0.5,
        metavar="Å",
        help="a bond that changes by more is broken, and ends the run (default: %(default)s)",
    )
    group.add_argument(
        "--max-displacement",
        type=float,
        default=10.0,
        metavar="Å",
        help="so does an atom farther from its place at the start (default: %(default)s)",
    )
    group.add_argument(
        "--trajectory", action=argparse.BooleanOptionalAction, default=True, help="write the trajectory (default)"
    )
    parser.set_defaults(run=run_dynamics)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "structures",
        metavar="STRUCTURES",
        help="file, folder or pattern: converted data (.aselmdb, .lmdb), what ASE reads, .jsonl(.gz), .zip of extxyz",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write into")
    parser.add_argument(
        "--format", metavar="NAME", help="name of the structures' format (default: recognise each file)"
    )
    add_device_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace what another run left in OUT")


def run_relax(arguments: argparse.Namespace) -> int:
    """Relax, and say how it went; status 1 if nothing could be relaxed."""
    from escaip_fairchem.evaluate.relaxation_table import LINES
    from escaip_fairchem.evaluate.relaxations import relax_files
    from escaip_fairchem.evaluate.structure_files import StructureFiles

    options, run = relaxation_options(arguments), run_options(arguments)
    files = StructureFiles(
        [arguments.structures], exclude=arguments.out, ids=arguments.ids, form=arguments.format, limit=arguments.limit
    )

    def potential() -> Any:
        from escaip_fairchem.plugin.potential import CheckpointPotential

        # With moving cells nothing that is remembered of neighbours can be used again.
        skin = 0.0 if options.relax_cell else 1.0
        return CheckpointPotential(arguments.checkpoint, cpu=arguments.cpu, trusted=arguments.trust, skin=skin)

    summary = relax_files(potential, files, arguments.out, options, run, report=_report)
    folder = arguments.out if run.part is None else run.part.folder(arguments.out)
    print(
        f"{folder / LINES}: {summary['structures']} structures, {summary['converged']} converged, "
        f"{summary['not_converged']} not converged, {summary['failed']} failed"
    )
    for reason, count in summary["failures"].items():
        print(f"  {count} failed: {reason}")
    return 1 if summary["failed"] == summary["structures"] else 0


def relaxation_options(arguments: argparse.Namespace) -> RelaxationOptions:
    """What the command line says about when relaxations end."""
    from escaip_fairchem.evaluate.relaxation_pool import RelaxationOptions

    return RelaxationOptions(
        fmax=arguments.fmax,
        max_steps=arguments.steps,
        relax_cell=arguments.cell,
        max_force=arguments.max_force,
        max_volume_change=arguments.max_volume_change,
    )


def run_options(arguments: argparse.Namespace) -> RunOptions:
    """What the command line says about how to do it."""
    from escaip_fairchem.evaluate.relaxation_table import parse_columns
    from escaip_fairchem.evaluate.relaxations import Part, RunOptions

    return RunOptions(
        batch_atoms=arguments.batch_atoms,
        part=None if arguments.part is None else Part.parse(arguments.part),
        columns=parse_columns(arguments.columns),
        formation=_formation(arguments),
        save_every=arguments.save_every,
        overwrite=arguments.overwrite,
        identity=_identity(arguments),
    )


def _formation(arguments: argparse.Namespace) -> FormationEnergies | None:
    from escaip_fairchem.evaluate.formation_energies import DEFAULT_MODEL_NAME, FormationEnergies

    if arguments.element_references is None:
        for option, value in (
            ("--model-name", arguments.model_name),
            ("--energy-corrections", arguments.energy_corrections),
        ):
            if value is not None:
                raise ConfigError(f"{option}: formation energies need --element-references FILE too")
        return None
    return FormationEnergies.read(
        arguments.element_references,
        model_name=DEFAULT_MODEL_NAME if arguments.model_name is None else arguments.model_name,
        corrections=arguments.energy_corrections,
    )


def run_dynamics(arguments: argparse.Namespace) -> int:
    """Run dynamics, and say what was measured."""
    from escaip_fairchem.evaluate.dynamics import SUMMARY, run_files
    from escaip_fairchem.evaluate.structure_files import StructureFiles

    plan = dynamics_plan(arguments)
    files = StructureFiles([arguments.structures], exclude=arguments.out, form=arguments.format)
    reference = None
    if arguments.reference is not None:
        reference = StructureFiles(arguments.reference, exclude=arguments.out, form=arguments.reference_format)
    elif arguments.reference_format is not None:
        raise ConfigError("--reference-format: there is no --reference")

    def calculator() -> Any:
        from escaip_fairchem.plugin.calculator import OCPCalculator

        return OCPCalculator(checkpoint_path=arguments.checkpoint, cpu=arguments.cpu, trusted=arguments.trust)

    summary = run_files(
        calculator, files, reference, arguments.out, plan, overwrite=arguments.overwrite, report=_report
    )
    print(f"{arguments.out / SUMMARY}: {summary['frames']} stable frames")
    if summary["h_mae_integrated"] is not None:
        print(
            f"h(r) against {summary['reference_frames']} reference frames: MAE {summary['h_mae_per_angstrom']:.4g} 1/Å "
            f"over bins, {summary['h_mae_integrated']:.4g} integrated"
        )
    if summary["mean_temperature_kelvin"] is not None:
        print(f"temperature: {summary['mean_temperature_kelvin']:.1f} ± {summary['std_temperature_kelvin']:.1f} K")
    for run in summary["runs"]:
        print(f"{run['start']}: stable for {run['stable_for_ps']:g} ps{': ' if run['problem'] else ''}{run['problem']}")
    if summary["steps_per_second"] is not None:
        print(f"speed: {summary['steps_per_second']:.4g} steps/s")
    return 0


def dynamics_plan(arguments: argparse.Namespace) -> DynamicsPlan:
    """What the command line says about what to run and measure."""
    from escaip_fairchem.evaluate.dynamics import DynamicsPlan
    from escaip_fairchem.evaluate.langevin import LangevinOptions
    from escaip_fairchem.evaluate.stability import StabilityLimits

    return DynamicsPlan(
        langevin=LangevinOptions(
            temperature=arguments.temperature,
            timestep=arguments.timestep,
            friction=arguments.friction,
            friction_unit=arguments.friction_unit,
            steps=arguments.steps,
            every=arguments.every,
            seed=arguments.seed,
        ),
        limits=StabilityLimits(bond_change=arguments.max_bond_change, displacement=arguments.max_displacement),
        starts=arguments.starts,
        bin_width=arguments.bin_width,
        skip=arguments.skip,
        trajectory=arguments.trajectory,
        identity=_identity(arguments),
    )


def _identity(arguments: argparse.Namespace) -> dict[str, Any]:
    """The checkpoint by path, size and time of change, so that a folder of another one is not continued."""
    checkpoint: Path = arguments.checkpoint
    if not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint}: no such checkpoint")
    state = checkpoint.stat()
    return {"checkpoint": [str(checkpoint.resolve()), state.st_size, state.st_mtime_ns]}


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
