"""Steps and micro-batches: the same records at every world size, none twice in an epoch, the shift made once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import psutil
import pytest
import torch

from kd.batching.fit import FitPolicy, truncate
from kd.batching.micro_batch import collate, count_rows
from kd.batching.steps import PackingPolicy, StepBatches, StepShape, measure
from kd.records.checks import DataError
from kd.records.files import DataFiles, write_records
from kd.records.record import Record
from kd.rendering.encode import Encoded, encode
from kd.rendering.spans import ARGS, INTEGRATION, TOOL, TRUTH
from kd.sources.demo import corpus as demo
from kd.sources.demo.source import DemoSource
from kd.sources.file_index import RecordIndex

MIX = {"single": 1.0, "chat": 1.0, "echo_short": 1.0}
POLICY = FitPolicy(2000)


def loader(tokenizer, source, *, world=1, rank=0, micro=1, accumulation=1, policy=POLICY, **options):
    return StepBatches(source, tokenizer, policy, StepShape(micro, accumulation, rank, world), **options)


def steps(tokenizer, source, number, **options):
    return list(islice(loader(tokenizer, source, **options), number))


def ids(step):
    return [record for micro in step for record in micro.record_ids]


def test_a_step_holds_the_same_records_however_it_is_split(tokenizer):
    source, seen = DemoSource(30, 1, MIX), []
    for world, micro, accumulation in [(1, 1, 4), (1, 4, 1), (2, 1, 2), (2, 2, 1), (4, 1, 1)]:
        ranks = [
            steps(tokenizer, source, 18, world=world, rank=r, micro=micro, accumulation=accumulation)
            for r in range(world)
        ]
        assert all(len(step) == accumulation for rank in ranks for step in rank)
        seen.append([sorted(r for rank in ranks for r in ids(rank[i])) for i in range(18)])
    assert all(order == seen[0] for order in seen)


def test_an_epoch_has_every_record_once_and_the_next_another_order(tokenizer):
    source = DemoSource(30, 1, MIX)
    made = steps(tokenizer, source, 16, accumulation=4)  # 8 steps of 4 (the last of 2) are an epoch
    first, second = ([r for step in made[at : at + 8] for r in ids(step)] for at in (0, 8))
    assert sorted(first) == sorted(second) == sorted(source[i].id for i in range(30)) and first != second
    again = steps(tokenizer, source, 16, accumulation=4)
    assert [ids(a) for a in again] == [ids(m) for m in made]
    other = steps(tokenizer, source, 16, accumulation=4, seed=1)
    assert [ids(o) for o in other] != [ids(m) for m in made]


def test_a_step_has_records_of_like_length(tokenizer):
    made = steps(tokenizer, DemoSource(128, 1, {"single": 1.0, "chat": 1.0}), 16, micro=8)
    padding = sum(int((1 - micro.attention_mask).sum()) for step in made for micro in step)
    tokens = sum(micro.attention_mask.numel() for step in made for micro in step)
    assert padding < 0.2 * tokens  # unsorted it is about half


def test_a_rank_without_records_has_empty_micro_batches(tokenizer):
    source = DemoSource(1, 1, {"chat": 1.0})
    mine, others = (steps(tokenizer, source, 2, world=2, rank=r, accumulation=2) for r in (0, 1))
    assert [len(ids(step)) for step in mine] == [1, 1] and all(len(step) == 2 for step in others)
    for micro in [others[0][0], others[0][1], mine[0][1]]:
        assert micro.input_ids.shape == (1, 1) and micro.attention_mask.tolist() == [[1]]
        assert micro.rows.shape == micro.labels.shape == micro.bits.shape == micro.weight.shape == (0,)
        assert micro.rows.dtype == torch.int64


class Listed:
    """A source of these records."""

    spool = None

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]

    def place(self, index):
        return f"here:{index + 1}"

    def size_hint(self, index):
        return index

    def fingerprint(self):
        return str([record.id for record in self.records])


LONG = Record("long", [{"role": "user", "content": "go " * 400}, {"role": "assistant", "content": "ok"}])


@pytest.mark.parametrize("too_long", ["drop", "truncate"])  # its only turn does not fit
def test_records_that_are_too_long_are_left_out_and_named_once(tokenizer, too_long):
    source = Listed([demo.record("chat", 1), LONG, demo.record("chat", 2)])
    ranks = [
        steps(tokenizer, source, 4, world=2, rank=r, policy=FitPolicy(200, too_long)) for r in (0, 1)
    ]  # two epochs
    assert "long" not in [r for made in ranks for step in made for r in ids(step)]
    assert [name for made in ranks for step in made for micro in step for name in micro.too_long] == ["long"]


def test_truncation_by_hand():
    """Two turns end after tokens 3 and 7; the second holds a call."""
    bits = [0, TRUTH, TRUTH, 0, TRUTH, TRUTH | TOOL, TRUTH | ARGS, 0, 0]
    kept = [truncate(Encoded("a", list(range(9)), bits, 0.5), n) for n in range(1, 10)]
    assert [k and len(k.input_ids) for k in kept] == [None, None, 3, 3, 3, 3, 7, 7, 7]
    assert kept[3] == Encoded("a", [0, 1, 2], bits[:3], 0.5)


def test_truncation_cuts_no_span_and_keeps_every_turn_that_fits(tokenizer):
    whole = encode(demo.record("multi", 4), tokenizer)
    ends = {
        t
        for t in range(1, len(whole.bits) + 1)
        if whole.bits[t - 1] & TRUTH and not (t < len(whole.bits) and whole.bits[t] & TRUTH)
    }
    assert len(ends) > 2
    for limit in range(1, len(whole.input_ids), 7):
        kept = truncate(whole, limit)
        assert (len(kept.input_ids) if kept else None) == max((e for e in ends if e <= limit), default=None)
        for bit in (TRUTH, TOOL, ARGS, INTEGRATION):
            assert kept is None or not (kept.bits[-1] & bit and whole.bits[len(kept.bits)] & bit)


def test_truncated_records_are_trained_to_their_last_whole_turn_and_named_once(tokenizer):
    record = demo.record("multi", 4)
    limit = len(encode(record, tokenizer).input_ids) - 1
    made = steps(tokenizer, Listed([record, demo.record("chat", 1)]), 4, policy=FitPolicy(limit, "truncate"))
    assert [name for step in made for micro in step for name in micro.truncated] == [record.id]
    expected = truncate(encode(record, tokenizer), limit)
    assert [len(step[0].rows) for step in made if ids(step) == [record.id]] == [sum(map(bool, expected.bits[1:]))] * 2


def sequence(ranks):
    """The ids of each step in their global order: micro-batches in turn, ranks within one."""
    return [
        [name for micros in zip(*of_ranks) for micro in micros for name in micro.record_ids] for of_ranks in zip(*ranks)
    ]


def taken(tokenizer, source, number, world, state=None, **options):
    """`number` steps of all ranks, their ids as one list, and every rank's state after them."""
    ranks, states = [], []
    for rank in range(world):
        batches = loader(tokenizer, source, world=world, rank=rank, **options)
        if state is not None:
            batches.load_state_dict(state)
        ranks.append(list(islice(batches, number)))
        states.append(batches.state_dict())
    assert all(s == states[0] for s in states)
    return [name for step in sequence(ranks) for name in step], states[0]


