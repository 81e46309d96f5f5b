"""Steps and micro-batches: the same records at every world size, none twice in an epoch, the shift made once."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from kd.data import demo
from kd.data.batches import DemoSource, FileSource, StepBatches, collate, count_rows
from kd.data.records import DataError, Record, write_records
from kd.data.render import Encoded
from kd.data.spans import ARGS, INTEGRATION, TOOL, TRUTH

MIX = {"single": 1.0, "chat": 1.0, "echo_short": 1.0}


def steps(tokenizer, source, number, *, world=1, rank=0, micro=1, accumulation=1, seed=0, max_length=2000):
    batches = StepBatches(source, tokenizer, max_length=max_length, micro_batch_size=micro, gradient_accumulation=accumulation,
                          rank=rank, world_size=world, seed=seed)
    return list(islice(batches, number)), batches


def ids(step):
    return [record for micro in step for record in micro.record_ids]


def test_a_step_holds_the_same_records_however_it_is_split(tokenizer):
    source, seen = DemoSource(30, 1, MIX), []
    for world, micro, accumulation in [(1, 1, 4), (1, 4, 1), (2, 1, 2), (2, 2, 1), (4, 1, 1)]:
        ranks = [steps(tokenizer, source, 18, world=world, rank=r, micro=micro, accumulation=accumulation)[0] for r in range(world)]
        assert all(len(step) == accumulation for rank in ranks for step in rank)
        seen.append([sorted(r for rank in ranks for r in ids(rank[i])) for i in range(18)])
    assert all(order == seen[0] for order in seen)


def test_an_epoch_has_every_record_once_and_the_next_another_order(tokenizer):
    source = DemoSource(30, 1, MIX)
    made, _ = steps(tokenizer, source, 16, accumulation=4)  # 8 steps of 4 (the last of 2) are an epoch
    first, second = ([r for step in made[at:at + 8] for r in ids(step)] for at in (0, 8))
    assert sorted(first) == sorted(second) == sorted(source[i].id for i in range(30)) and first != second
    again, _ = steps(tokenizer, source, 16, accumulation=4)
    assert [ids(a) for a in again] == [ids(m) for m in made]
    other, _ = steps(tokenizer, source, 16, accumulation=4, seed=1)
    assert [ids(o) for o in other] != [ids(m) for m in made]


def test_a_step_has_records_of_like_length(tokenizer):
    made, _ = steps(tokenizer, DemoSource(128, 1, {"single": 1.0, "chat": 1.0}), 16, micro=8)
    padding = sum(int((1 - micro.attention_mask).sum()) for step in made for micro in step)
    tokens = sum(micro.attention_mask.numel() for step in made for micro in step)
    assert padding < 0.2 * tokens  # unsorted it is about half


def test_a_rank_without_records_has_empty_micro_batches(tokenizer):
    source = DemoSource(1, 1, {"chat": 1.0})
    mine, others = (steps(tokenizer, source, 2, world=2, rank=r, accumulation=2)[0] for r in (0, 1))
    assert [len(ids(step)) for step in mine] == [1, 1] and all(len(step) == 2 for step in others)
    for micro in [others[0][0], others[0][1], mine[0][1]]:
        assert micro.input_ids.shape == (1, 1) and micro.attention_mask.tolist() == [[1]]
        assert micro.rows.shape == micro.labels.shape == micro.bits.shape == micro.weight.shape == (0,)
        assert micro.rows.dtype == torch.int64


def test_records_that_are_too_long_are_left_out_and_counted_once(tokenizer):
    long = Record("long", [{"role": "user", "content": "go " * 400}, {"role": "assistant", "content": "ok"}])
    source = [demo.record("chat", 1), long, demo.record("chat", 2)]

    class Listed:
        __len__, __getitem__ = source.__len__, source.__getitem__

        def size_hint(self, index):
            return index

    ranks = [steps(tokenizer, Listed(), 4, world=2, rank=r, max_length=200) for r in (0, 1)]
    assert "long" not in [r for made, _ in ranks for step in made for r in ids(step)]
    assert sum(batches.num_too_long for _, batches in ranks) == 1  # two epochs were seen


def test_no_record_is_an_error():
    class Empty:
        def __len__(self):
            return 0

    with pytest.raises(DataError, match="no record to train on"):
        StepBatches(Empty(), None, max_length=1, micro_batch_size=1, gradient_accumulation=1)


def test_files_and_the_demo_corpus_give_the_same_records(tmp_path, tokenizer):
    made = [DemoSource(20, 7, MIX)[i] for i in range(20)]
    for name, part in (("a", made[:8]), ("b", made[8:])):
        write_records(tmp_path / f"{name}.jsonl", part)
    source = FileSource([str(tmp_path / "*.jsonl")])
    assert [source[i] for i in range(len(source))] == made
    assert sorted(ids(steps(tokenizer, source, 1, accumulation=20)[0][0])) == sorted(r.id for r in made)


def test_collate_by_hand():
    """Two records of 4 and 2 tokens; a bit at position t is the row t - 1, and position 0 cannot be predicted."""
    micro = collate([Encoded("a", [5, 6, 7, 8], [TRUTH, 0, TRUTH | TOOL, TRUTH], 0.5), Encoded("b", [9, 3], [0, TRUTH | ARGS | INTEGRATION], 2.0)], 1)
    assert micro.input_ids.tolist() == [[5, 6, 7, 8], [9, 3, 1, 1]]
    assert micro.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert micro.rows.tolist() == [1, 2, 4] and micro.labels.tolist() == [7, 8, 3]
    assert micro.bits.tolist() == [TRUTH | TOOL, TRUTH, TRUTH | ARGS | INTEGRATION]
    assert micro.weight.tolist() == [0.5, 0.5, 2.0] and micro.record.tolist() == [0, 0, 1] and micro.record_ids == ("a", "b")
    assert count_rows([micro, collate([], 1), micro]).tolist() == [6.0, 1.0, 4.0, 4.0]


def test_padding_does_not_change_what_is_trained(tokenizer):
    record = DemoSource(1, 1, {"single": 1.0})[0]
    alone = steps(tokenizer, DemoSource(1, 1, {"single": 1.0}), 1)[0][0][0]
    from kd.data.render import encode

    padded = collate([encode(record, tokenizer), Encoded("x", [1] * 900, [0] * 900, 1.0)], 0)
    assert padded.labels.tolist() == alone.labels.tolist() and padded.bits.tolist() == alone.bits.tolist()
    assert padded.rows.tolist() == alone.rows.tolist()  # it is the first of the batch
    assert (padded.input_ids[0][padded.attention_mask[0] == 0] == 0).all()


def test_widths_are_multiples_of_16_up_to_max_length():
    def width(num_tokens, max_length):
        return collate([Encoded("a", [5] * num_tokens, [TRUTH] * num_tokens, 1.0)], 0, max_length).input_ids.shape[1]

    assert [width(n, 40) for n in (1, 16, 17, 33, 40)] == [16, 16, 32, 40, 40]
    assert collate([], 0, 40).input_ids.shape == (1, 1)
