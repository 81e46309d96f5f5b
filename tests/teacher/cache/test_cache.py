"""What is read from a cache is what the teacher gave: any records, any order, any process."""

import itertools
import multiprocessing
import os
import random

import pytest
import torch

from helpers.cache_cases import (
    EXACT,
    IDENTITY,
    LENGTHS,
    SAMPLED,
    SPECS,
    TOP_K,
    assert_same,
    expected,
    read,
    records_of,
    signal_of,
    three_shards,
    write,
)
from kd.batching.record_key import record_key, rows_digest
from kd.teacher.cache.reader import CacheReader
from kd.teacher.cache.spec import CacheError, CacheSpec, Missing
from kd.teacher.cache.writer import CacheWriter
from kernels import RowWeights, sparse_distill_loss


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_record_at_every_temperature(tmp_path, spec):
    records = three_shards(tmp_path, spec)
    reader = CacheReader(tmp_path, IDENTITY, spec)
    assert reader.verify() == [] and reader.manifest.identity == IDENTITY and reader.spec == spec
    for temperature in spec.temperatures:
        assert_same(read(reader, records, temperature), expected(records, temperature), spec)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_any_records_in_any_order(tmp_path, spec):
    records = three_shards(tmp_path, spec)
    reader, rng = CacheReader(tmp_path), random.Random(3)
    for _ in range(20):
        some = rng.choices(records, k=rng.randint(1, 6))  # a record may come twice
        temperature = rng.choice(spec.temperatures)
        assert_same(read(reader, some, temperature), expected(some, temperature), spec)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_no_rows_and_no_records(tmp_path, spec):
    records = three_shards(tmp_path, spec)
    reader = CacheReader(tmp_path)
    for none in ([], [records[1]]):
        found = read(reader, none, 1.0)
        assert found.ids.shape == found.probs.shape == (0, 1 if spec.kind == "sampled" else spec.top_k)
        assert found.log_tail.shape == found.entropy.shape == found.entropy_t.shape == found.argmax.shape == (0,)
        assert (found.ids.dtype, found.probs.dtype, found.kind) == (torch.int32, torch.float32, spec.kind)


def test_a_cache_of_nothing(tmp_path):
    write(tmp_path / "a", SAMPLED, [])
    write(tmp_path / "b", TOP_K, [[], []])
    for folder in "ab":
        reader = CacheReader(tmp_path / folder)
        assert reader.verify() == [] and read(reader, [], 1.0).ids.shape[0] == 0
        with pytest.raises(CacheError, match="is not in"):
            reader.read([b"k" * 16], [b"d" * 8], [1], 1.0)


@pytest.mark.parametrize("temperature", TOP_K.temperatures)
def test_topk_in_16_bits(tmp_path, temperature):
    """Half a step of 1/2048 nat at T = 1, the same over T otherwise, and rescaling to what the tail leaves."""
    records = three_shards(tmp_path, TOP_K)
    found, wanted = read(CacheReader(tmp_path), records, temperature), expected(records, temperature)
    there = wanted.probs > 0
    error = (found.probs.log() - wanted.probs.log())[there].abs()
    assert error.max() <= 2 * 0.5 / 2048 / temperature + 1e-5 and error.max() > 1e-6
    torch.testing.assert_close(
        found.probs.double().sum(-1), -torch.expm1(found.log_tail.double()), rtol=1e-6, atol=1e-7
    )
    assert ((found.probs == 0) == ~there).all()


