"""Dynamics in a bath: distances, stability, and runs that go on exactly where they stopped."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.io.trajectory import Trajectory
from simulation_cases import Springs, converted, evaluate, frames_of, molecule, without_seconds

from escaip_fairchem.errors import ConfigError, DataError
from escaip_fairchem.evaluate.distances import DistanceHistogram, compare
from escaip_fairchem.evaluate.dynamics import DynamicsPlan, run_files
from escaip_fairchem.evaluate.langevin import LangevinOptions, frame_type, read_frames, run_langevin
from escaip_fairchem.evaluate.stability import StabilityCheck, StabilityLimits
from escaip_fairchem.evaluate.structure_files import StructureFiles

SHORT = LangevinOptions(steps=60, every=5, seed=4, friction=20.0)


def histogram(frames: list[Atoms], bin_width: float = 0.1) -> DistanceHistogram:
    found = DistanceHistogram(bin_width)
    for atoms in frames:
        found.add(atoms.positions[None], atoms)
    return found


def test_h_of_a_triangle_by_hand() -> None:
    # Sides 3, 4 and 5 in one frame, 3, 3 and 6 in the other; bins of 1 Å hold 3, 4, 5, 6 in turn.
    first = Atoms("H3", [[0, 0, 0], [3.5, 0, 0], [0, 4.5, 0]])  # 3.5, 4.5 and 5.70
    second = Atoms("H3", [[0, 0, 0], [3.25, 0, 0], [-3.25, 0, 0]])  # 3.25, 3.25 and 6.5
    found = histogram([first, second], 1.0)
    np.testing.assert_array_equal(found.counts, [0, 0, 0, 3, 1, 1, 1])
    np.testing.assert_allclose(found.density, np.array([0, 0, 0, 3, 1, 1, 1]) / 6)
    np.testing.assert_allclose(found.centers[:2], [0.5, 1.5])
    assert found.frames == 2


def test_h_integrates_to_one_and_frames_together_count_as_apart() -> None:
    random = np.random.default_rng(0)
    positions = random.normal(scale=3.0, size=(40, 7, 3))
    atoms = Atoms("H7", positions[0])
    together = DistanceHistogram(0.03)
    together.add(positions, atoms)
    assert together.density.sum() * 0.03 == pytest.approx(1.0)
    apart = histogram([Atoms("H7", own) for own in positions], 0.03)
    np.testing.assert_array_equal(together.counts, apart.counts)


def test_h_of_uniform_points_in_a_ball_is_the_known_one() -> None:
    random = np.random.default_rng(1)
    points = random.normal(size=(1500, 3))
    points *= (random.random(1500) ** (1 / 3) / np.linalg.norm(points, axis=1))[:, None]
    found = DistanceHistogram(0.1)
    found.add(points[None], Atoms("H1500", points))
    r = found.centers  # of a ball of radius 1: 3 r² − 9/4 r³ + 3/16 r⁵
    np.testing.assert_allclose(found.density, 3 * r**2 - 2.25 * r**3 + 0.1875 * r**5, atol=0.03)


def test_the_nearest_image_counts_where_it_is_periodic() -> None:
    atoms = Atoms("H2", [[0.5, 0, 0], [9.0, 0, 0]], cell=[10, 10, 10], pbc=True)
    assert histogram([atoms]).counts.nonzero()[0].tolist() == [15]
    atoms.pbc = False
    assert histogram([atoms]).counts.nonzero()[0].tolist() == [85]


def test_errors_of_h() -> None:
    first, second = (
        histogram([Atoms("H2", [[0, 0, 0], [1.05, 0, 0]])]),
        histogram([Atoms("H2", [[0, 0, 0], [2.05, 0, 0]])]),
    )
    same = compare(first, first)
    assert same.mean_absolute == same.integrated == 0.0
    apart = compare(first, second)
    assert apart.integrated == pytest.approx(2.0)  # they share no distance
    assert apart.mean_absolute == pytest.approx(20.0 / 21)  # 10 1/Å in two of 21 bins
    with pytest.raises(ConfigError, match="--bin-width 0"):
        DistanceHistogram(0.0)
    with pytest.raises(DataError, match="two atoms"):
        histogram([Atoms("H")])
    with pytest.raises(DataError, match="no frame"):
        _ = DistanceHistogram(0.1).density
    with pytest.raises(DataError, match="not finite"):
        histogram([Atoms("H2", [[0, 0, 0], [np.nan, 0, 0]])])


def test_what_breaks_a_molecule() -> None:
    atoms = molecule()
    check = StabilityCheck(atoms, StabilityLimits(bond_change=0.3, displacement=2.0))
    assert check.bonds == 4
    assert check.problem(atoms.positions) == ""
    # Moving and turning as a whole is no damage.
    turned = atoms.copy()
    turned.rotate(50, (1, 2, 3))
    assert check.problem(turned.positions + 100.0) == ""
    stretched = atoms.positions.copy()
    stretched[1] *= 1.3
    assert check.problem(stretched).startswith("bond C0-H1 changed from 1.091 to 1.41")
    loose = Atoms("He2", [[0, 0, 0], [3.0, 0, 0]])  # no bond
    limits = StabilityLimits(displacement=2.0)
    assert "Å from its place" in StabilityCheck(loose, limits).problem(np.array([[0, 0, 0], [8.0, 0, 0]]))
    assert StabilityCheck(loose, limits).problem(np.array([[0, 0, 0], [6.0, 0, 0]])) == ""
    assert check.problem(np.full((5, 3), np.nan)) == "positions are not finite"
    with pytest.raises(ConfigError, match="bond_change: 0"):
        StabilityLimits(bond_change=0.0)


def test_the_unit_of_the_friction() -> None:
    per_ps = LangevinOptions(friction=2.0)
    assert per_ps.ase_friction == pytest.approx(0.002 / units.fs)
    assert replace(per_ps, friction_unit="1/fs").ase_friction == pytest.approx(2.0 / units.fs)
    assert replace(per_ps, friction_unit="ase").ase_friction == 2.0
    assert 1.0 / units.fs == pytest.approx(10.18, abs=0.01)  # as the help says
    with pytest.raises(ConfigError, match="did you mean '1/ps'"):
        LangevinOptions(friction_unit="/ps")


def test_velocities_lose_their_memory_at_the_rate_of_the_friction(tmp_path: Path) -> None:
    # Free atoms: <v(0) v(t)> = <v²> exp(−γ t), here with γ t = 1 at 100 fs.
    atoms = Atoms("Ar400", np.arange(1200.0).reshape(400, 3) * 50)
    options = LangevinOptions(steps=100, every=100, timestep=1.0, friction=10.0, friction_unit="1/ps", temperature=300)
    run = run_langevin(atoms, Free(), options, tmp_path / "frames", StabilityCheck(atoms, StabilityLimits()))
    first, last = run.frames["momenta"][0].ravel(), run.frames["momenta"][-1].ravel()
    assert (first * last).mean() / (first**2).mean() == pytest.approx(np.exp(-1), abs=0.1)
    assert run.frames["temperature"][-1] == pytest.approx(300.0, rel=0.15)


class Free(Springs):
    """No forces at all."""

    def __init__(self) -> None:
        super().__init__(molecule())

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = ()) -> None:
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}


def test_frames_are_those_of_the_steps(tmp_path: Path) -> None:
    frames = frames_of(tmp_path / "frames", SHORT)
    assert frames["step"].tolist() == list(range(0, 61, 5))
    np.testing.assert_array_equal(frames["positions"][0], molecule().positions)
    assert frames["momenta"][0].sum(axis=0) == pytest.approx(0.0, abs=1e-12)
    assert (np.diff(frames["seconds"]) > 0).all()
    other = frames_of(tmp_path / "other", replace(SHORT, seed=5))
    assert not np.array_equal(other["positions"][-1], frames["positions"][-1])
    # the same steps, looked at less often
    rare = frames_of(tmp_path / "rare", replace(SHORT, every=20))
    np.testing.assert_array_equal(rare["positions"], frames["positions"][::4])


def test_a_run_that_goes_on_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    whole = frames_of(tmp_path / "whole", SHORT)
    size = frame_type(5).itemsize
    for cut in (5 * size, 5 * size + 100, 100, 12 * size + 1, 13 * size):
        (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:cut])
        assert without_seconds(frames_of(tmp_path / "cut", SHORT)) == without_seconds(whole)
        assert (tmp_path / "cut").stat().st_size == 13 * size
    assert frames_of(tmp_path / "cut", replace(SHORT, steps=30))["step"][-1] == 30


KILLED = """
import os, signal, sys
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from simulation_cases import Springs, molecule
from escaip_fairchem.evaluate.dynamics import DynamicsPlan, run_files
from escaip_fairchem.evaluate.langevin import LangevinOptions
from escaip_fairchem.evaluate.structure_files import StructureFiles

