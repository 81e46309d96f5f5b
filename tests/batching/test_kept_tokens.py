"""Kept tokens: read back as encoded, on every rank and in other processes, and nothing stays behind."""

from __future__ import annotations

import gc
import pickle
from itertools import islice

import pytest
import torch

from kd.batching import steps
from kd.batching.fit import FitPolicy, make_sample
from kd.batching.kept_tokens import KeptTokens, pack_sample, unpack_sample
from kd.batching.steps import PackingPolicy, StepBatches, StepShape, measure
from kd.records.files import DataFiles, write_records
from kd.rendering.encode import Encoded, encode
from kd.sources.demo import corpus as demo
from kd.sources.demo.source import DemoSource
from kd.sources.file_index import RecordIndex

POLICY = FitPolicy(330, "truncate")


def same(one, other) -> bool:
    return (
        one.input_ids.tolist() == other.input_ids.tolist()
        and one.bits.tolist() == other.bits.tolist()
        and (one.record_id, one.weight, one.key, one.is_cut) == (other.record_id, other.weight, other.key, other.is_cut)
    )


@pytest.mark.parametrize(
    "encoded", [Encoded("é\ud83d", [1, 2**31 - 1, 0], [0, 15, 255], 0.1), Encoded("", [7], [0], 1.0)]
)
def test_a_sample_is_read_as_it_was_written(encoded):
    for is_cut in (False, True):
        sample = make_sample(encoded, is_cut)
        assert same(unpack_sample(pack_sample(sample)), sample)


@pytest.fixture
def index(tmp_path):
    path = tmp_path / "a.jsonl"
    write_records(path, (demo.record(("chat", "single", "multi")[n % 3], n) for n in range(150)))
    return RecordIndex([DataFiles(str(path))], spool=tmp_path / "records-0.jsonl")


def packing_of(index, tokenizer, world):
    shares = [measure(index, tokenizer, POLICY, rank=rank, world_size=world) for rank in range(world)]
    lengths = sum(share.lengths for share in shares).tolist()
    return [PackingPolicy(lengths, share.kept) for share in shares]


def first_steps(index, tokenizer, packing, world=1, rank=0, workers=0):
    batches = StepBatches(index, tokenizer, POLICY, StepShape(2, 1, rank, world), packing=packing, workers=workers)
    return list(islice(batches, 12))


def equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_no_record_is_encoded_again_and_the_batches_are_the_same(index, tokenizer, tmp_path, monkeypatch, workers):
    encoded = []
    for world in (1, 2):
        packings = packing_of(index, tokenizer, world)
        for rank, packing in enumerate(packings):
            again = first_steps(index, tokenizer, packing._replace(kept=None), world, rank)
            with monkeypatch.context() as patch:
                encoded.clear()
                patch.setattr(
                    steps,
                    "encode_at",
                    lambda source, at, *_: encoded.append(source[at].id) or [encode(source[at], tokenizer)],
                )
                read = first_steps(index, tokenizer, packing, world, rank, workers)
            assert equal(read, again)
            made = [micro for step in read for micro in step]
            assert any(micro.truncated for micro in made)
            assert workers or encoded == [name for micro in made for name in micro.too_long]
        assert len(list(tmp_path.glob("records-0.jsonl.*"))) == world
        del packings, packing
        gc.collect()
        assert not list(tmp_path.glob("records-0.jsonl.*"))


def test_a_record_that_another_rank_keeps_elsewhere_is_encoded_here(tokenizer):
    source = DemoSource(150, 1, {"chat": 1.0, "single": 1.0})  # it has no file that ranks could share
    one, other = packing_of(source, tokenizer, 2)
    assert one.kept.read(0) and not one.kept.read(64) and other.kept.read(64)
    packings = (one, one._replace(kept=None))
    assert equal(*(first_steps(source, tokenizer, packing, 2) for packing in packings))


def test_a_record_that_is_left_out_is_not_kept(index, tokenizer):
    missing = frozenset({measure(index, tokenizer, POLICY).kept.read(3)[0].key})
    measured = measure(index, tokenizer, POLICY._replace(missing=missing))
    assert measured.lengths[3] == 0 and not measured.kept.read(3) and measured.kept.read(4)


def test_writing_that_fails_leaves_nothing(tmp_path):
    kept = KeptTokens(str(tmp_path / "tokens"), 0, 1)

    def failing():
        yield b"x"
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        kept.write(failing())
    assert not list(tmp_path.iterdir())
    kept.write(iter([pack_sample(make_sample(Encoded("a", [1, 2], [0, 1], 1.0)))]))
    copy = pickle.loads(pickle.dumps(kept))
    assert copy.read(0)[0].record_id == kept.read(0)[0].record_id == "a"
    del copy
    gc.collect()
    assert len(list(tmp_path.iterdir())) == 1
    del kept
    gc.collect()
    assert not list(tmp_path.iterdir())
