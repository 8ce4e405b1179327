"""Why a job failed, as its log says."""

from __future__ import annotations

from pathlib import Path

import pytest

from escaip_fairchem.runs.logs import ATTEMPT, last_error

TRACEBACK = """UserWarning: nothing to worry about
Traceback (most recent call last):
  File "x.py", line 1, in <module>
    raise ValueError("two: words")
{}
srun: error: node1: task 0: Exited with exit code 1
"""


def write(folder: Path, *texts: str, job: str = "17_3") -> Path:
    for rank, text in enumerate(texts):
        (folder / f"{job}_{rank}_log.err").write_text(text)
    return folder / f"{job}_0_log.out"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ValueError: two: words", "ValueError: two: words"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", "OutOfMemoryError: CUDA out of memory. Tried"),
        ("escaip_fairchem.errors.ConfigError: n1: process 0 sees no GPU", "n1: process 0 sees no GPU"),
        ("fairchem (process 1): error: data/x.lmdb: no such file", "data/x.lmdb: no such file"),
        ("KeyboardInterrupt", "KeyboardInterrupt"),
        ("AssertionError", "AssertionError"),
        ("3: KeyError: 'labelled by srun'", "KeyError: 'labelled by srun'"),
        ("the error: is not one", ""),
        ("  ValueError: quoted", ""),
    ],
)
def test_the_last_line_of_a_traceback(tmp_path: Path, line: str, words: str):
    assert last_error(write(tmp_path, TRACEBACK.format(line))) == words


def test_the_last_error_of_the_first_process_that_has_one(tmp_path: Path):
    texts = ["", TRACEBACK.format("KeyError: 'first'") + TRACEBACK.format("KeyError: 'second'"), "OSError: other\n"]
    assert last_error(write(tmp_path, *texts)) == "KeyError: 'second'"
    ranks = [""] * 2 + ["OSError: 2\n"] + [""] * 7 + ["OSError: 10\n"]
    assert last_error(write(tmp_path, *ranks, job="18")) == "OSError: 2"


SRUN = """srun: error: node1: tasks 0-1: Terminated
srun: error: node2: task 2: Exited with exit code 1
srun: error: node2: task 3: Killed
srun: error: node2: task 4: Out Of Memory
"""
GLOO = "RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer\n"
STORE = "torch.distributed.DistNetworkError: failed to recv, got 0 bytes\n"


def test_a_reason_comes_before_its_consequences(tmp_path: Path):
    """Whichever process says it: for the user, of Python, of srun, of connections."""
    own = "escaip_fairchem.errors.ConfigError: node2: process 2 sees no GPU\n"
    texts = [GLOO + SRUN, "KeyError: 'x'\n", STORE, own]
    assert last_error(write(tmp_path, *texts)) == "node2: process 2 sees no GPU"
    assert last_error(write(tmp_path, *texts[:3], "")) == "KeyError: 'x'"
    assert last_error(write(tmp_path, texts[0], "", STORE, "")) == "task 3 on node2: Killed"
    assert last_error(write(tmp_path, "", "", STORE, GLOO)) == "DistNetworkError: failed to recv, got 0 bytes"
    assert last_error(write(tmp_path, SRUN.partition("srun: error: node2: task 3")[0], "", "", "")) == ""


def test_earlier_attempts_of_a_job_do_not_count(tmp_path: Path):
    """A job that is queued again writes on in the same files."""
    log = write(
        tmp_path, f"{ATTEMPT}\nKeyError: 'first'\n{SRUN}{ATTEMPT}\n", f"{ATTEMPT}\n{GLOO}{ATTEMPT}\nall is well\n"
    )
    assert last_error(log) == ""
    with log.with_suffix(".err").open("a") as stream:
        stream.write("srun: error: node1: task 0: Killed\n")
    assert last_error(log) == "task 0 on node1: Killed"


def test_long_logs_and_long_words(tmp_path: Path):
    """Only the end is read, which may begin within a letter."""
    long = "ä" * 100_000 + "\nValueError: " + "x" * 1000 + "\n"
    assert last_error(write(tmp_path, long)) == "ValueError: " + "x" * 388 + "…"
    assert last_error(write(tmp_path, "ValueError: early\n" + "ä\n" * 100_000)) == ""


def test_nothing_to_be_read(tmp_path: Path):
    assert last_error(tmp_path / "17_0_log.out") == ""
    assert last_error(tmp_path / "nowhere" / "17_0_log.out") == ""
    assert last_error(tmp_path / "my.log") == ""
    (tmp_path / "19_0_log.err").mkdir()
    assert last_error(tmp_path / "19_0_log.out") == ""
