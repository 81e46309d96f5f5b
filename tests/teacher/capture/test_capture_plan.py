"""What capture runs over, before any teacher is asked."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from helpers.cache_cases import CUTS, IDENTITY, SAMPLED, files, records_of, signal_of, three_shards
from helpers.template_forms import FORMS, chat, make_tokenizer, rounds
from kd.batching.fit import FitPolicy, fit
from kd.records.checks import DataError
from kd.records.record import Record
from kd.rendering.encode import encode_sequences
from kd.sources.demo import corpus as demo
from kd.teacher.cache.spec import Missing
from kd.teacher.cache.writer import CacheWriter
from kd.teacher.capture.errors import CaptureError
from kd.teacher.capture.missing import read_missing
from kd.teacher.capture.plan import BatchMaker, arrange, plan_capture


class Listed(list):
    """Records of a stage."""

    def place(self, index: int) -> str:
        return f"listed:{index + 1}"


BAD = Record("bad", [{"role": "user", "content": "a"}, {"role": "assistant", "content": "half a pair \ud800"}])


def test_a_record_is_captured_once_for_each_set_of_rows():
    """Columns: tokens, rows, the key's halves, the rows' digest. Record 1 repeats 0; record 2 has its tokens, and other
    rows.
    """
    measured = np.array(
        [[9, 3, 1, 1, 5], [9, 3, 1, 1, 5], [9, 2, 1, 1, 6], [4, 2, 7, 7, 5], [0, 0, 0, 0, 0], [-1, 0, 0, 0, 0]]
    )
    places = np.array([(0, i, 0) for i in range(len(measured))])
    plan = arrange(places, measured, 2, 1)
    assert plan.places.tolist() == [[0, 3, 0], [0, 0, 0], [0, 2, 0]] and plan.rows.tolist() == [2, 3, 2]
    assert (plan.num_repeated, plan.num_too_long, plan.num_refused) == (1, 1, 1)
    assert plan.shards == [range(1), range(1, 2)] and plan.keys.tolist() == [[7, 7], [1, 1], [1, 1]]


def test_a_record_that_cannot_be_rendered(tokenizer):
    source = Listed([demo.record("single", 1), BAD])
    maker = BatchMaker((source,), tokenizer, (FitPolicy(600, refuse=True),))
    (good,), (refused,) = maker.measure([(0, 0), (0, 1)])
    assert good[0] > good[1] > 0 and refused == [-1, 0, 0, 0, 0]
    with pytest.raises(DataError, match="bad"):
        maker._replace(policies=(FitPolicy(600),)).measure([(0, 1)])


def test_more_refused_records_than_training_would_take(tokenizer):
    """Found before the teacher is asked for anything, and the first of them named."""
    source = Listed([*(demo.record("single", i) for i in range(3)), BAD])
    maker = BatchMaker((source, source[:3]), tokenizer, (FitPolicy(600, refuse=True),) * 2)

    def planned(fraction):
        stages = [SimpleNamespace(name=name) for name in "ab"]
        data = SimpleNamespace(stages=stages, max_bad_fraction=fraction, workers=0)
        alone = SimpleNamespace(rank=0, world_size=1, sum=lambda values: values)
        return plan_capture(data, maker, alone, batch_size=2, shard_rows=1)

    assert planned(0.25).num_refused == 1 and "bad" in planned(0.25).refused
    with pytest.raises(
        DataError,
        match=r"stage a: listed:4: record bad: half a surrogate.*\(1 of its 4 records are refused, more than "
        r"data.max_bad_fraction \(0.2\) allows\)",
    ):
        planned(0.2)


def keys_of(records) -> np.ndarray:
    return np.frombuffer(b"".join(record.entry.key for record in records), "<i8").reshape(-1, 2)


def missing_of(folder, records, writer, published, cuts=CUTS):
    plan = SimpleNamespace(keys=keys_of(records), of_shard=lambda what, shard: what[cuts[shard]])
    return read_missing(folder, SAMPLED, plan, writer, published)


def test_what_is_missing_is_what_was_said_to_be(tmp_path):
    """With its reason: by a manifest, or after a kill by what stands beside the shard."""
    records = records_of(signal_of(SAMPLED, 74), (13, 0, 1, 7, 1, 40, 3, 9))
    missing = Missing(records[4].entry.key, "the fifth", "the server refuses it")
    writer = CacheWriter(tmp_path, SAMPLED, IDENTITY)
    for shard, cut in enumerate(CUTS):
        some = [record.entry for record in records[cut] if record is not records[4]]
        writer.write_shard(shard, some, [missing] if shard == 1 else [])
    for finish in (False, True):
        if finish:
            writer.finish(3, [missing])
        again = CacheWriter(tmp_path, SAMPLED, IDENTITY)
        assert missing_of(tmp_path, records, again, [0, 1, 2]) == {1: [missing]}
        assert again.finished() == finish


@pytest.mark.parametrize("other", ["lacks one", "has another"])
def test_a_shard_of_other_records_is_no_shard_with_missing_ones(tmp_path, other):
    """Data, tokenizer and template are the same, and yet a record is rendered otherwise: nothing is called missing for
    that.
    """
    records = three_shards(tmp_path)
    whole = files(tmp_path)
    if other == "lacks one":
        records = [*records[:3], records_of(signal_of(SAMPLED, 5), (5,), name=9)[0], *records[3:]]
        cuts = (slice(0, 3), slice(3, 7), slice(7, 9))
    else:
        records, cuts = records[:-1], (slice(0, 3), slice(3, 6), slice(6, 7))
    writer = CacheWriter(tmp_path, SAMPLED, IDENTITY)
    with pytest.raises(
        CaptureError, match=r"shard-00000\d.safetensors does not hold the records that the data gives now \(1 differ\)"
    ):
        missing_of(tmp_path, records, writer, [0, 1, 2], cuts)
    assert files(tmp_path) == whole


def test_a_damaged_manifest_says_nothing_of_missing_records(tmp_path):
    """The same command captures again, as the message says, and does not stop at the same place."""
    records, said = three_shards(tmp_path), []
    (tmp_path / "manifest.json").write_text("")
    writer = CacheWriter(tmp_path, SAMPLED, IDENTITY, said.append)
    assert writer.missing == {} and "captured again" in said[0]
    assert missing_of(tmp_path, records, writer, sorted(writer.published())) == {}


def test_a_record_that_is_trained_turn_by_turn_is_captured_so():
    """Each turn is a sample of its own content; a record that is whole keeps its key and its place."""
    tokenizer = make_tokenizer(FORMS["block in the last"])
    source = Listed([rounds(2), chat("Hi", "Hello")])
    maker = BatchMaker((source,), tokenizer, (FitPolicy(400),))
    alone = SimpleNamespace(rank=0, world_size=1, sum=lambda values: values)
    data = SimpleNamespace(stages=[SimpleNamespace(name="a")], max_bad_fraction=0, workers=0)
    plan = plan_capture(data, maker, alone, batch_size=2, shard_rows=1)
    assert sorted(map(tuple, plan.places.tolist())) == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 1, 0)]
    assert (plan.num_records, plan.num_repeated, len(plan.rows)) == (2, 0, 5)
    ids = [name for number in range(3) for name in maker(plan.batch(number)).record_ids]
    assert sorted(ids) == ["r", "r#1", "r#3", "r#5", "r#7"]
    trained = {fit(encoded, FitPolicy(400)).key for record in source for encoded in encode_sequences(record, tokenizer)}
    assert {key.tobytes() for key in plan.keys} == trained
