"""What a writer takes, what it refuses and why, and what it makes of a folder that is not empty."""

import pytest
import torch

from helpers.cache_cases import (
    CUTS,
    IDENTITY,
    SAMPLED,
    SPECS,
    TOP_K,
    files,
    go_on,
    records_of,
    signal_of,
    three_shards,
    write,
)
from kd.teacher.cache.reader import CacheReader
from kd.teacher.cache.spec import CacheError, CacheSpec
from kd.teacher.cache.writer import CacheWriter

SHARD = "shard-000001.safetensors"


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="file/cache cannot be made .*: change teacher.cache.path"):
        CacheWriter(tmp_path / "file" / "cache", SAMPLED, IDENTITY)


def test_damaged_shards_are_written_again_and_those_of_something_else_kept(tmp_path):
    records = three_shards(tmp_path / "whole")
    folder, said = tmp_path / "cache", []
    theirs = CacheWriter(folder, SAMPLED, IDENTITY | {"revision": "of another"})
    theirs.write_shard(0, [r.entry for r in records[CUTS[0]]])
    begun = files(folder)
    with pytest.raises(
        CacheError,
        match=r"cache that was begun, shard-000000.json is there, of something else \(identity revision was 'of "
        r"another' and is '3f2a'\)",
    ):
        CacheWriter(folder, SAMPLED, IDENTITY)
    assert files(folder) == begun
    (folder / "shard-000000.json").unlink()  # it is of nobody then
    ours = CacheWriter(folder, SAMPLED, IDENTITY, said.append)
    assert ours.published() == set() and "shard-000000.safetensors was not published" in said.pop()
    for index in range(3):
        ours.write_shard(index, [r.entry for r in records[CUTS[index]]])
    assert ours.published() == {0, 1, 2} and not said
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-1] + b"x")
    (folder / "shard-000002.json").write_bytes((folder / "shard-000002.json").read_bytes()[:-2])
    with pytest.raises(
        CacheError, match=f"is not finished: .*{SHARD} does not have the SHA-256.*; .*000002.json is damaged"
    ):
        ours.finish(3)
    assert go_on(folder, records, said) == {0}
    assert (
        len(said) == 2 and "written again" in said[0] and SHARD in said[0] and "shard-000002.json is damaged" in said[1]
    )
    assert files(folder) == files(tmp_path / "whole")


def test_shards_that_were_not_written_are_named(tmp_path):
    records = three_shards(tmp_path / "whole")
    writer = CacheWriter(tmp_path / "cache", SAMPLED, IDENTITY)
    writer.write_shard(1, [r.entry for r in records[CUTS[1]]])
    with pytest.raises(
        CacheError,
        match="shard-000000.safetensors was not published; .*000002.safetensors was not published; start the same",
    ):
        writer.finish(3)


def test_a_finished_cache_is_kept(tmp_path):
    """Of the same teacher it is gone on from; of another it is refused; a damaged manifest is written again from shards
    anew.
    """
    records = three_shards(tmp_path)
    whole = files(tmp_path)
    assert go_on(tmp_path, records) == {0, 1, 2} and files(tmp_path) == whole
    with pytest.raises(
        CacheError,
        match=r"holds a finished cache of something else \(identity revision was '3f2a' and is 'x'\): undo that "
        r"change, choose",
    ):
        CacheWriter(tmp_path, SAMPLED, IDENTITY | {"revision": "x"})
    with pytest.raises(CacheError, match="num_draws was 50 and is 20"):
        CacheWriter(tmp_path, SAMPLED._replace(num_draws=20), IDENTITY)
    (tmp_path / "manifest.json").write_bytes(whole["manifest.json"][:-9])
    said = []
    assert go_on(tmp_path, records, said) == set()
    assert "manifest.json is damaged" in said[0] and files(tmp_path) == whole


def test_what_else_is_in_the_folder_stays(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "shard-extra.safetensors").write_text("mine")
    write(tmp_path, SAMPLED, [[], []])
    write(tmp_path, SAMPLED, [[]])
    assert set(files(tmp_path)) == {"notes.txt", "shard-extra.safetensors", "manifest.json", "shard-000000.safetensors"}


def _put(field, at, value):
    def change(rows):
        tensor = getattr(rows, field).clone()
        tensor[at] = value
        return rows._replace(**{field: tensor})

    return change


