"""Bytes of rows against a reader written from the format's description alone, number by number, and over all that specs
allow.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.cache_cases import IDENTITY, expected, read, records_of, write
from kd.batching.record_key import record_key, rows_digest
from kd.teacher.cache import codec
from kd.teacher.cache.reader import CacheReader
from kd.teacher.cache.spec import CacheSpec
from kernels import TeacherSamples, TeacherTopK

VOCABS = st.one_of(
    st.integers(1, 40), st.sampled_from([255, 256, 257, 50_257, 131_072, 151_936, 262_144, 262_145, 2**23])
)
TEMPERATURES = st.lists(st.sampled_from([0.25, 0.7, 1.0, 1.5, 2.0, 4.0]), min_size=1, max_size=3, unique=True).map(
    tuple
)
LENGTHS = st.lists(st.integers(0, 5), max_size=5)


def test_an_example_of_a_sampled_row():
    """V = 151,936 and 50 draws: 18 + 6 bits. The argmax 7 drawn 44 times, 9 five times, 151,935 once: three entries of
    3 bytes.
    """
    spec = CacheSpec("sampled", 151_936, (1.0,), num_draws=50)
    assert (spec.id_bits, spec.entry_bytes) == (18, 3)
    ids, counts = np.array([[7, 9, 151_935, -1]], np.int32), np.array([[44, 5, 1, 0]], np.int32)
    data, entries = codec.pack_samples(spec, ids, counts)
    numbers = [7 + (44 << 18), 9 + (5 << 18), 151_935 + (1 << 18)]
    assert entries == 3 and data.tobytes() == b"".join(n.to_bytes(3, "little") for n in numbers)
    found = codec.unpack_samples(spec, [data[:9]], np.array([1]), np.array([3]))
    assert found[0].tolist() == [[7, 9, 151_935]] and found[1].tolist() == [[44, 5, 1]]


def test_an_example_of_topk_ids():
    """V = 5: ids of 3 bits; 1, 4, 2 are 0b010_100_001 from the lowest bit on."""
    spec = CacheSpec("topk", 5, (1.0,), top_k=3)
    packed = np.ascontiguousarray(codec.pack_ids(spec, np.array([[1, 4, 2]], np.int32)))
    assert packed.tolist() == [[0b10_100_001, 0b0]] and codec.unpack_ids(spec, [packed]).tolist() == [[1, 4, 2]]


def test_sizes_of_numbers():
    for vocab, draws, id_bits, entry_bytes in (
        (2, 1, 1, 1),
        (1, 1, 1, 1),
        (3, 3, 2, 1),
        (64, 3, 6, 1),
        (65, 3, 7, 2),
        (151_936, 63, 18, 3),
        (262_144, 63, 18, 3),
        (262_145, 63, 19, 4),
        (262_144, 64, 18, 4),
        (2**23, 255, 23, 4),
    ):
        spec = CacheSpec("sampled", vocab, (1.0,), num_draws=draws)
        assert (spec.id_bits, spec.entry_bytes) == (id_bits, entry_bytes)


def test_codes_of_log_probabilities():
    nats = -np.array([0.0, 1 / 2048, 15.99, 16.0, 16 + 1 / 128, 100.0, 272.0, 1e5, math.inf])
    codes = codec.pack_log_probs(nats)
    assert codes.tolist() == [0, 1, round(15.99 * 2048), 32768, 32769, 32768 + 84 * 128, 65534, 65534, 65535]
    back = codec.unpack_log_probs(codes)
    assert back[:2].tolist() == [0.0, -1 / 2048] and back[3:].tolist() == [
        -16.0,
        -16 - 1 / 128,
        -100.0,
        -271.984375,
        -271.984375,
        -math.inf,
    ]
    every = np.arange(65536).astype(np.uint16)
    assert np.array_equal(codec.pack_log_probs(codec.unpack_log_probs(every)), every)
    assert (np.diff(codec.unpack_log_probs(every)) < 0).all()
    assert codec.pack_log_probs(np.array([1e-7, -0.0], np.float32)).tolist() == [0, 0]


@given(st.floats(-300, 0))
def test_log_probabilities_to_half_a_step(nats):
    (found,) = codec.unpack_log_probs(codec.pack_log_probs(np.array([nats])))
    assert abs(found - max(nats, -271.984375)) <= (0.5 / 2048 if nats > -16 + 0.5 / 2048 else 0.5 / 128) + 1e-5


@given(st.floats(0, 15.75, width=32))
def test_entropies_to_half_a_step(nats):
    (found,) = codec.unpack_entropy(codec.pack_entropy(np.array([nats], np.float32)))
    assert abs(found - nats) <= 0.5 / 4096


def test_the_largest_entropy_there_is():
    assert codec.pack_entropy(np.array([math.log(2**23), -1e-7, math.nan, 15.9999])).tolist() == [
        65300,
        0,
        65535,
        65534,
    ]
    assert np.isnan(codec.unpack_entropy(np.array([65535], np.uint16))).all()


@st.composite
def sampled_caches(draw):
    num_draws = draw(st.one_of(st.integers(1, 255), st.sampled_from([1, 50, 63, 64, 255])))
    spec = CacheSpec("sampled", draw(VOCABS), draw(TEMPERATURES), num_draws=num_draws)
    lengths, seed = draw(LENGTHS), draw(st.integers(0, 999))
    return spec, lengths, samples(spec, sum(lengths), np.random.default_rng(seed))


def samples(spec, n, rng) -> TeacherSamples:
    """Counts of draws from few or many tokens, with an argmax that may be undrawn; entropies of anything."""
    m, width = len(spec.temperatures), spec.num_draws + 1
    ids, counts = np.full((m, n, width), -1, np.int32), np.zeros((m, n, width), np.int32)
    argmax = rng.integers(spec.vocab_size, size=n)
    for t in range(m):
        for row in range(n):
            some = rng.integers(spec.vocab_size, size=rng.integers(1, spec.num_draws + 1))
            drawn = np.append(rng.choice(some, spec.num_draws - 1), argmax[row] if rng.random() < 0.7 else some[0])
            tokens, times = np.unique(drawn, return_counts=True)
            others = tokens != argmax[row]
            ids[t, row, 0], counts[t, row, 0] = argmax[row], times[~others].sum()
            ids[t, row, 1 : others.sum() + 1], counts[t, row, 1 : others.sum() + 1] = tokens[others], times[others]
    entropy = torch.from_numpy(rng.uniform(0, 15.9, (m + 1, n)).astype(np.float32))
    at = entropy[1:].clone()
    if 1.0 in spec.temperatures:
        at[spec.temperatures.index(1.0)] = entropy[0]
    return TeacherSamples(
        torch.from_numpy(ids),
        torch.from_numpy(counts),
        entropy[0],
        at,
        torch.from_numpy(argmax.astype(np.int32)),
        spec.temperatures,
        spec.num_draws,
    )


def by_hand(spec, shard, t):
    """ids and counts of every row of a sampled shard, entry by entry, as the format's page says."""
    raw, rows, row = shard[f"data_{t}"].tobytes(), [], {}
    for at in range(0, len(raw), spec.entry_bytes):
        number = int.from_bytes(raw[at : at + spec.entry_bytes], "little")
        row[number % (1 << spec.id_bits)] = number >> spec.id_bits
        if sum(row.values()) == spec.num_draws:
            rows.append(row)
            row = {}
    assert not row and len(rows) == shard["num_rows"].sum()
    return rows