@pytest.mark.parametrize("packed", [False, True])
def test_the_sequence_of_records_is_the_same_at_worlds_1_2_and_4(tokenizer, packed):
    source = Listed([demo.record("echo", n, short=True) for n in range(37)])
    packing = PackingPolicy([len(encode(r, tokenizer).input_ids) for r in source.records]) if packed else None
    found = []
    for world, micro, accumulation in [(1, 2, 4), (1, 8, 1), (2, 2, 2), (2, 4, 1), (4, 2, 1), (4, 1, 2)]:
        options = {
            "micro": micro,
            "accumulation": accumulation,
            "seed": 5,
            "policy": FitPolicy(400),
            "packing": packing,
        }
        found.append(taken(tokenizer, source, 12, world, **options)[0])
    assert len(found[0]) > 74 and all(other == found[0] for other in found)  # two epochs and more


@pytest.mark.parametrize("worlds", [(1, 1), (2, 2), (1, 2, 4, 1), (4, 1, 2)])
@pytest.mark.parametrize("packed", [False, True])
def test_stopped_anywhere_it_goes_on_with_the_next_record_at_any_world_size(tokenizer, worlds, packed):
    source = Listed([demo.record("echo", n, short=True) for n in range(37)])
    options = {"micro": 2, "accumulation": 1, "seed": 5, "policy": FitPolicy(400)}
    if packed:
        options["packing"] = PackingPolicy([len(encode(r, tokenizer).input_ids) for r in source.records])
    whole, _ = taken(tokenizer, source, 60, worlds[0], **options)
    for stop in (0, 1, 4, 18, 19, 23):
        found, state = [], None
        for part, world in enumerate(worlds):
            names, state = taken(tokenizer, source, stop if part == 0 else 3, world, state, **options)
            found += names
        assert len(found) >= 6 and found == whole[: len(found)]


