"""SIGUSR1 to any rank saves a checkpoint after a step, and training goes on; waiting for data is counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch

from helpers.jobs import plain_environment
from helpers.scripted_training import EmptySteps, KeptLog, ScriptedEngine, configure
from kd.training.engine import SUMS, StepReport
from kd.training.stopping import StopRequest, deaf_to_saves
from kd.training.tally import tally_step
from kd.training.trainer import Trainer


class Ranks:
    """Two ranks, of which the other asks for nothing, or for what `asks` says."""

    rank, world_size = 0, 2

    def __init__(self, asks: torch.Tensor | None = None):
        self._asks = asks

    def sum(self, values):
        return values if self._asks is None else values + self._asks

    def gather(self, value):
        return [value, value]


class Engine(ScriptedEngine):
    """Sends this process a signal in some steps."""

    def __init__(self, signals: dict[int, int]):
        super().__init__()
        self._signals = signals

    def take(self, step, refuses):
        if step in self._signals:
            os.kill(os.getpid(), self._signals[step])
        return StepReport(torch.zeros(len(SUMS)), False, (), torch.zeros(5))


class Saver:
    def __init__(self):
        self.steps = []

    def load(self):
        return None

    def save(self, step, state):
        self.steps.append(step)


def test_the_step_after_the_signal_is_saved_and_the_run_ends_as_ever(tmp_path):
    config, log, saver = configure(tmp_path, 5), KeptLog(), Saver()
    engine, curriculum = Engine({1: signal.SIGUSR1}), EmptySteps(config, Ranks(), seconds=0.02)
    before = signal.getsignal(signal.SIGUSR1)
    trainer = Trainer(config, engine, None, curriculum, log, checkpoints=saver)
    with pytest.raises(Exception, match="nothing was trained"):  # there are no tokens in these steps
        trainer.run()
    assert saver.steps == [3, 5]
    assert [said for said in log.said if "SIGUSR1" in said] == ["step 3: saved, as SIGUSR1 asked; training goes on"]
    assert 0.5 < log.lines[-1]["data_wait"] <= 1
    assert signal.getsignal(signal.SIGUSR1) == before


def test_one_rank_that_is_asked_has_all_save():
    asks = torch.zeros(4 + 2 + 4 + 3, dtype=torch.float64)
    assert not tally_step([], Ranks(asks), signalled=False, over_budget=False).saves
    asks[-1] = 1
    tally = tally_step([], Ranks(asks), signalled=False, over_budget=False)
    assert tally.saves and tally.stopped is None


def test_to_save_is_not_to_stop_and_is_asked_once():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not stop.is_asked() and stop.take_save() and not stop.take_save()


def test_before_the_first_step_and_after_the_last_it_ends_no_process():
    before = signal.getsignal(signal.SIGUSR1)
    with deaf_to_saves():
        os.kill(os.getpid(), signal.SIGUSR1)
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.take_save()
        os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_request_that_comes_while_the_process_ends_changes_nothing():
    program = (
        "import atexit, os, signal\nfrom kd.distributed.exit import leave\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGUSR1)\nleave(0)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], env=plain_environment(), timeout=60).returncode == 0