@settings(max_examples=40, deadline=None)
@given(sampled_caches())
def test_sampled_caches_of_every_spec(tmp_path_factory, case):
    spec, lengths, signal = case
    folder, records = tmp_path_factory.mktemp("cache"), records_of(signal, lengths)
    cut = len(records) // 2
    write(folder, spec, [records[:cut], records[cut:]])
    reader = CacheReader(folder, IDENTITY, spec)
    for t, temperature in enumerate(spec.temperatures):
        found = read(reader, records, temperature)
        wanted = [row for shard in reader._shards for row in by_hand(spec, shard.tensors, t)]
        assert len(wanted) == sum(lengths) == len(found.ids)
        for row, (ids, probs) in enumerate(zip(found.ids.tolist(), found.probs)):
            used = [i for i in ids if i >= 0]
            counts = (probs.double() * spec.num_draws).round().int().tolist()
            assert list(wanted[row].items()) == list(zip(used, counts)) and ids[len(used) :] == [-1] * (
                len(ids) - len(used)
            )
        if records:
            original = expected(records, temperature)
            width = found.ids.shape[1]
            assert found.ids.equal(original.ids[:, :width]) and found.probs.equal(original.probs[:, :width])
            assert ((found.entropy_t - original.entropy_t).abs() <= 0.5 / 4096).all() and found.argmax.equal(
                original.argmax
            )


