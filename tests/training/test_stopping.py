"""Requests to stop: signals, a second Ctrl-C, and a launcher that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from helpers.jobs import REPOSITORY
from kd.training.stopping import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.is_asked()
        os.kill(os.getpid(), number)
        assert stop.is_asked()
    assert signal.getsignal(number) == before


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
