"""Teachers' signals made of nothing, cut into records and written as a cache."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from kd.batching.record_key import record_key, rows_digest
from kd.teacher.cache.check_rows import slice_rows
from kd.teacher.cache.reader import CacheReader
from kd.teacher.cache.spec import CacheError, CacheSpec, Entry
from kd.teacher.cache.writer import CacheWriter
from kernels import Head, SparseTeacher, TeacherSamples, TeacherTopK, sparse_teacher, teacher_sample, teacher_topk

IDENTITY = {"teacher": "teachers/large", "revision": "3f2a", "tokenizer": "77aa"}
SAMPLED = CacheSpec("sampled", 500, (1.0, 2.0), num_draws=50)
TOP_K = CacheSpec("topk", 500, (2.0, 1.0, 0.5), top_k=9)
EXACT = CacheSpec("topk", 500, (1.0, 4.0), top_k=500, precision="fp32")
SPECS = {"sampled": SAMPLED, "topk": TOP_K, "topk K=V fp32": EXACT}
CUTS = (slice(0, 3), slice(3, 6), slice(6, 8))  # the records of three shards
REMEDY = "restore it, or (start its capture again|capture the cache again)"
LENGTHS = (13, 0, 1, 7, 1, 40, 3, 9)  # rows of each record


def signal_of(spec: CacheSpec, num_rows: int, seed: int = 0, spread: float = 1.5) -> TeacherSamples | TeacherTopK:
    """Of a random head with a few excluded tokens; what is stored of it follows the spec."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_rows, 8, generator=generator)
    bias = torch.zeros(spec.vocab_size).masked_fill(
        torch.rand(spec.vocab_size, generator=generator) < 0.1, -float("inf")
    )
    bias[0] = 0.0
    head = Head(spread * torch.randn(spec.vocab_size, 8, generator=generator), bias)
    if spec.kind == "topk":
        return teacher_topk(hidden, head, spec.top_k, spec.temperatures)
    return teacher_sample(hidden, head, spec.num_draws, spec.temperatures, torch.arange(num_rows) + 1000 * seed)


class Record(NamedTuple):
    entry: Entry
    num_rows: int


def records_of(signal: TeacherSamples | TeacherTopK, lengths=LENGTHS, name: int = 0) -> list[Record]:
    """Consecutive rows of the signal as records, each with tokens of its own."""
    found, start = [], 0
    for number, n in enumerate(lengths):
        entry = Entry(record_key([name, number, n]), rows_digest(range(n)), slice_rows(signal, start, start + n))
        found.append(Record(entry, n))
        start += n
    return found


def write(folder, spec: CacheSpec, shards: list[list[Record]], identity=IDENTITY, missing=()) -> None:
    writer = CacheWriter(folder, spec, identity)
    for index, records in enumerate(shards):
        writer.write_shard(index, [record.entry for record in records])
    writer.finish(len(shards), missing)


def three_shards(folder, spec: CacheSpec = SAMPLED, identity=IDENTITY, seed: int = 0) -> list[Record]:
    """A cache of 3 shards; gives its records."""
    records = records_of(signal_of(spec, sum(LENGTHS), seed), name=seed)
    write(folder, spec, [records[cut] for cut in CUTS], identity)
    return records


def read(reader: CacheReader, records: list[Record], temperature: float) -> SparseTeacher:
    keys, digests = [r.entry.key for r in records], [r.entry.row_digest for r in records]
    return reader.read(keys, digests, [r.num_rows for r in records], temperature)


def expected(records: list[Record], temperature: float) -> SparseTeacher:
    """What the losses would get without a cache between."""
    rows = [sparse_teacher(record.entry.rows, temperature) for record in records]
    return SparseTeacher(*(torch.cat(field) for field in list(zip(*rows))[:-1]), rows[0].kind)


def assert_same(found: SparseTeacher, wanted: SparseTeacher, spec: CacheSpec) -> None:
    """Sampled and fp32 to the bit at T = 1; else to what the format's steps allow."""
    assert found.kind == wanted.kind and found.ids.dtype == found.argmax.dtype == torch.int32
    width = found.ids.shape[1]
    if spec.kind == "sampled":
        assert width == max(int((wanted.ids >= 0).sum(-1).max()) if len(wanted.ids) else 1, 1)
    assert found.ids.equal(wanted.ids[:, :width]) and (wanted.ids[:, width:] == -1).all()
    assert found.argmax.equal(wanted.argmax)
    if spec.kind == "sampled":
        assert found.probs.equal(wanted.probs[:, :width])
    for ours, theirs in ((found.entropy, wanted.entropy), (found.entropy_t, wanted.entropy_t)):
        if spec.precision == "fp32":
            assert ours.equal(theirs)
        else:
            assert ((ours - theirs).abs() <= 0.5 / 4096 + 1e-6).all()
    assert found.log_tail.equal(wanted.log_tail)


def refused(folder, records):
    """The message that a user gets who opens the cache and reads every record of it."""
    with pytest.raises(CacheError) as error:
        reader = CacheReader(folder, IDENTITY)
        for record in records:
            read(reader, [record], 1.0)
    return str(error.value)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def go_on(folder, records, said=None):
    """What capture does, at first and after a kill: the shards that are not there, then the end. Gives those that
    were.
    """
    writer = CacheWriter(folder, SAMPLED, IDENTITY, (lambda text: None) if said is None else said.append)
    there = writer.published()
    for index, cut in enumerate(CUTS):
        if index not in there:
            writer.write_shard(index, [r.entry for r in records[cut]])
    writer.finish(3)
    return there