nan, inf = float("nan"), float("inf")
REFUSED = [
    ("sampled", _put("ids", (0, 2, 1), 500), "drawn token is not below vocab_size"),
    ("sampled", _put("ids", (1, 2, 0), -5), "drawn token is not below vocab_size"),
    ("sampled", _put("counts", (0, 2, 0), 60), "counts are not those of 50 draws"),
    ("sampled", _put("counts", (0, 2, slice(0, 2)), torch.tensor([-1, 51])), "counts are not those of 50 draws"),
    ("sampled", _put("argmax", 3, 499), "the first token is not the argmax"),
    ("sampled", _put("ids", (0, 0, slice(1, 3)), torch.tensor([7, 6])), "ascending order|there twice"),
    ("sampled", _put("entropy", 1, nan), "an entropy is negative, too large or not finite"),
    ("sampled", _put("entropy_t", (1, 0), 16.0), "an entropy is negative"),
    ("sampled", _put("entropy_t", (1, 0), -0.5), "an entropy is negative"),
    ("sampled", lambda rows: rows._replace(temperatures=(1.0, 3.0)), "its rows are at temperatures"),
    ("sampled", lambda rows: rows._replace(num_draws=49), "its rows have 49 draws"),
    ("sampled", lambda rows: rows._replace(ids=rows.ids[:, :, :9]), "ids is"),
    ("topk", _put("log_probs", (2, 1), nan), "above 0 or NaN"),
    ("topk", _put("log_probs", (2, 1), 0.5), "above 0 or NaN"),
    ("topk", _put("log_probs", (2, 0), -inf), "above 0 or NaN"),
    ("topk", _put("log_tail", (1, 2), nan), "above 0 or NaN"),
    ("topk", lambda rows: _put("ids", (0, 1), rows.ids[0, 0])(rows), "a token is there twice"),
    (
        "topk",
        lambda rows: _put("ids", (0, slice(0, 2)), rows.ids[0, :2].flip(0))(rows),
        "the first token is not the argmax",
    ),
    ("topk", _put("ids", (0, 4), -1), "kept token is not below"),
    ("topk", _put("entropy", slice(None), nan), "an entropy is negative"),
    ("topk", lambda rows: signal_of(SAMPLED, 5), "takes TeacherTopK, not TeacherSamples"),
]


@pytest.mark.parametrize("kind, change, problem", REFUSED, ids=range(len(REFUSED)))
def test_rows_that_no_teacher_gives(tmp_path, kind, change, problem):
    """The record is named, and nothing is written."""
    spec = {"sampled": SAMPLED, "topk": TOP_K}[kind]
    good, record = records_of(signal_of(spec, 10), (5, 5))
    writer = CacheWriter(tmp_path, spec, IDENTITY)
    bad = record.entry._replace(rows=change(record.entry.rows))
    with pytest.raises(CacheError, match=f"record {record.entry.key.hex()}: .*({problem})"):
        writer.write_shard(0, [good.entry, bad])
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    "spec, problem",
    [
        (CacheSpec("dense", 500, (1.0,)), "kind is 'dense'; it is one of sampled, topk"),
        (CacheSpec("sampled", 500, (1.0,)), "num_draws is None"),
        (CacheSpec("sampled", 500, (1.0,), 256), "between 1 and 255"),
        (CacheSpec("sampled", 500, (), 50), "one or more distinct numbers above 0"),
        (CacheSpec("sampled", 500, (1.0, 1), 50), "distinct"),
        (CacheSpec("sampled", 2**23 + 1, (1.0,), 50), "vocab_size is 8388609"),
        (CacheSpec("sampled", 500, (1.0,), 50, 3), "are of a topk cache"),
        (CacheSpec("topk", 500, (1.0,), None, 501), "top_k is 501; it must lie between 1 and vocab_size, 500"),
        (CacheSpec("topk", 500, (1.0,), 50, 3), "num_draws is of a sampled cache"),
        (CacheSpec("topk", 500, (1.0,), None, 3, "fp16"), "16bit, fp32"),
    ],
)
def test_specs_that_cannot_be(tmp_path, spec, problem):
    with pytest.raises(CacheError, match=problem):
        CacheWriter(tmp_path, spec, IDENTITY)


def test_an_identity_that_is_not_all_text(tmp_path):
    with pytest.raises(CacheError, match="cannot be described: .*identity.seed"):
        CacheWriter(tmp_path, SAMPLED, {"seed": 3})
    odd = {"teacher": "half \ud800 of a pair, \u20ac\n\0"}
    write(tmp_path, SAMPLED, [], odd)
    assert CacheReader(tmp_path, odd).manifest.identity == odd


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_numbers_of_a_wider_teacher(tmp_path, spec):
    """An fp64 head gives fp64 floats; the cache keeps fp32."""
    signal = signal_of(spec, 8)
    wide = signal._replace(
        **{k: v.double() for k, v in signal._asdict().items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    )
    records = records_of(signal, (8,))
    write(tmp_path / "a", spec, [records])
    write(tmp_path / "b", spec, [records_of(wide, (8,))])
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert (tmp_path / "a" / "manifest.json").stat().st_size < 2000