@st.composite
def top_k_caches(draw):
    vocab = draw(VOCABS)
    k, precision = draw(st.integers(1, min(vocab, 40))), draw(st.sampled_from(["16bit", "fp32"]))
    spec = CacheSpec("topk", vocab, draw(TEMPERATURES), top_k=k, precision=precision)
    lengths, seed = draw(LENGTHS), draw(st.integers(0, 999))
    return spec, lengths, top_k(spec, sum(lengths), np.random.default_rng(seed))


def top_k(spec, n, rng) -> TeacherTopK:
    """Any K tokens and a tail; excluded tokens now and then; at T their probabilities as DESIGN has them."""
    m, k = len(spec.temperatures), spec.top_k
    few = spec.vocab_size < 300  # a permutation of millions is slow
    ids = [
        rng.choice(spec.vocab_size, k, replace=False)
        if few
        else np.unique(rng.integers(spec.vocab_size, size=3 * k))[:k]
        for _ in range(n)
    ]
    ids = rng.permuted(np.array(ids).reshape(n, k), axis=1)
    logits = -np.sort(rng.exponential(rng.choice([0.1, 3, 30]), (n, k)), 1)
    logits[:, 1:][rng.random((n, k - 1)) < 0.05] = -np.inf
    mass = rng.uniform(0.01, 1, (m, n)) * rng.choice([1e-9, 0.3, 0.999], (m, n))
    log_tail = np.log(mass) if spec.top_k < spec.vocab_size else np.full((m, n), -np.inf)
    at = list(spec.temperatures)
    tail = torch.from_numpy(log_tail)
    first = (
        torch.log_softmax(torch.from_numpy(logits), -1)
        + torch.log(-torch.expm1(tail[at.index(1.0)] if 1.0 in at else tail[0]))[:, None]
    )
    log_probs_t = torch.stack(
        [torch.log_softmax(first / t, -1) + torch.log(-torch.expm1(tail[i]))[:, None] for i, t in enumerate(at)]
    )
    entropy = torch.from_numpy(rng.uniform(0, 15.9, (m + 1, n)).astype(np.float32))
    entropy_t = entropy[1:].clone()
    if 1.0 in at:
        entropy_t[at.index(1.0)] = entropy[0]
    ids = torch.from_numpy(ids.astype(np.int32))
    return TeacherTopK(
        ids,
        first.float(),
        log_probs_t.float(),
        tail.float(),
        entropy[0],
        entropy_t,
        ids[:, 0].clone(),
        spec.temperatures,
    )


@settings(max_examples=40, deadline=None)
@given(top_k_caches())
def test_topk_caches_of_every_spec(tmp_path_factory, case):
    spec, lengths, signal = case
    folder, records = tmp_path_factory.mktemp("cache"), records_of(signal, lengths)
    write(folder, spec, [records])
    reader = CacheReader(folder, IDENTITY, spec)
    for temperature in spec.temperatures:
        found = read(reader, records, temperature)
        assert len(found.ids) == sum(lengths)
        if not records:
            continue
        wanted = expected(records, temperature)
        assert (
            found.ids.equal(wanted.ids) and found.argmax.equal(wanted.argmax) and found.log_tail.equal(wanted.log_tail)
        )
        # 1/2048 nat at T = 1 above 16 nats, 1/128 below: half of it, twice (the sum moves too), over T; e^-271.98 at T
        # is not 0.
        step = 0.0 if spec.precision == "fp32" else 1 / 128 / temperature
        floor = 1e-37 if spec.precision == "fp32" else math.exp(-271.98 / temperature)
        assert ((found.probs - wanted.probs).abs() <= wanted.probs * (step + 3e-5) + floor + 1e-37).all()


@pytest.mark.parametrize("length", [1, 50_000])
def test_records_of_one_row_and_of_50_000(tmp_path, length):
    spec = CacheSpec("sampled", 151_936, (1.0, 2.0), num_draws=50)
    signal = samples(spec, 40, np.random.default_rng(3))
    rows = torch.arange(length) % 40
    signal = signal._replace(
        ids=signal.ids[:, rows],
        counts=signal.counts[:, rows],
        entropy=signal.entropy[rows],
        entropy_t=signal.entropy_t[:, rows],
        argmax=signal.argmax[rows],
    )
    records = records_of(signal, (length,))
    assert records[0].entry.key == record_key([0, 0, length]) and records[0].entry.row_digest == rows_digest(
        range(length)
    )
    write(tmp_path, spec, [records])
    found, wanted = read(CacheReader(tmp_path), records, 2.0), expected(records, 2.0)
    assert found.ids.equal(wanted.ids[:, : found.ids.shape[1]]) and found.probs.equal(
        wanted.probs[:, : found.ids.shape[1]]
    )