class Deadly(Springs):
    def calculate(self, *arguments, **settings):
        super().calculate(*arguments, **settings)
        if self.calls > 23:
            os.kill(os.getpid(), signal.SIGKILL)

files = StructureFiles([sys.argv[2]], exclude=Path(sys.argv[3]))
plan = DynamicsPlan(langevin=LangevinOptions(steps=60, every=5, seed=4, friction=20.0))
run_files(lambda: Deadly(molecule()), files, None, Path(sys.argv[3]), plan)
"""


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    ase.io.write(tmp_path / "start.xyz", molecule(), format="extxyz")
    return tmp_path / "start.xyz"


def run(
    inputs: Path, out: Path, plan: DynamicsPlan, *, reference: Path | None = None, **changes: Any
) -> dict[str, Any]:
    files = StructureFiles([str(inputs)], exclude=out)
    expected = None if reference is None else StructureFiles([str(reference)], exclude=out)
    calculator = changes.pop("calculator", None) or Springs(molecule())
    return run_files(lambda: calculator, files, expected, out, plan, **changes)


def test_killed_and_continued_writes_the_same(inputs: Path, tmp_path: Path) -> None:
    plan = DynamicsPlan(langevin=SHORT)
    run(inputs, tmp_path / "whole", plan)
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(inputs), str(out)]
    assert subprocess.run(command, check=False, env=dict(os.environ)).returncode == -signal.SIGKILL
    assert len(read_frames(out / ".partial/read/frames-0.bin", 5)) == 5
    run(inputs, out, plan)
    for name in ("frames.csv", "distances.csv"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with Trajectory(out / "trajectory-0.traj") as ours, Trajectory(tmp_path / "whole/trajectory-0.traj") as theirs:
        assert len(ours) == 13
        np.testing.assert_array_equal(ours[-1].get_momenta(), theirs[-1].get_momenta())
        assert ours[-1].get_potential_energy() == theirs[-1].get_potential_energy()


def test_distances_are_compared_with_the_reference(inputs: Path, tmp_path: Path) -> None:
    plan = DynamicsPlan(langevin=SHORT, starts=1)
    first = run(inputs, tmp_path / "first", plan)
    assert first["h_mae_integrated"] is None
    assert first["frames"] == 13
    own = tmp_path / "first/trajectory-0.traj"
    second = run(inputs, tmp_path / "second", plan, reference=own)
    assert second["reference_frames"] == 13
    assert second["h_mae_integrated"] == second["h_mae_per_angstrom"] == 0.0
    stiff = run(inputs, tmp_path / "stiff", plan, reference=own, calculator=Springs(molecule(), stiffness=500.0))
    assert 0.0 < stiff["h_mae_integrated"] < 2.0
    with (tmp_path / "stiff/distances.csv").open() as file:
        table = list(csv.DictReader(file))
    for name in ("h_per_angstrom", "h_reference_per_angstrom"):
        assert sum(float(row[name]) for row in table) * 0.05 == pytest.approx(1.0)
    difference = [abs(float(row["h_per_angstrom"]) - float(row["h_reference_per_angstrom"])) for row in table]
    assert stiff["h_mae_per_angstrom"] == pytest.approx(np.mean(difference))
    assert (tmp_path / "stiff/dynamics.png").stat().st_size > 1000
    assert stiff["friction_in_units"]["1/fs"] == pytest.approx(0.02)
    assert stiff["steps_per_second"] > 0
    assert stiff["expected_std_temperature_kelvin"] == pytest.approx(500 * np.sqrt(2 / 15))


def test_a_run_that_breaks_ends_and_says_when(inputs: Path, tmp_path: Path) -> None:
    soft = DynamicsPlan(langevin=replace(SHORT, steps=2000, temperature=3000.0), skip=0.0)
    summary = run(inputs, tmp_path / "out", soft, calculator=Springs(molecule(), stiffness=0.01))
    (only,) = summary["runs"]
    assert not summary["stable"]
    assert only["problem"].startswith("bond ")
    assert 0 < only["steps"] < 2000
    assert only["stable_for_ps"] == pytest.approx(only["steps"] * 0.5e-3)
    assert summary["frames"] == only["steps"] // 5  # without the broken one
    worn = run(inputs, tmp_path / "worn", DynamicsPlan(langevin=SHORT), calculator=Springs(molecule(), limit=23))
    assert worn["runs"][0]["problem"] == "ValueError: the springs are worn out"
    assert worn["frames"] == 5


@pytest.mark.parametrize("limit", [21, 22, 25])
def test_a_step_that_fails_takes_no_good_frame_with_it(limit: int, inputs: Path, tmp_path: Path) -> None:
    """One evaluation at the start, one per step: that of step 21, the first after the frame of step 20, is the 22nd."""
    worn = run(inputs, tmp_path / "out", DynamicsPlan(langevin=SHORT), calculator=Springs(molecule(), limit=limit))
    (only,) = worn["runs"]
    assert only["steps"] == 20
    assert worn["frames"] == 5
    assert only["stable_for_ps"] == pytest.approx(limit * 0.5e-3)
    # and again, where the frames are there already
    run_again = run_langevin(
        molecule(), Springs(molecule(), limit=1), SHORT, tmp_path / "one", StabilityCheck(molecule(), StabilityLimits())
    )
    assert run_again.broken_at == 1
    assert len(run_again.frames) == 1


def test_a_start_that_cannot_be_evaluated_gives_no_frame(inputs: Path, tmp_path: Path) -> None:
    summary = run(inputs, tmp_path / "out", DynamicsPlan(langevin=SHORT), calculator=Springs(molecule(), limit=0))
    assert (summary["frames"], summary["runs"][0]["stable_for_ps"]) == (0, 0.0)
    assert summary["mean_temperature_kelvin"] is None


@pytest.mark.parametrize("error", [AssertionError(), IndexError("no edge"), KeyError("Uuo"), RuntimeError("no graph")])
def test_any_refusal_ends_dynamics_with_its_reason(error: Exception, inputs: Path, tmp_path: Path) -> None:
    summary = run(inputs, tmp_path / "out", DynamicsPlan(langevin=SHORT), calculator=Refusing(error))
    assert summary["runs"][0]["problem"].startswith(type(error).__name__)
    assert summary["frames"] == 5


def test_errors_of_the_device_are_no_property_of_the_molecule(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="CUDA error"):
        run(inputs, tmp_path / "out", DynamicsPlan(langevin=SHORT), calculator=Refusing(RuntimeError("CUDA error: x")))
    assert run(inputs, tmp_path / "out", DynamicsPlan(langevin=SHORT))["frames"] == 13  # it goes on


class Refusing(Springs):
    """Springs that refuse after a while, in the way that they are told."""

    def __init__(self, error: Exception) -> None:
        super().__init__(molecule(), limit=23)
        self.error = error

    def calculate(self, *arguments: Any, **settings: Any) -> None:
        try:
            super().calculate(*arguments, **settings)
        except ValueError:
            raise self.error from None


def test_the_reference_may_be_a_folder_of_converted_data(inputs: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frames = [molecule() for _ in range(12)]
    for atoms in frames:
        atoms.positions += random.normal(scale=0.02, size=atoms.positions.shape)
    folder = converted(frames, tmp_path / "data")
    assert (folder / "metadata.npz").is_file()
    summary = run(inputs, tmp_path / "out", DynamicsPlan(langevin=SHORT), reference=folder)
    assert 0 < summary["reference_frames"] < 12
    assert 0.0 < summary["h_mae_integrated"] < 2.0


def test_a_start_that_cannot_be_read_leaves_the_folder_to_any_options(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.xyz").write_text("2\n\nH 0 0 0\n")
    with pytest.raises(DataError, match="cannot be read"):
        run(tmp_path / "odd.xyz", tmp_path / "out", DynamicsPlan(langevin=SHORT))
    assert run(inputs, tmp_path / "out", DynamicsPlan(langevin=SHORT))["stable"]


def test_several_starts_have_seeds_of_their_own(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "start.xyz", [molecule()] * 3, format="extxyz")
    plan = DynamicsPlan(langevin=replace(SHORT, steps=10), starts=2, trajectory=False)
    summary = run(tmp_path / "start.xyz", tmp_path / "out", plan)
    assert [own["seed"] for own in summary["runs"]] == [4, 5]
    assert summary["frames"] == 6
    assert not list((tmp_path / "out").glob("*.traj"))
    with pytest.raises(DataError, match="--starts 4: the input holds 3"):
        run(tmp_path / "start.xyz", tmp_path / "other", replace(plan, starts=4))


def test_what_cannot_be_compared_is_told_before_anything_runs(inputs: Path, tmp_path: Path) -> None:
    ase.io.write(tmp_path / "other.xyz", Atoms("CO", [[0, 0, 0], [0, 0, 1.1]]), format="extxyz")
    with pytest.raises(DataError, match=r"reference other.xyz:0: CO, but the dynamics are of CH4"):
        run(inputs, tmp_path / "out", DynamicsPlan(langevin=SHORT), reference=tmp_path / "other.xyz")
    assert not list(tmp_path.glob("out/.partial/read/*.bin"))
    # and the same folder serves another attempt, without --overwrite
    assert run(inputs, tmp_path / "out", DynamicsPlan(langevin=SHORT))["stable"]
    with pytest.raises(DataError, match=r"timestep: 0.5 there, 1.0 now"):
        run(inputs, tmp_path / "out", DynamicsPlan(langevin=replace(SHORT, timestep=1.0)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--timestep", "0"), "timestep: 0.0 must be"),
        (("--steps", "3"), "steps: 3 must be at least every: 10"),
        (("--friction-unit", "Hz"), "known: 1/fs, 1/ps, ase"),
        (("--reference-format", "extxyz"), "there is no --reference"),
        (("--skip", "1"), "--skip 1.0"),
        (("--starts", "0"), "--starts 0"),
    ],
)
def test_mistakes_are_one_message(
    words: tuple[str, ...], message: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.pt").touch()
    assert evaluate("dynamics", tmp_path / "model.pt", inputs, tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_defaults_of_the_commands_are_those_of_the_functions(tmp_path: Path) -> None:
    import argparse

    from escaip_fairchem.cli import evaluate_simulations as command
    from escaip_fairchem.evaluate.relaxation_pool import RelaxationOptions
    from escaip_fairchem.evaluate.relaxations import RunOptions

    (tmp_path / "model.pt").touch()
    parser = argparse.ArgumentParser()
    command.add_parsers(parser.add_subparsers())
    model = str(tmp_path / "model.pt")
    relax = parser.parse_args(["relax", model, "in", "out"])
    assert command.relaxation_options(relax) == RelaxationOptions()
    assert replace(command.run_options(relax), identity={}) == RunOptions()
    dynamics = parser.parse_args(["dynamics", model, "in", "out"])
    assert replace(command.dynamics_plan(dynamics), identity={}) == DynamicsPlan()


def test_help_does_not_wait_for_heavy_imports() -> None:
    code = (
        "import sys; from escaip_fairchem.cli import evaluate_simulations; import argparse; "
        "evaluate_simulations.add_parsers(argparse.ArgumentParser().add_subparsers()); "
        "sys.exit(bool({'torch', 'ase', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
