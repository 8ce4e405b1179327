"""Questions to SLURM: squeue's real answers are understood, and silence is not taken for "there is no such job"."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from escaip_fairchem.runs import slurm
from escaip_fairchem.runs.slurm import Job, parse_sacct, parse_squeue, parse_time, query_jobs

SQUEUE = """\
2|2|CANCELLED|UNLIMITED|None
2|1|PENDING|UNLIMITED|JobArrayTaskLimit
2|0|RUNNING|364-23:59:58|None
10|0|CANCELLED|UNLIMITED|JobHeldUser
4|N/A|PENDING|1-02:30:00|Priority
3|N/A|RUNNING|0:48|None
1|N/A|COMPLETED|364-23:59:59|None
5|N/A|FAILED|UNLIMITED|NonZeroExitCode
7|N/A|FAILED|364-23:59:59|JobLaunchFailure
13|N/A|PENDING|UNLIMITED|BeginTime
8|N/A|TIMEOUT|INVALID|TimeLimit
"""
"""Lines that SLURM 22.05 printed."""
NO_SUCH_JOB = "slurm_load_jobs error: Invalid job id specified"
NO_CONTROLLER = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch):
    """Writes a shell script in place of one of SLURM's programs; there are no others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return write


def says(text: str) -> str:
    return "while read -r line; do echo \"$line\"; done <<'END'\n" + text + "\nEND"


def test_jobs_and_tasks_go_by_the_names_that_sbatch_and_the_environment_give_them():
    jobs = parse_squeue(SQUEUE)
    assert sorted(jobs) == ["1", "10_0", "13", "2_0", "2_1", "2_2", "3", "4", "5", "7", "8"]
    assert all(name == job.name for name, job in jobs.items())
    assert jobs["2_1"] == Job(name="2_1", state="PENDING", reason="JobArrayTaskLimit")
    assert jobs["3"] == Job(name="3", state="RUNNING", seconds_left=48)
    assert jobs["4"].seconds_left == 26 * 3600 + 30 * 60
    assert jobs["8"] == Job(name="8", state="TIMEOUT", reason="TimeLimit")
    assert {name for name, job in jobs.items() if job.waits} == {"2_1", "4", "13"}
    assert {name for name, job in jobs.items() if job.has_ended} == {"1", "2_2", "10_0", "5", "7", "8"}


def test_lines_that_are_no_jobs_are_skipped_and_reasons_may_hold_anything():
    text = "squeue: warning\n\n5|N/A|PENDING|UNLIMITED|Nodes|required for job\n"
    assert parse_squeue(text)["5"].reason == "Nodes|required for job"
    assert len(parse_squeue(text)) == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:00", 0),
        ("1:05", 65),
        ("59:59", 3599),
        ("2:00:01", 7201),
        ("364-23:59:59", 365 * 86400 - 1),
        ("UNLIMITED", None),
        ("INVALID", None),
        ("NOT_SET", None),
        ("", None),
    ],
)
def test_times(text, seconds):
    assert parse_time(text) == seconds


def test_accounting_says_who_cancelled_and_bundles_tasks_that_never_ran():
    jobs = parse_sacct("17_[0-2,8-16:4%2]|CANCELLED by 1000\n17_5|COMPLETED\n18|OUT_OF_MEMORY\n\nnonsense\n")
    assert {name: job.state for name, job in jobs.items()} == {
        **{f"17_{task}": "CANCELLED" for task in (0, 1, 2, 8, 12, 16)},
        "17_5": "COMPLETED",
        "18": "OUT_OF_MEMORY",
    }


def test_one_question_for_all_jobs(programs, tmp_path, monkeypatch):
    monkeypatch.setenv("SQUEUE_PARTITION", "another")
    seen = tmp_path / "seen"
    programs("squeue", f'echo "$@ $SQUEUE_PARTITION" >> {seen}\n{says(SQUEUE)}')
    jobs = query_jobs(["2_0", "2_1", "13", "3", "local-7", ""])
    assert jobs is not None
    assert {name: job.state for name, job in jobs.items()} == {
        "2_0": "RUNNING",
        "2_1": "PENDING",
        "13": "PENDING",
        "3": "RUNNING",
    }
    (line,) = seen.read_text().splitlines()
    assert line.rstrip().endswith("--jobs=2,3,13")
    assert "--array" in line
    assert "--states=all" in line


def test_nobody_is_asked_about_names_that_are_no_jobs(programs, tmp_path):
    programs("squeue", f"echo > {tmp_path / 'asked'}")
    assert query_jobs(["local-7", "17_x", ""]) == {}
    assert not (tmp_path / "asked").exists()


def test_a_job_that_squeue_does_not_know_is_no_failure(programs):
    programs("squeue", f"echo '{NO_SUCH_JOB}' >&2; exit 1")
    assert query_jobs(["99"]) == {}


def test_accounting_is_asked_about_the_jobs_that_squeue_has_forgotten(programs, tmp_path):
    programs("squeue", says("3|N/A|RUNNING|0:48|None"))
    old = says("17_1|TIMEOUT\n17_2|FAILED\n18|RUNNING\n3|FAILED")
    programs("sacct", f'echo "$@" > {tmp_path / "seen"}\n{old}')
    jobs = query_jobs(["3", "17_1", "18"])
    assert jobs is not None
    # Accounting may still believe that a lost job runs; and what squeue says counts more.
    assert {name: job.state for name, job in jobs.items()} == {"3": "RUNNING", "17_1": "TIMEOUT"}
    assert (tmp_path / "seen").read_text().rstrip().endswith("--jobs=17,18")


def test_without_accounting_a_forgotten_job_is_unknown(programs):
    programs("squeue", says("3|N/A|RUNNING|0:48|None"))
    programs("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert set(query_jobs(["3", "17"]) or {}) == {"3"}


def test_no_program(programs):
    assert query_jobs(["3"]) is None


def test_no_controller(programs, tmp_path):
    programs("squeue", f"echo '{NO_CONTROLLER}' >&2; exit 1")
    programs("sacct", f"echo > {tmp_path / 'asked'}")
    assert query_jobs(["3"]) is None
    assert not (tmp_path / "asked").exists()


def test_no_answer_in_time(programs, monkeypatch):
    monkeypatch.setattr(slurm, "TIMEOUT_SECONDS", 0.3)
    programs("squeue", "exec /bin/sleep 30")
    start = time.monotonic()
    assert query_jobs(["3"]) is None
    assert time.monotonic() - start < 10
