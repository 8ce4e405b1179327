"""What jobs ask SLURM for: flags, the section ``slurm``, and what is refused before anything is queued."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from submitit import AutoExecutor

from escaip_fairchem.errors import ConfigError
from escaip_fairchem.plugin.launch.resubmission import Changes
from escaip_fairchem.plugin.launch.site import Flags, read_site, request

CONFIGS = Path(__file__).parents[2] / "configs"
GPUS = Flags(processes=8, nodes=2, cpu=False, workers=4, name="run")


def asked(flags: Flags = GPUS, **section: Any) -> dict[str, Any]:
    return dict(request(flags, section).parameters)


def test_without_a_section_it_is_what_fairchem_asks_for():
    wanted = request(replace(GPUS, nodes=1), None)
    assert wanted.parameters == {
        "name": "run",
        "timeout_min": 72 * 60,
        "nodes": 1,
        "tasks_per_node": 8,
        "slurm_gpus_per_node": 8,
        "slurm_cpus_per_task": 5,
        "slurm_mem": "80GB",
        "slurm_signal_delay_s": 90,
        "slurm_srun_args": ["--kill-on-bad-exit=1"],
        "slurm_teardown": ["status=$?", 'exit "$status"'],
        "slurm_additional_parameters": {},
    }
    assert (wanted.max_requeues, wanted.minutes) == (3, 72 * 60)


def test_processors_ask_for_no_gpu():
    assert "slurm_gpus_per_node" not in asked(replace(GPUS, cpu=True))
    assert "slurm_gpus_per_node" not in asked(gpus_per_node=0)
    assert asked(gpus_per_node="a100:8")["slurm_gpus_per_node"] == "a100:8"


@pytest.mark.parametrize("key", ["gres", "gpus_per_task"])
def test_gpus_are_asked_for_once(key: str):
    parameters = asked(**{key: "gpu:8"})
    assert "slurm_gpus_per_node" not in parameters
    assert parameters["slurm_additional_parameters"] == {key: "gpu:8"}


def test_sbatch_s_options_are_handed_on_and_false_leaves_them_out():
    section = {"mail-user": "a@b", "constraint": "a100", "requeue": True, "exclusive": False, "reservation": None}
    assert asked(**section)["slurm_additional_parameters"] == {
        "mail_user": "a@b", "constraint": "a100", "requeue": True,
    }  # fmt: skip


def test_the_command_line_counts_more():
    section = {"partition": "b", "account": "b", "qos": "b", "mem": "7G", "time": "30"}
    parameters = asked(**section)
    assert [parameters[f"slurm_{key}"] for key in ("partition", "account", "qos", "mem")] == ["b", "b", "b", "7G"]
    assert parameters["timeout_min"] == 30
    given = replace(GPUS, partition="a", account="a", qos="a", memory_gb=5, hours=2)
    parameters = asked(given, **section)
    assert [parameters[f"slurm_{key}"] for key in ("partition", "account", "qos", "mem")] == ["a", "a", "a", "5GB"]
    assert parameters["timeout_min"] == 120
    assert parameters["slurm_additional_parameters"] == {}


def test_memory_per_gpu_takes_the_place_of_memory():
    parameters = asked(mem_per_gpu="64G")
    assert "slurm_mem" not in parameters
    assert parameters["slurm_additional_parameters"] == {"mem_per_gpu": "64G"}
    parameters = asked(replace(GPUS, memory_gb=5), mem_per_gpu="64G")  # sbatch takes one of them
    assert (parameters["slurm_mem"], parameters["slurm_additional_parameters"]) == ("5GB", {})


def test_submitit_takes_what_is_asked_for(tmp_path: Path):
    """Its executor checks types and names."""
    from submitit.slurm.slurm import SlurmExecutor

    section = {"gpus_per_node": "a100:8", "cpus_per_task": "4", "mem": "7G", "signal": "USR2@33", "exclude": "n[1-3]"}
    parameters = asked(**section, setup=["module load x"], concurrent_jobs=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SlurmExecutor, "affinity", classmethod(lambda cls: 1))
        executor = AutoExecutor(folder=tmp_path, cluster="slurm")
    executor.update_parameters(**parameters)
    text = executor._executor._make_submission_file_text("true", "x")
    for line in (
        "--gpus-per-node=a100:8", "--cpus-per-task=4", "--mem=7G", "--signal=USR2@33", "--exclude='n[1-3]'",
        "--nodes=2", "--ntasks-per-node=8", "--time=4320",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in text, text
    assert "module load x" in text
    assert "--kill-on-bad-exit=1" in text


def test_changes_of_a_resubmission_undo_what_they_replace():
    flags = replace(GPUS, memory_gb=None)
    before = {**asked(flags, mem_per_gpu="64G", exclude="n1", constraint="a100"), "max_requeues": 5}
    again = Changes(memory_gb=9, exclude="n2", hours=1, partition="long").apply(before)
    assert again.max_requeues == 5
    assert (again.minutes, again.parameters["timeout_min"]) == (60, 60)
    assert again.parameters["slurm_mem"] == "9GB"
    assert again.parameters["slurm_partition"] == "long"
    assert again.parameters["slurm_additional_parameters"] == {"exclude": "n2", "constraint": "a100"}
    assert Changes().apply(before).parameters == {key: before[key] for key in before if key != "max_requeues"}


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("10:30", 11), ("02:00:00", 120), ("1-00", 1440), ("1-02:30", 1590), ("2-00:00:01", 2881)],
)
def test_times(text: str, minutes: int):
    assert asked(time=text)["timeout_min"] == minutes


def test_own_keys():
    section = {
        "concurrent_jobs": 4,
        "max_requeues": 9,
        "signal": "USR2@180",
        "setup": "module load x",
        "srun_args": ["-l"],
    }
    wanted = request(GPUS, section)
    assert wanted.max_requeues == 9
    assert wanted.parameters["slurm_array_parallelism"] == 4
    assert wanted.parameters["slurm_signal_delay_s"] == 180
    assert wanted.parameters["slurm_setup"] == ["module load x"]
    assert wanted.parameters["slurm_srun_args"] == ["--kill-on-bad-exit=1", "-l"]
    assert wanted.parameters["slurm_additional_parameters"] == {}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"partitoin": "x"}, r"slurm\.partitoin: neither .* \(did you mean 'partition'\?\)"),
        ({"nodes": 3}, r"slurm\.nodes: is decided by --num-nodes"),
        ({"ntasks-per-node": 3}, r"slurm\.ntasks_per_node: is decided by --num-gpus"),
        ({"time": yaml.safe_load("12:00:00")}, r"slurm\.time: 43200; write 'HH:MM:SS'.* in quotes"),
        ({"time": "soon"}, r"slurm\.time: 'soon'; write"),
        ({"time": "0"}, r"slurm\.time: '0' is no time at all"),
        ({"signal": "TERM@30"}, r"slurm\.signal: 'TERM@30'; trainings save at USR2"),
        ({"concurrent_jobs": 0}, r"slurm\.concurrent_jobs: 0 is no whole number of at least 1"),
        ({"max_requeues": -1}, r"slurm\.max_requeues: -1 is no whole number of at least 0"),
        ({"setup": {"a": 1}}, r"slurm\.setup: .* is no single value"),
        ({"qos": ["a", "b"]}, r"slurm\.qos: \['a', 'b'\] is no single value"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(section: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        request(GPUS, section)


@pytest.mark.parametrize("path", sorted((CONFIGS / "slurm").glob("*.yml")), ids=lambda path: path.name)
def test_the_examples_can_be_used(path: Path):
    wanted = request(GPUS, read_site(path))
    assert wanted.parameters["slurm_partition"]
    assert wanted.minutes in (24 * 60, 48 * 60, 12 * 60)
    assert wanted.parameters["slurm_additional_parameters"]["requeue"] is True


@pytest.mark.parametrize("text", ["partition: a", "slurm: [a]", "slurm: {a: 1}\noptim: {}", "slurm: {", ""])
def test_site_files_hold_the_section_alone(text: str, tmp_path: Path):
    (tmp_path / "a.site.yml").write_text(text)
    with pytest.raises(ConfigError, match=r"--slurm-yml .*a\.site\.yml: "):
        read_site(tmp_path / "a.site.yml")


_PROGRAMS = {
    "srun": 'echo "srun $*" >> calls; exit {answer}',
    "scontrol": 'echo "SlurmctldTimeout = 120 sec"; echo "SlurmdTimeout           = 90 sec"',
    "sleep": 'echo "sleep $*" >> calls',
}


@pytest.mark.parametrize(
    ("nodes", "status", "answer", "calls"),
    [
        (1, 3, 1, []),
        (2, 0, 1, []),
        (2, 3, 0, ["srun"]),
        (2, 3, 1, ["srun", "sleep 150"]),
    ],
    ids=["one node", "success", "all nodes answer", "a node is gone"],
)
def test_a_failed_job_waits_for_slurm_where_a_node_does_not_answer(
    tmp_path: Path, nodes: int, status: int, answer: int, calls: list[str]
):
    """If it ended, SLURM would not queue it again. Its status is the training's, whatever a site does afterwards."""
    for name, body in _PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body.format(answer=answer)}\n")
        (tmp_path / name).chmod(0o755)
    lines = asked(replace(GPUS, nodes=nodes), teardown=["echo afterwards"])["slurm_teardown"]
    script = "\n".join([f"sh -c 'exit {status}'", *lines])
    path = f"{tmp_path}:{os.environ['PATH']}"
    found = subprocess.run(["bash", "-c", script], cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True)
    assert found.returncode == status
    assert found.stdout == "afterwards\n"
    made = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
    assert [line.partition(" --overlap --nodes=2 --ntasks=2 ")[0] for line in made] == calls
    assert ("waiting up to 150 s for SLURM" in found.stderr) == (calls[-1:] == ["sleep 150"])
