"""Choice of the best step, patience, and sharing out of a split."""

from __future__ import annotations

import json

import pytest

from kd.batching.fit import FitPolicy
from kd.sources.demo import corpus as demo
from kd.training.log import RunLog
from kd.training.validation import Best, Validator, share_out


class Scripted:
    """Measure that gives the values it was made with, one a call."""

    def __init__(self, every: int, *values: float, name: str = "truth"):
        self.every, self._values, self._name = every, iter(values), name

    def measure(self, step, terms):
        value = next(self._values)
        return {"a": {self._name: value + 1}, "b": {self._name: value - 1}}


class Alone:
    rank, world_size = 0, 1

    def sum(self, values):
        return values

    def gather(self, value):
        return [value]


class Second(Alone):
    """Rank 1 of 2, where rank 0 has one batch more."""

    rank, world_size = 1, 2

    def gather(self, value):
        num_batches, num_too_long = value
        return [(num_batches + 1, 0), value]


def walk(validator: Validator, steps: int) -> Best | None:
    best = None
    for step in range(1, steps + 1):
        best = validator.look(step, steps, None, best)
        if validator.is_out_of_patience(best):
            break
    return best


def test_the_best_step_is_exported_and_patience_ends_the_wait():
    told, exported = [], []
    measure = Scripted(2, 3.0, 2.0, 2.0, 2.5, 1.0)
    validator = Validator(
        [measure], lambda step, values: told.append(step), keep_best="truth", export=exported.append, patience=2
    )
    assert walk(validator, 20) == Best(4, 2.0, 2)  # no better twice: equal, then worse
    assert told == [2, 4, 6, 8] and exported == [2, 4]


def test_a_metric_of_which_more_is_better_and_one_that_is_not_chosen_by():
    other = Scripted(1, 9, 9, 9, 9, name="loss")
    validator = Validator(
        [other, Scripted(2, 0.1, 0.4, name="exact")], lambda *_: None, keep_best="exact", lower_is_better=False
    )
    assert walk(validator, 4) == Best(4, pytest.approx(0.4), 0)
    assert walk(Validator([Scripted(1, 1, 2)], lambda *_: None), 2) is None


def test_a_value_that_is_not_a_number_is_never_better():
    validator = Validator([Scripted(1, 2.0, float("nan"), 1.0)], lambda *_: None, keep_best="truth")
    assert walk(validator, 3) == Best(3, 1.0, 0)
    for lower in (True, False):
        measure = Scripted(1, float("nan"), float("nan"), 2.0, float("nan"))
        validator = Validator([measure], lambda *_: None, keep_best="truth", lower_is_better=lower)
        assert walk(validator, 4) == Best(3, 2.0, 1)  # the first one no more than a later one


def test_the_last_step_is_measured_whatever_the_pace():
    told = []
    walk(Validator([Scripted(4, 1, 2)], lambda step, values: told.append(step)), 7)
    assert told == [4, 7]


def test_a_split_is_shared_out_in_batches_of_like_length(tokenizer):
    records = list(demo.records("validation", 7, seed=2))
    split = share_out(records, tokenizer, FitPolicy(4096), 2, Alone())
    widths = [micro.input_ids.shape[1] for micro in split.micro_batches]
    assert len(widths) == 4 and widths == sorted(widths) and split.num_too_long == 0
    assert sorted(name for micro in split.micro_batches for name in micro.record_ids) == sorted(r.id for r in records)
    assert split.counts[0] == sum(len(micro.rows) for micro in split.micro_batches)
    short = share_out(records, tokenizer, FitPolicy(widths[1]), 2, Alone())
    assert short.num_too_long == 7 - sum(len(micro.record_ids) for micro in short.micro_batches) > 0


def test_every_rank_makes_as_many_forwards(tokenizer):
    split = share_out(list(demo.records("validation", 5, seed=2)), tokenizer, FitPolicy(4096), 2, Second())
    assert [len(micro.record_ids) for micro in split.micro_batches] == [2, 0]


def test_measurements_past_the_step_that_is_resumed_are_written_again(tmp_path, capsys):
    log = RunLog(tmp_path, 10)
    for step in (2, 4):
        log.validation(step, {"a": {"truth": 1.0 / step}, "b": {"truth": float("inf")}})
    log.close()
    again = RunLog(tmp_path, 10)
    again.resume_at(2)
    again.validation(4, {"a": {"truth": 0.5}})
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert [(line["step"], line["split"], line["truth"]) for line in lines] == [
        (2, "a", 0.5),
        (2, "b", None),
        (4, "a", 0.5),
    ]
    assert "truth 0.2500" in capsys.readouterr().out
