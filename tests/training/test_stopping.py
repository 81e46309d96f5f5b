"""Requests to stop: signals, a second Ctrl-C, and a launcher that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from helpers.jobs import REPOSITORY
from kd.training.stopping import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_asks_to_stop_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.is_asked()
        os.kill(os.getpid(), number)
        assert stop.is_asked()
    assert signal.getsignal(number) == before


def test_a_terminal_that_closes_stops_nothing_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_ends_at_once():
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


RANK = """
import time
from kd.training.stopping import StopRequest
with StopRequest() as stop:
    print("ready", len(stop._launchers), flush=True)
    until = time.monotonic() + 60
    while not stop.is_asked() and time.monotonic() < until:
        time.sleep(0.05)
print("stopped" if time.monotonic() < until else "still here", flush=True)
"""
LAUNCHER = """# deepspeed
import subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1], "deepspeed"]).wait()
"""


def test_ranks_stop_when_their_launcher_was_killed_alone(tmp_path):
    """Two processes stand above the rank, as with deepspeed: the upper one alone is killed."""
    with (tmp_path / "out").open("w+") as out:
        upper = subprocess.Popen([sys.executable, "-c", LAUNCHER.replace("sys.argv[1]", repr(RANK)), "deepspeed"],
                                 cwd=REPOSITORY, stdout=out)  # fmt: skip
        until = time.monotonic() + 30
        while "ready" not in (tmp_path / "out").read_text() and time.monotonic() < until:
            time.sleep(0.1)
        assert "ready 1" in (tmp_path / "out").read_text()
        upper.kill()
        upper.wait()
        while "stopped" not in (tmp_path / "out").read_text() and time.monotonic() < until:
            time.sleep(0.1)
        assert (tmp_path / "out").read_text().endswith("stopped\n")


def test_a_program_in_a_folder_of_a_launchers_name_is_no_launcher(tmp_path):
    """As a checkout in a folder called spanwise, whose own tests run above the rank."""
    (tmp_path / "spanwise").mkdir()
    (tmp_path / "spanwise/python").symlink_to(sys.executable)
    script = f"import subprocess; subprocess.run([{sys.executable!r}, '-c', {RANK.replace('60', '0')!r}])"
    command = [str(tmp_path / "spanwise/python"), "-c", script]
    out = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120).stdout
    assert out.splitlines()[0] == "ready 0"


@pytest.mark.parametrize(
    ("command", "is_launcher"),
    [
        (["/usr/bin/python3", "/opt/bin/deepspeed", "launch/train.py"], True),
        (["/usr/bin/python3", "-u", "-m", "deepspeed.launcher.launch", "--world_info=e30="], True),
        (["python", "-m", "torch.distributed.run", "launch/train.py"], True),
        (["python", "/opt/bin/spanwise", "train"], True),
        (["/home/me/spanwise/.venv/bin/python", "-m", "pytest"], False),
        (["bash", "-c", "cd /opt/deepspeed"], False),
        ([], False),
    ],
)
def test_launchers_are_told_by_the_program_that_runs(command, is_launcher, monkeypatch):
    above = SimpleNamespace(cmdline=lambda: command)
    monkeypatch.setattr("kd.training.stopping.psutil.Process", lambda: SimpleNamespace(parents=lambda: [above]))
    assert (StopRequest()._launchers == [above]) == is_launcher
