"""Failures of a job: told once, by rank 0 or with the rank's name, and no rank waits for ever."""

from __future__ import annotations

import os
import time

import pytest

from helpers.jobs import Job, free_port
from kd.distributed import exit
from kd.distributed.place import StartError, read_place, read_world_size

EARLY = LATE = "error: wrong on every rank: mend it\n"
ALONE = "rank 1: error: wrong here: mend it\n"
TOLD = {
    "early": [EARLY, ""],
    "early alone": ["", ALONE],
    "late": [LATE, ""],
    "late alone": ["", ALONE],
    "follows": ["error: wrong on rank 0: mend it\n", ""],
}


def start(kind: str, **environment: str) -> Job:
    return Job(["tests/distributed/failing_job.py", kind], 2, **environment)


@pytest.fixture(scope="module")
def outputs() -> dict[str, list[str]]:
    """kind -> the output of each rank, of jobs that run side by side; all must end with exit code 1."""
    jobs = {kind: start(kind) for kind in (*TOLD, "fault")}
    return {kind: job.wait(timeout=120, expect=1) for kind, job in jobs.items()}


@pytest.mark.parametrize("kind", TOLD)
def test_an_error_is_told_once_and_every_rank_ends(outputs, kind):
    assert outputs[kind] == TOLD[kind]


def test_a_fault_of_the_program_has_one_traceback(outputs):
    assert (
        "a fault of the program: report it" in outputs["fault"][0]
        and "KeyError: 'no such thing'" in outputs["fault"][0]
    )
    assert "".join(outputs["fault"]).count("Traceback") == 1


def test_a_second_job_on_a_port_is_refused_on_every_rank_and_the_first_goes_on(tmp_path):
    port, end = free_port(), tmp_path / "end"
    first = Job(["tests/distributed/failing_job.py", "first", str(end)], 2, MASTER_PORT=str(port))
    while first.running() and len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.1)
    second = start("late", MASTER_PORT=str(port)).wait(timeout=60, expect=1)
    assert f"error: port {port} of 127.0.0.1 is in use, by another job" in second[0] and "--master_port" in second[0]
    assert f"rank 1: error: port {port} of 127.0.0.1 is in use" in second[1]
    end.touch()
    assert first.wait(timeout=60) == ["", ""]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc: an integer from 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: an integer from 1"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE=9"),
        ({"RANK": "2"}, "RANK=2: an integer from 0 to 1 is needed"),
        ({"RANK": "-1"}, "RANK=-1: an integer"),
        ({"LOCAL_RANK": None}, "LOCAL_RANK: not set, though RANK is"),
        ({"LOCAL_RANK": "1.0"}, "LOCAL_RANK=1.0: an integer"),
        ({"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE=3: an integer from 1 to 2"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR: not set"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000: an integer from 1 to 65535"),
    ],
)
def test_a_variable_of_the_launcher_that_cannot_be_is_named(monkeypatch, changed, said):
    right = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (right | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"} | changed).items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    with pytest.raises(StartError, match=said):
        read_place()


def test_without_a_launcher_there_is_one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert read_place() is None and read_world_size() == 1 and "RANK" not in os.environ


class Full:
    """An output on a full disk."""

    def flush(self):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stream", [None, Full()])
def test_an_end_without_an_output_keeps_its_exit_status(monkeypatch, stream):
    ended = []
    monkeypatch.setattr(exit.atexit, "_run_exitfuncs", lambda: None)
    monkeypatch.setattr(exit.os, "_exit", ended.append)
    monkeypatch.setattr(exit.sys, "stdout", stream)
    exit.leave(3)
    assert ended == [3]