def test_a_state_of_other_data_is_refused(tokenizer):
    state = loader(tokenizer, DemoSource(5, 1, MIX)).state_dict()
    for other in (DemoSource(6, 1, MIX), DemoSource(5, 2, MIX)):
        with pytest.raises(
            DataError, match=rf"not what it was when the checkpoint was written \(5 records then, {len(other)} now\)"
        ):
            loader(tokenizer, other).load_state_dict(state)


def same(one, other):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_workers_make_the_same_batches_ahead_and_end(tokenizer):
    source, options = DemoSource(30, 1, MIX), {"micro": 2, "accumulation": 2, "policy": FitPolicy(300)}
    here = loader(tokenizer, source, **options)
    away = loader(tokenizer, source, workers=2, **options)
    before = torch.get_rng_state()
    ours, theirs = iter(here), iter(away)
    for _ in range(12):  # an epoch is 8
        assert same(next(ours), next(theirs))
        assert here.state_dict() == away.state_dict()  # of what was given out, not of what was made ahead
    assert torch.equal(before, torch.get_rng_state())
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:  # a signal to the whole job: the trainer still needs its next step
        os.kill(worker.pid, signal.SIGTERM)
    for _ in range(10):
        assert same(next(ours), next(theirs))
    theirs.close()
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("end", ["raise SystemExit('an error')", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_workers_end_with_their_process_however_it_ends(tmp_path, end):
    """With more made than a pipe holds, and an iterator that something still refers to."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import itertools, multiprocessing, os, signal
from kd.batching.workers import in_order
if __name__ == "__main__":
    results = in_order(bytes, itertools.repeat(500_000), 2)
    for _ in range(4):  # both have begun
        next(results)
    print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
    {end}
""")
    done = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2 and done.returncode in (1, -signal.SIGKILL), done.stderr
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(psutil.pid_exists(pid) for pid in workers)


def test_a_bad_record_in_a_worker_is_raised_at_its_turn_with_its_message(tokenizer):
    bad = Record("bad", [{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "ok"}])
    source = Listed([demo.record("chat", 1), demo.record("chat", 2), bad])
    batches, names = loader(tokenizer, source, workers=1), []
    with pytest.raises(DataError) as raised:
        for step in batches:
            names += ids(step)
    with pytest.raises(DataError) as here:
        list(islice(loader(tokenizer, source), 3))
    assert str(raised.value) == str(here.value) and "record bad" in str(here.value)
    assert len(names) == batches.state_dict()["num_records"] < 3


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_record_is_left_out_and_named_once_where_it_may_be(tokenizer, packed, workers):
    bad = Record("bad", [{"role": "user", "content": "so"}, {"role": "assistant", "content": "<|end|>"}])
    source = Listed([demo.record("chat", 1), demo.record("chat", 2), bad, demo.record("chat", 3)])
    options = {"policy": FitPolicy(300, refuse=True), "workers": workers}
    lengths = None
    if packed:
        measured = measure(source, tokenizer, **options)
        lengths = measured.lengths.tolist()
        options["packing"] = PackingPolicy(lengths, measured.kept)
    seen, refused = [], []
    for step in islice(loader(tokenizer, source, **options), 2 if packed else 8):  # two epochs
        seen += [name for micro in step for name in micro.record_ids]
        refused += [reason for micro in step for reason in micro.refused]
    assert sorted(seen) == sorted([r.id for r in source.records if r.id != "bad"] * 2)
    assert len(refused) == 1 and refused[0].startswith("here:3: record bad: messages[1].content: holds '<|end|>'")
    assert lengths is None or lengths[2] == 0


def test_no_record_is_an_error():
    with pytest.raises(DataError, match="no record to train on"):
        StepBatches(Listed([]), None, FitPolicy(1), StepShape(1))


def test_files_and_the_demo_corpus_give_the_same_records(tmp_path, tokenizer):
    made = [DemoSource(20, 7, MIX)[i] for i in range(20)]
    for name, part in (("a", made[:8]), ("b", made[8:])):
        write_records(tmp_path / f"{name}.jsonl", part)
    source = RecordIndex([DataFiles(str(tmp_path / "*.jsonl"))])
    assert [source[i] for i in range(len(source))] == made
    assert sorted(ids(steps(tokenizer, source, 1, accumulation=20)[0])) == sorted(r.id for r in made)


def test_collate_by_hand():
    """Two records of 4 and 2 tokens; a bit at position t is the row t - 1, and position 0 cannot be predicted."""
    micro = collate(
        [
            Encoded("a", [5, 6, 7, 8], [TRUTH, 0, TRUTH | TOOL, TRUTH], 0.5),
            Encoded("b", [9, 3], [0, TRUTH | ARGS | INTEGRATION], 2.0),
        ],
        1,
    )
    assert micro.input_ids.tolist() == [[5, 6, 7, 8], [9, 3, 1, 1]]
    assert micro.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert micro.rows.tolist() == [1, 2, 4] and micro.labels.tolist() == [7, 8, 3]
    assert micro.bits.tolist() == [TRUTH | TOOL, TRUTH, TRUTH | ARGS | INTEGRATION]
    assert (
        micro.weight.tolist() == [0.5, 0.5, 2.0]
        and micro.record.tolist() == [0, 0, 1]
        and micro.record_ids == ("a", "b")
    )
    assert count_rows([micro, collate([], 1), micro]).tolist() == [6.0, 1.0, 4.0, 4.0]


def test_padding_does_not_change_what_is_trained(tokenizer):
    record = DemoSource(1, 1, {"single": 1.0})[0]
    alone = steps(tokenizer, DemoSource(1, 1, {"single": 1.0}), 1)[0][0]
    padded = collate([encode(record, tokenizer), Encoded("x", [1] * 900, [0] * 900, 1.0)], 0)
    assert padded.labels.tolist() == alone.labels.tolist() and padded.bits.tolist() == alone.bits.tolist()
    assert padded.rows.tolist() == alone.rows.tolist()  # it is the first of the batch
    assert (padded.input_ids[0][padded.attention_mask[0] == 0] == 0).all()


def test_widths_are_multiples_of_16_up_to_max_length():
    def width(num_tokens, max_length):
        return collate([Encoded("a", [5] * num_tokens, [TRUTH] * num_tokens, 1.0)], 0, max_length).input_ids.shape[1]

    assert [width(n, 40) for n in (1, 16, 17, 33, 40)] == [16, 16, 32, 40, 40]
    assert collate([], 0, 40).input_ids.shape == (1, 1)


def test_a_place_of_answers_alone_is_resumed_by_steps_that_have_records(tokenizer):
    """One rank's steps had no room for records, and two ranks' ended in `range() arg 3 must not be zero`."""
    source, policy = DemoSource(30, 1, MIX), FitPolicy(512)
    alone = StepBatches(source, tokenizer, policy, StepShape(2, 1, 0, 1, num_records=0))
    assert [ids(step) for step in islice(alone, 2)] == [[], []]
    again = StepBatches(source, tokenizer, policy, StepShape(2, 1, 0, 2, num_records=2))
    again.load_state_dict(alone.state_dict())
    fresh = StepBatches(source, tokenizer, policy, StepShape(2, 1, 0, 2, num_records=2))
    assert ids(next(iter(again))) == ids(next(iter(fresh)))