def test_topk_in_32_bits(tmp_path):
    """K = V: no tail, tokens of probability 0 among the kept; at T = 1 to the bit, elsewhere by DESIGN's formula."""
    records = three_shards(tmp_path, EXACT)
    found, wanted = read(CacheReader(tmp_path), records, 1.0), expected(records, 1.0)
    assert found.probs.equal(wanted.probs) and (found.probs == 0).any() and found.log_tail.isneginf().all()
    found, wanted = read(CacheReader(tmp_path), records, 4.0), expected(records, 4.0)
    torch.testing.assert_close(found.probs, wanted.probs, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_the_loss_from_the_cache_is_the_loss_from_the_teacher(tmp_path, divergence):
    records = three_shards(tmp_path, EXACT)
    n = sum(LENGTHS)
    logits, labels, weights = (
        torch.randn(n, EXACT.vocab_size),
        torch.zeros(n, dtype=torch.int64),
        RowWeights(*torch.rand(4, n)),
    )
    outputs, gradients = [], []
    for teacher in (read(CacheReader(tmp_path), records, 4.0), expected(records, 4.0)):
        student = logits.clone().requires_grad_()
        outputs.append(sparse_distill_loss(student, teacher, labels, weights, temperature=4.0, divergence=divergence))
        outputs[-1].loss.backward()
        gradients.append(student.grad)
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_deep_and_unknown_numbers(tmp_path):
    """Log-probabilities past 16 nats, of -inf, and of a tail of nothing; entropies that an endpoint does not know."""
    spec = CacheSpec("topk", 70, (1.0,), top_k=6, has_entropy=False)
    log_probs = torch.tensor([[-1e-6, -15.9, -16.1, -80.0, -1000.0, -float("inf")]])
    signal = signal_of(spec, 1)._replace(
        log_probs=log_probs,
        log_probs_t=log_probs[None],
        log_tail=torch.tensor([[-float("inf")]]),
        entropy=torch.tensor([float("nan")]),
        entropy_t=torch.tensor([[float("nan")]]),
    )
    records = records_of(signal, (1,))
    write(tmp_path, spec, [records])
    found = read(CacheReader(tmp_path), records, 1.0)
    assert found.entropy.isnan().all() and found.entropy_t.isnan().all() and found.log_tail.isneginf().all()
    stored = found.probs[0].double().log()
    assert (
        (stored - log_probs[0].double()).abs()[:4]
        <= torch.tensor([0.5 / 2048, 0.5 / 2048, 0.5 / 128, 0.5 / 128]) + 1e-5
    ).all()
    assert found.probs[0, 4:].tolist() == [0.0, 0.0]  # e^-272 is none in fp32


def test_content_is_the_address(tmp_path):
    """The same tokens with other rows, the same record twice, and keys that differ in their last byte alone."""
    signal = signal_of(SAMPLED, 12)
    one, other, again, near = records_of(signal, (3, 4, 3, 2))
    zeros, high = bytes(16), bytes(15) + b"\x01"
    one = one._replace(entry=one.entry._replace(key=zeros, row_digest=bytes(8)))
    other = other._replace(entry=other.entry._replace(key=zeros, row_digest=bytes(7) + b"\x01"))
    again = again._replace(entry=one.entry)
    near = near._replace(entry=near.entry._replace(key=high, row_digest=bytes(8)))
    write(tmp_path, SAMPLED, [[near, other], [one, again]])
    reader = CacheReader(tmp_path)
    for order in itertools.permutations([one, other, near]):
        assert_same(read(reader, order, 2.0), expected(order, 2.0), SAMPLED)


def test_what_is_not_there(tmp_path):
    records = records_of(signal_of(SAMPLED, sum(LENGTHS)))
    lost = record_key([1, 2, 3])
    write(tmp_path, SAMPLED, [records], missing=[Missing(lost, "talk-7", "longer than the server takes")])
    reader, (entry, n) = CacheReader(tmp_path), records[0]
    assert reader.missing == {lost: "longer than the server takes"}
    with pytest.raises(CacheError, match=f"{lost.hex()} got no targets when .*: longer than the server takes"):
        reader.read([entry.key, lost], [entry.row_digest, rows_digest([1])], [n, 1], 1.0)
    with pytest.raises(
        CacheError, match=f"{entry.key.hex()} is in .* with other supervised positions: its spans changed since capture"
    ):
        reader.read([entry.key], [rows_digest([4])], [n], 1.0)
    with pytest.raises(
        CacheError, match="is not in .* its text, the chat template, the tokenizer or max_length changed"
    ):
        reader.read([b"x" * 16], [entry.row_digest], [n], 1.0)
    with pytest.raises(CacheError, match=f"has {n + 1} supervised positions and {n} in"):
        reader.read([entry.key], [entry.row_digest], [n + 1], 1.0)
    with pytest.raises(CacheError, match=r"has the temperatures \[1.0, 2.0\], not 1.5"):
        reader.read([entry.key], [entry.row_digest], [n], 1.5)


def test_another_cache_is_refused_with_all_differences(tmp_path):
    three_shards(tmp_path)
    with pytest.raises(CacheError) as refused:
        CacheReader(
            tmp_path,
            IDENTITY | {"revision": "9b1c", "template": "t"},
            SAMPLED._replace(temperatures=(1.0,), num_draws=20),
        )
    for shown in (
        "identity revision was '3f2a' and is '9b1c'",
        "identity template was None and is 't'",
        "num_draws was 50 and is 20",
        "temperatures was [1.0, 2.0] and is [1.0]",
    ):
        assert shown in str(refused.value)
    with pytest.raises(CacheError, match="manifest.json is not there: .* launch/capture.py"):
        CacheReader(tmp_path / "elsewhere")


def test_the_same_bytes_from_any_writer(tmp_path):
    """Two writers, each of some shards, in another order; the files are those of one."""
    records = three_shards(tmp_path / "one")
    writers = [CacheWriter(tmp_path / "two", SAMPLED, dict(reversed(IDENTITY.items()))) for _ in range(2)]
    for index, some in ((2, records[6:]), (0, records[:3]), (1, records[3:6])):
        writers[index % 2].write_shard(index, [r.entry for r in some])
    writers[0].finish(3)
    names = sorted(os.listdir(tmp_path / "one"))
    assert (
        names
        == ["manifest.json", *(f"shard-00000{i}.safetensors" for i in range(3))]
        == sorted(os.listdir(tmp_path / "two"))
    )
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def _reads(reader, records, rounds, results):
    rng = random.Random(os.getpid())
    for _ in range(rounds):
        some = rng.choices(records, k=5)
        assert_same(read(reader, some, 2.0), expected(some, 2.0), SAMPLED)
    results.put("read")


def test_processes_read_at_once(tmp_path):
    """Two with a reader of their own from the start, two that were forked with this one's, and this one meanwhile."""
    records = three_shards(tmp_path)
    reader = CacheReader(tmp_path)
    read(reader, records[:2], 1.0)
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    children = [
        fork.Process(target=_reads, args=(CacheReader(tmp_path) if i < 2 else reader, records, 30, results))
        for i in range(4)
    ]
    for child in children:
        child.start()
    for some in itertools.combinations(records, 3):
        assert_same(read(reader, some, 1.0), expected(some, 1.0), SAMPLED)
    assert [results.get(timeout=60) for _ in children] == ["read"] * 4
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4


class _Positions(torch.utils.data.Dataset):
    def __init__(self, reader, records):
        self.reader, self.records = reader, records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return read(self.reader, [self.records[index]], 1.0).ids


def test_workers_of_a_loader_read_while_the_trainer_does(tmp_path):
    records = three_shards(tmp_path)
    reader = CacheReader(tmp_path)
    loader = torch.utils.data.DataLoader(_Positions(reader, records), batch_size=None, num_workers=2)
    for _ in range(2):
        for index, ids in enumerate(loader):
            ours = read(reader, [records[index]], 1.0)
            assert ids.equal(ours.ids)


def test_an_array_at_a_time(tmp_path):
    """A read's Python steps grow with records and shards, not with rows or tokens."""
    import sys

    def steps(length: int) -> int:
        records = records_of(signal_of(SAMPLED, 8 * length), [length] * 8)
        write(tmp_path / str(length), SAMPLED, [records])
        reader, count = CacheReader(tmp_path / str(length)), 0
        read(reader, records, 1.0)

        def counted(frame, event, argument):
            nonlocal count
            count += event in ("line", "call")
            return counted

        sys.settrace(counted)
        try:
            read(reader, records, 1.0)
        finally:
            sys.settrace(None)
        return count

    assert steps(2) == steps(200) > 50
