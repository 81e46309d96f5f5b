"""What a step waits for, and which steps are refused for their loss."""

from __future__ import annotations

import time

import pytest
import torch

from helpers.scripted_training import EmptySteps, KeptLog, ScriptedEngine, configure
from kd.objective.terms import TERMS
from kd.training.engine import SUMS, StepReport
from kd.training.stopwatch import Stopwatch
from kd.training.trainer import Beside, Trainer, TrainingError


class Ranks:
    """Two ranks with the same sums; the other one is late by `late` seconds each time."""

    rank, world_size = 0, 2

    def __init__(self, late: float = 0.0):
        self._late = late

    def sum(self, values):
        time.sleep(self._late)
        return values * 2

    def gather(self, value):
        return [value, value]


class Engine(ScriptedEngine):
    """Losses that are told in advance."""

    def __init__(self, losses, teacher_seconds=0.0):
        super().__init__()
        self.losses, self._teacher_seconds, self.refused = losses, teacher_seconds, []

    def take(self, step, refuses):
        with self.teacher_time:
            time.sleep(self._teacher_seconds)
        sums = torch.zeros(len(SUMS))
        sums[TERMS.index("truth")] = self.losses[step] / 2  # of two ranks
        refused = refuses is not None and refuses(sums)
        self.refused += [step] * refused
        return StepReport(sums, refused, ("a record",) * refused, torch.zeros(5), refused)


def train(tmp_path, engine, *, more="", ranks=None, flops=None):
    config, log = configure(tmp_path, len(engine.losses), more), KeptLog()
    curriculum = EmptySteps(config, ranks or Ranks())
    trainer = Trainer(config, engine, None, curriculum, log, beside=Beside(flops=flops))
    try:
        trainer.run()
    except TrainingError as error:
        if "nothing was trained" not in str(error):  # there are no tokens in these steps
            raise
    return log


def test_a_loss_far_above_its_mean_is_refused_and_the_mean_follows_only_as_far_as_that(tmp_path):
    losses = [4.0] * 10 + [9.0] + [4.0] * 10 + [7.9, 9.5, 4.0, float("nan"), 1e9, 4.0, 7.0]
    log = train(tmp_path, engine := Engine(losses), more="loss_spike_factor: 2, max_skipped_fraction: 1")
    assert engine.refused == [22, 25]  # not the tenth, of which too little is known, nor the one that is no number
    assert [said for said in log.said if "step 23" in said] == [
        "step 23: the loss is over 2 times its running mean (training.loss_spike_factor), so the step is skipped on "
        "every rank; largest: rows of a record, a record"
    ]
    assert not Engine(losses).refused


def test_without_a_factor_nothing_is_asked(tmp_path):
    train(tmp_path, engine := Engine([4.0] * 30 + [1e9]))
    assert engine.refused == []


def test_a_loss_that_does_not_come_back_ends_the_run(tmp_path):
    with pytest.raises(TrainingError, match="10 steps in a row were skipped, the last one because the loss is over 5"):
        train(tmp_path, Engine([4.0] * 30 + [1e3] * 30), more="loss_spike_factor: 5")


def test_waits_for_ranks_and_teacher_are_parts_of_the_seconds(tmp_path):
    (line,) = train(tmp_path, Engine([1.0] * 4, teacher_seconds=0.06), ranks=Ranks(late=0.02)).lines
    assert 0.1 < line["rank_wait"] < 0.5 < line["teacher_wait"] < 0.9 and line["data_wait"] < 0.1
    assert line["rank_wait"] + line["teacher_wait"] <= 1 and "mfu" not in line


def test_utilisation_is_of_all_devices(tmp_path, monkeypatch):
    def tally(*args, **kwargs):
        found = kept(*args, **kwargs)
        return found._replace(num_tokens=600, num_samples=6)

    import kd.training.trainer as trainer

    kept = trainer.tally_step
    monkeypatch.setattr(trainer, "tally_step", tally)
    (line,) = train(tmp_path, Engine([1.0] * 4), more="peak_tflops: 2", flops=lambda length: 1e9 * length).lines
    assert line["mfu"] == pytest.approx(line["tokens_per_second"] * 1e9 * 100 / (2e12 * 2))


def test_a_stopwatch_adds_up_and_begins_again():
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with watch:
            time.sleep(0.01)
    assert 0.02 <= watch.take() < 0.5 and watch.take() == 0.0
