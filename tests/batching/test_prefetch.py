"""A look at the next step changes neither the data's state nor when an error of it is raised."""

from __future__ import annotations

import pytest

from kd.batching.fit import FitPolicy
from kd.batching.prefetch import Ahead
from kd.batching.steps import StepBatches, StepShape
from kd.records.checks import DataError
from kd.sources.demo.source import DemoSource


class Failing:
    """A demo source whose record of one index cannot be read."""

    def __init__(self, bad: int):
        self._records, self._bad = DemoSource(12, 1, {"chat": 1.0}), bad

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        if index == self._bad:
            raise DataError(f"record {index} is gone")
        return self._records[index]

    def place(self, index):
        return f"here:{index + 1}"

    def size_hint(self, index):
        return self._records.size_hint(index)

    def fingerprint(self):
        return self._records.fingerprint()


def batches(tokenizer, source=None, **options):
    return StepBatches(
        source or DemoSource(12, 1, {"chat": 1.0}), tokenizer, FitPolicy(200), StepShape(2), seed=3, **options
    )


def ids(micro_batches):
    return [micro.record_ids for micro in micro_batches]


def test_the_state_is_that_of_the_steps_taken(tokenizer):
    plain = batches(tokenizer)
    expected = [(ids(step), plain.state_dict()) for step, _ in zip(plain, range(8))]
    ahead = Ahead(batches(tokenizer))
    assert ahead.following == []
    for number, (names, state) in enumerate(expected):
        taken, of = ahead.take()
        assert (ids(taken), of) == (names, state) and ahead.following == []
        if number % 3:  # a step may be looked at or not
            ahead.look()
            assert (
                ids(ahead.following)
                == ids(ahead.following)
                == (expected[number + 1][0] if number < 7 else ids(ahead.following))
            )
    ahead.close()
    resumed = batches(tokenizer)
    resumed.load_state_dict(expected[4][1])
    assert ids(Ahead(resumed).take()[0]) == expected[5][0]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_error_of_the_next_step_waits_for_its_turn(tokenizer, workers):
    order = [name for step, _ in zip(batches(tokenizer), range(6)) for micro in step for name in micro.record_ids]
    source = DemoSource(12, 1, {"chat": 1.0})
    bad = next(i for i in range(12) if source[i].id == order[4])
    ahead = Ahead(batches(tokenizer, Failing(bad), workers=workers))
    for _ in range(2):
        ahead.take()
        ahead.look()
    assert ahead.following == []
    with pytest.raises(DataError, match=f"record {bad} is gone"):
        ahead.take()
