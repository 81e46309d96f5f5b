"""A stage of which no record fits is refused before anything is loaded."""

from __future__ import annotations

import pytest

from kd.batching.check_lengths import check_lengths, describe_step
from kd.config.schema import Data, DemoCorpus, Stage, Training
from kd.records.checks import DataError
from kd.records.record import Record
from kd.rendering.encode import encode


class Records(list):
    """Records as a source."""

    asked = 0

    def size_hint(self, index: int) -> int:
        self.asked += 1
        return len(self[index].messages[0]["content"])


def record(words: int) -> Record:
    return Record(
        str(words), [{"role": "user", "content": "say it " * words}, {"role": "assistant", "content": "yes it is"}]
    )


def data(max_length: int, **settings) -> Data:
    stage = Stage(name="a", mix={"echo": 1}, max_length=max_length)
    return Data(stages=(stage,), demo=DemoCorpus(), **settings)


def test_one_short_record_among_long_ones_is_enough(tokenizer):
    source = Records([record(200)] * 40 + [record(1)])
    length = len(encode(source[-1], tokenizer).input_ids)
    check_lengths(data(length), [source], tokenizer)
    with pytest.raises(DataError) as caught:
        check_lengths(data(length - 1), [source], tokenizer)
    said = str(caught.value)
    assert said.startswith(f"data.stages.0.max_length: {length - 1} tokens have no room for any of the 41 records")
    assert said.endswith(f"(41 were looked at); the shortest has {length} tokens: raise it, or cut the records")


def test_where_the_first_records_fit_no_length_is_asked_for(tokenizer):
    source = Records([record(1)] * 1000)
    check_lengths(data(2000), [source], tokenizer)
    assert source.asked == 0


def test_a_record_that_is_cut_counts_only_with_a_whole_turn(tokenizer):
    source = Records([record(200)] * 3)
    with pytest.raises(DataError):
        check_lengths(data(60, too_long="truncate"), [source], tokenizer)


def test_fewer_records_than_a_step_takes_are_told():
    source = Records([record(1)] * 10)
    assert not list(describe_step(data(99), [source], Training(steps=1, micro_batch_size=5), 2))
    (said,) = describe_step(data(99), [source], Training(steps=1, micro_batch_size=6), 2)
    assert said.startswith("stage a: a step takes 12 records and there are 10, so that each step trains on all of them")
