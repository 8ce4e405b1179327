"""The state of a run, from its folder, its lock and SLURM's word."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from escaip_fairchem.errors import RunFolderError
from escaip_fairchem.plugin import run_folder
from escaip_fairchem.plugin.run_folder import RunFolderLock
from escaip_fairchem.runs import records, states
from escaip_fairchem.runs.records import Status, Submission
from escaip_fairchem.runs.slurm import Job
from escaip_fairchem.runs.states import RunState, find_runs, lock_is_held, read_states

EARLY, LATE = "2025-01-31T10:00:00+01:00", "2025-01-31T11:00:00+01:00"
LIVE = ("starting", "training", "evaluating")


def write(folder: Path, state: str | None = None, *, job: str | None = None, **values) -> None:
    """A run with a status in some state, if any, and a submission of some job, if any."""
    folder.mkdir(parents=True, exist_ok=True)
    if state is not None:
        fields = {"job": job, "host": "elsewhere", "pid": 4, "updated": LATE, **values}
        records.write_status(folder, Status(run=folder.name, state=state, **fields))
    if job is not None:
        submit(folder, job)


def submit(folder: Path, job: str, when: str = EARLY, log: Path | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    submission = Submission(
        run=folder.name,
        job=job,
        submitted=when,
        logdir="/l",
        log=str(log or f"/l/{job}.out"),
        config={},
        parameters={},
        config_yml="c",
    )
    records.write_submission(folder, submission)


def look(folder: Path, *jobs: Job, reachable: bool = True) -> RunState:
    def query(names):
        return {job.name: job for job in jobs} if reachable else None

    (state,) = read_states([folder], query)
    return state


def says(state: str, reason: str = "", name: str = "17") -> Job:
    return Job(name=name, state=state, reason=reason)


# What SLURM says


def test_pending_and_nothing_written_is_queued(tmp_path):
    write(tmp_path, job="17")
    run = look(tmp_path, says("PENDING", "Resources"))
    assert (run.state, run.why, run.job, run.log) == ("queued", "Resources", "17", Path("/l/17.out"))


@pytest.mark.parametrize("written", [*LIVE, "stopped"])
def test_pending_after_it_ran_is_preempted(tmp_path, written):
    write(tmp_path, written, job="17")
    run = look(tmp_path, says("PENDING", "BeginTime"))
    assert (run.state, run.why) == ("preempted", "queued again: BeginTime")


def test_pending_after_slurm_requeued_a_failure_tells_of_it(tmp_path):
    write(tmp_path, "failed", job="17", why="NCCL: no route")
    run = look(tmp_path, says("PENDING", "BeginTime"))
    assert (run.state, run.why) == ("preempted", "queued again: BeginTime; before that: NCCL: no route")


@pytest.mark.parametrize("slurm", ["RUNNING", "COMPLETING"])
@pytest.mark.parametrize("written", LIVE)
def test_running(tmp_path, slurm, written):
    write(tmp_path, written, job="17", total_steps=100, step=40, seconds_per_step=2.0)
    run = look(tmp_path, says(slurm))
    assert (run.state, run.why, run.seconds_left) == ("running", "", 120.0)


def test_running_before_the_first_word(tmp_path):
    write(tmp_path, job="17")
    run = look(tmp_path, says("RUNNING"))
    assert (run.state, run.why) == ("running", "it has written nothing yet")
    assert look(tmp_path, says("CONFIGURING")).why == "SLURM says CONFIGURING"


def test_running_with_the_word_of_before_the_preemption(tmp_path):
    write(tmp_path, "stopped", job="17", why="preempted")
    run = look(tmp_path, says("RUNNING"))
    assert (run.state, run.why) == ("running", "it last wrote that it stopped: preempted")


@pytest.mark.parametrize("written", [*LIVE, None])
@pytest.mark.parametrize(
    ("slurm", "reason", "words"),
    [
        ("OUT_OF_MEMORY", "OutOfMemory", "out of memory: killed by SLURM; ask for more with --slurm-mem"),
        ("TIMEOUT", "TimeLimit", "time limit"),
        ("CANCELLED", "JobHeldUser", "cancelled"),
        ("NODE_FAIL", "", "its node failed"),
        ("PREEMPTED", "", "preempted, and not queued again"),
        ("FAILED", "NonZeroExitCode", "its process ended with an error; see its log"),
        ("FAILED", "", "its process ended with an error; see its log"),
    ],
)
def test_slurm_knows_of_ends_that_a_process_could_not_write(tmp_path, slurm, reason, words, written):
    write(tmp_path, written, job="17", total_steps=100, seconds_per_step=2.0)
    run = look(tmp_path, says(slurm, reason))
    assert (run.state, run.why, run.seconds_left) == ("failed", words, None)


@pytest.mark.parametrize("job", [says("FAILED", "NonZeroExitCode"), None])
def test_a_job_that_failed_before_it_could_write_has_its_words_in_its_log(tmp_path, job):
    """Whether SLURM still knows of it or not."""
    folder = tmp_path / "a"
    submit(folder, "17", log=tmp_path / "17_0_log.out")
    (tmp_path / "17_0_log.err").write_text("escaip_fairchem.errors.ConfigError: n1: process 0 sees no GPU\n")
    run = look(folder, *[one for one in (job,) if one])
    assert (run.state, run.why) == ("failed", "n1: process 0 sees no GPU")


def test_a_word_of_slurms_that_is_not_known_is_passed_on(tmp_path):
    write(tmp_path, "training", job="17")
    run = look(tmp_path, says("THAWING"))
    assert (run.state, run.why) == ("running", "SLURM says THAWING")


def test_memory_that_was_counted_another_way(tmp_path):
    write(tmp_path, "training", job="17")
    assert "out of memory (ask for more with --slurm-mem)" in look(tmp_path, says("FAILED", "JobLaunchFailure")).why


def test_slurms_word_and_the_trainings_own(tmp_path):
    write(tmp_path, "training", job="17", why="a worker died")
    assert look(tmp_path, says("OUT_OF_MEMORY")).why.endswith("--slurm-mem; a worker died")
    write(tmp_path, "failed", job="17", why="loss is NaN")
    run = look(tmp_path, says("FAILED", "NonZeroExitCode"))
    assert (run.state, run.why) == ("failed", "loss is NaN")


def test_what_saved_before_its_end_has_stopped(tmp_path):
    write(tmp_path, "stopped", job="17", why="saved at step 40")
    run = look(tmp_path, says("TIMEOUT"))
    assert (run.state, run.why) == ("stopped", "time limit; saved at step 40")


@pytest.mark.parametrize("slurm", ["COMPLETED", "RUNNING", "COMPLETING", "CANCELLED", "FAILED", None])
def test_finished_is_finished(tmp_path, slurm):
    write(tmp_path, "finished", job="17", total_steps=100, step=100, seconds_per_step=1.0)
    write(tmp_path / "same_job", "training", job="17")  # so that SLURM is asked about it
    jobs = {"17": says(slurm)} if slurm else {}
    run, _ = read_states([tmp_path, tmp_path / "same_job"], lambda names: jobs)
    assert (run.state, run.why, run.seconds_left) == ("finished", "", None)


@pytest.mark.parametrize("slurm", ["RUNNING", "COMPLETING"])
def test_a_failure_whose_job_has_not_ended_may_be_queued_again(tmp_path, slurm):
    """Its node may have failed, which SLURM finds out later; to submit it anew would make two jobs of it."""
    write(tmp_path, "failed", job="17", why="process 1 has gone")
    run = look(tmp_path, says(slurm))
    assert (run.state, run.why) == ("running", "it has failed, and its job is about to end: process 1 has gone")


@pytest.mark.parametrize("slurm", ["COMPLETED", "FAILED", None])
def test_failed_is_failed(tmp_path, slurm):
    write(tmp_path, "failed", job="17", why="loss is NaN")
    run = look(tmp_path, *([says(slurm)] if slurm else []))
    assert (run.state, run.why) == ("failed", "loss is NaN")


def test_completed_without_the_last_word(tmp_path):
    write(tmp_path, "training", job="17")
    run = look(tmp_path, says("COMPLETED"))
    assert run.state == "failed"
    assert LATE in run.why
    write(tmp_path / "silent", job="17")
    assert look(tmp_path / "silent", says("COMPLETED")).state == "finished"


# More than one job


@pytest.mark.parametrize(
    ("before", "state", "why"),
    [
        ("finished", "queued", "submitted again: Priority"),
        ("failed", "queued", "submitted again: Priority"),
        ("stopped", "preempted", "queued again: Priority"),
    ],
)
def test_a_run_that_was_submitted_again(tmp_path, before, state, why):
    write(tmp_path, before, job="17", updated=EARLY)
    submit(tmp_path, "18", LATE)
    run = look(tmp_path, says("COMPLETED"), says("PENDING", "Priority", "18"))
    assert (run.state, run.why, run.job) == (state, why, "18")
    run = look(tmp_path, says("COMPLETED"), says("OUT_OF_MEMORY", "", "18"))
    assert (run.state, run.job) == ("failed", "18")
    assert "--slurm-mem" in run.why


def test_a_late_word_of_the_earlier_job_does_not_hide_the_next_one(tmp_path):
    write(tmp_path, "stopped", job="17", updated=LATE)
    submit(tmp_path, "18", EARLY)
    run = look(tmp_path, says("COMPLETED"), says("RUNNING", "", "18"))
    assert (run.state, run.job, run.log) == ("running", "18", Path("/l/18.out"))


def test_a_training_by_hand_after_a_job_is_not_judged_by_the_job(tmp_path):
    write(tmp_path, "finished", updated=LATE, log="/by/hand.out")
    submit(tmp_path, "17", EARLY)
    run = look(tmp_path, says("FAILED"))
    assert (run.state, run.job, run.log) == ("finished", None, Path("/by/hand.out"))


def test_slurm_is_asked_once_and_not_about_what_is_finished(tmp_path):
    write(tmp_path / "a", "finished", job="1")
    write(tmp_path / "b", "training", job="2_0")
    write(tmp_path / "c", job="2_1")
    write(tmp_path / "d", "stopped")
    asked = []

    def query(names):
        asked.append(sorted(names))
        return {}

    read_states([tmp_path / name for name in "abcd"], query)
    assert asked == [["2_0", "2_1"]]
    read_states([tmp_path / "a", tmp_path / "d"], query)
    assert len(asked) == 1


# Without SLURM


@pytest.mark.parametrize("job", [None, "17"])
@pytest.mark.parametrize("reachable", [True, False])
@pytest.mark.parametrize("written", LIVE)
def test_the_lock_tells_whether_it_runs(tmp_path, written, reachable, job):
    write(tmp_path, written, job=job)
    lock = RunFolderLock(tmp_path)
    lock.acquire()
    assert look(tmp_path, reachable=reachable).state == "running"
    lock.release()
    run = look(tmp_path, reachable=reachable)
    assert run.state == "failed"
    assert (
        run.why == f"no sign of life since {LATE} (process 4 on elsewhere): killed, out of memory, or its node failed"
    )


def test_a_killed_process_has_failed(tmp_path):
    code = (
        "import sys, time; from escaip_fairchem.plugin.run_folder import RunFolderLock; "
        "lock = RunFolderLock(sys.argv[1]); lock.acquire(); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        write(tmp_path, "training", host=socket.gethostname(), pid=process.pid)
        assert look(tmp_path).state == "running"
        process.send_signal(signal.SIGKILL)
    assert look(tmp_path).state == "failed"


def test_where_there_are_no_locks_the_process_is_looked_up(tmp_path, monkeypatch):
    monkeypatch.setattr(states, "lock_is_held", lambda folder: None)
    here = socket.gethostname()
    write(tmp_path, "training", host=here, pid=os.getpid())
    assert look(tmp_path).state == "running"
    with subprocess.Popen(["/bin/true"]) as process:
        pass
    write(tmp_path, "training", host=here, pid=process.pid)
    assert look(tmp_path).state == "failed"
    write(tmp_path, "training", host="elsewhere", pid=os.getpid())
    run = look(tmp_path)
    assert run.state == "unknown"
    assert LATE in run.why


@pytest.mark.parametrize("written", ["stopped", "failed"])
@pytest.mark.parametrize("reachable", [True, False])
def test_a_last_word_counts_without_slurm(tmp_path, written, reachable):
    write(tmp_path, written, job="17", why="saved")
    run = look(tmp_path, reachable=reachable)
    assert (run.state, run.why) == (written, "saved")


def test_submitted_and_nothing_else_is_known(tmp_path):
    write(tmp_path, job="17")
    run = look(tmp_path, reachable=False)
    assert (run.state, run.why) == ("queued", "SLURM cannot be asked")
    run = look(tmp_path)  # it answers, and knows of no such job: nothing is queued
    assert run.state == "failed"
    assert "no longer knows job 17" in run.why
    lock = RunFolderLock(tmp_path)
    lock.acquire()
    assert look(tmp_path, reachable=False).state == "running"
    lock.release()


def test_looking_at_the_lock_changes_nothing(tmp_path):
    assert lock_is_held(tmp_path) is False
    assert list(tmp_path.iterdir()) == []
    path = tmp_path / states.LOCK_NAME
    path.write_text("who holds it\n")
    before = path.stat()
    assert lock_is_held(tmp_path) is False
    assert path.read_text() == "who holds it\n"
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    lock = RunFolderLock(tmp_path)
    lock.acquire()  # nobody else holds it now
    held = path.read_text()
    assert lock_is_held(tmp_path) is True
    assert path.read_text() == held
    lock.release()


def test_the_lock_is_the_one_that_trainings_take():
    assert states.LOCK_NAME == run_folder.LOCK_NAME


# What is known and what is not


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ({"total_steps": 100, "step": 40, "seconds_per_step": 0.5}, 30.0),
        ({"total_steps": 100, "step": 120, "seconds_per_step": 0.5}, 0.0),
        ({"total_steps": 0, "step": 40, "seconds_per_step": 0.5}, None),
        ({"total_steps": 100, "step": 40}, None),
    ],
)
def test_time_left(tmp_path, values, seconds):
    write(tmp_path, "stopped", **values)
    assert look(tmp_path).seconds_left == seconds


def test_a_folder_of_an_earlier_version_and_a_damaged_record_are_unknown(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/checkpoint.pt").touch()
    write(tmp_path / "damaged", "training")
    (tmp_path / "damaged/status.json").write_text("{")
    write(tmp_path / "good", "finished")
    found = read_states(find_runs([tmp_path]), lambda names: {})
    assert {run.run: run.state for run in found} == {"old": "unknown", "damaged": "unknown", "good": "finished"}
    assert "status.json: cannot be read" in next(run.why for run in found if run.run == "damaged")


# Which folders are runs


def test_runs_are_found_from_every_place(tmp_path, monkeypatch):
    for name in ("b", "a"):
        write(tmp_path / "checkpoints" / name, "training")
    submit(tmp_path / "checkpoints/c", "17")
    (tmp_path / "checkpoints/d").mkdir()
    (tmp_path / "checkpoints/d/checkpoint.pt").touch()
    (tmp_path / "checkpoints/no_run").mkdir()
    (tmp_path / "checkpoints/file").touch()
    everything = [tmp_path / "checkpoints" / name for name in "abcd"]
    assert find_runs([tmp_path]) == everything
    assert find_runs([tmp_path / "checkpoints"]) == everything
    assert find_runs([tmp_path / "checkpoints/b"]) == everything[1:2]
    assert find_runs([tmp_path / "checkpoints/b", tmp_path]) == [everything[1], everything[0], *everything[2:]]
    monkeypatch.chdir(tmp_path / "checkpoints/a")
    assert find_runs([Path()]) == everything[:1]
    assert find_runs([Path("..")]) == everything


def test_no_runs(tmp_path):
    with pytest.raises(RunFolderError, match=r"no run is there; give the --run-dir .*checkpoint\.pt"):
        find_runs([tmp_path])
    with pytest.raises(RunFolderError, match="missing: no such folder"):
        find_runs([tmp_path / "missing"])
    write(tmp_path / "a", "training")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFolderError, match="empty: no run"):
        find_runs([tmp_path / "a", tmp_path / "empty"])
