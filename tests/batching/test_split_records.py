"""Records that are trained turn by turn: every turn once an epoch, the same order at every world, stopped or not."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from helpers.template_forms import FORMS, PLAIN, chat, make_tokenizer, rounds
from kd.batching.fit import FitPolicy
from kd.batching.steps import PackingPolicy, Split, StepBatches, StepShape, list_samples, measure
from kd.records.checks import DataError
from kd.records.record import Record
from kd.rendering.encode import encode_sequences

POLICY = FitPolicy(400)


class Listed(list):
    spool = None

    def size_hint(self, index: int) -> int:
        return sum(len(message["content"]) for message in self[index].messages)

    def fingerprint(self) -> str:
        return "listed"

    def place(self, index: int) -> str:
        return f"listed:{index + 1}"


def source() -> Listed:
    records = [rounds(1 + at % 3) for at in range(7)] + [chat("Hi", f"Hello {at}") for at in range(5)]
    return Listed(Record(f"r{at}", record.messages, record.tools) for at, record in enumerate(records))


def loaders(tokenizer, records, world, *, packed=False, policy=POLICY, micro=2, keep=True):
    shares = [measure(records, tokenizer, policy, rank=rank, world_size=world) for rank in range(world)]
    lengths = sum(share.lengths for share in shares).tolist()
    several = {index: tokens for share in shares for index, tokens in share.several.items()}
    places, lengths = list_samples(lengths, several)
    return [
        StepBatches(
            records,
            tokenizer,
            policy,
            StepShape(micro, 1, rank, world),
            seed=3,
            packing=PackingPolicy(lengths, share.kept if keep else None) if packed else None,
            split=Split(places, share.kept if keep else None),
        )
        for rank, share in enumerate(shares)
    ]


def names(ranks, number):
    steps = zip(*(islice(loader, number) for loader in ranks))
    return [[name for step in ranks_ for micro in step for name in micro.record_ids] for ranks_ in steps]


@pytest.mark.parametrize("packed", [False, True])
def test_every_turn_is_trained_once_an_epoch_and_alike_at_every_world(packed):
    tokenizer, records = make_tokenizer(FORMS["block in the last"]), source()
    every = [encoded.record_id for record in records for encoded in encode_sequences(record, tokenizer)]
    assert len(every) == 2 * 13 + 5 and "r1#3" in every and "r7" in every
    number = 40 if packed else 24
    flat = [name for step in names(loaders(tokenizer, records, 1, packed=packed, micro=4), number) for name in step]
    assert sorted(flat[: len(every)]) == sorted(every) and flat[31:62] != flat[:31]
    other = [name for step in names(loaders(tokenizer, records, 2, packed=packed), number) for name in step]
    assert other == flat
    again = names(loaders(tokenizer, records, 1, packed=packed, micro=4, keep=False), number)
    assert [name for step in again for name in step] == flat


@pytest.mark.parametrize("packed", [False, True])
def test_stopped_anywhere_it_resumes_with_the_next_turn(packed):
    tokenizer, records = make_tokenizer(FORMS["block in the last"]), source()
    (loader,) = loaders(tokenizer, records, 1, packed=packed, micro=4)
    whole = names([loader], 20)
    for stop in (1, 3, 9):
        (first,) = loaders(tokenizer, records, 1, packed=packed, micro=4)
        assert names([first], stop) == whole[:stop]
        ranks = loaders(tokenizer, records, 2, packed=packed)
        for rank in ranks:
            rank.load_state_dict(first.state_dict())
        assert names(ranks, 20 - stop) == whole[stop:]


def test_records_that_are_whole_have_the_order_and_bits_of_a_source_that_is_not_split():
    tokenizer, records = make_tokenizer(PLAIN), source()
    plain = StepBatches(records, tokenizer, FitPolicy(400), StepShape(2), seed=3)
    (split,) = loaders(tokenizer, records, 1)
    for (one,), (two,) in zip(islice(plain, 15), islice(split, 15)):
        assert one.record_ids == two.record_ids and one.keys == two.keys
        assert all(torch.equal(a, b) for a, b in zip(one, two) if isinstance(a, torch.Tensor))


def test_the_odd_record_of_a_template_that_appends_has_its_turns_in_its_place():
    tokenizer = make_tokenizer(PLAIN)
    records = Listed([chat("Hi", "\n\n\nHello", "So", "Yes"), chat("Hi", "Hello", "So", "Yes")])
    ((micro,),) = islice(StepBatches(records, tokenizer, FitPolicy(400), StepShape(2)), 1)
    assert sorted(micro.record_ids) == ["r", "r#1", "r#3"]


def test_a_turn_that_is_too_long_is_left_out_alone_and_a_refused_record_once():
    tokenizer, records = make_tokenizer(FORMS["block in the last"]), source()
    longest = max(len(e.input_ids) for record in records for e in encode_sequences(record, tokenizer))
    bad = Record("bad", [{"role": "user", "content": "so"}, {"role": "assistant", "content": "half \ud83d"}])
    records.append(bad)
    with pytest.raises(DataError, match="bad"):
        loaders(tokenizer, records, 1)
    policy = FitPolicy(longest - 1, refuse=True)
    (loader,) = loaders(tokenizer, records, 1, policy=policy)
    seen = [micro for (micro,) in islice(loader, 16)]
    assert sorted(name for micro in seen for name in micro.too_long) == ["r2#11", "r5#11"]
    assert sum(len(micro.refused) for micro in seen) == 1 and loader.num_samples == 2 * 13 + 5 + 1
