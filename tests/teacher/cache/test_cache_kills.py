"""A cache being written: whatever ends it leaves what was published, and going on from there gives the same bytes."""

import errno
import os
import random
import resource
import shutil
from contextlib import contextmanager

import pytest

from helpers.cache_cases import (
    CUTS,
    IDENTITY,
    LENGTHS,
    SAMPLED,
    assert_same,
    expected,
    files,
    go_on,
    read,
    records_of,
    signal_of,
    three_shards,
)
from helpers.kills import killed_at
from kd.teacher.cache.reader import CacheReader
from kd.teacher.cache.spec import CacheError
from kd.teacher.cache.writer import CacheWriter

SHARD = "shard-000001.safetensors"


@pytest.mark.parametrize("begun", ["one shard", "a damaged shard"])
def test_a_kill_between_any_two_steps(tmp_path, begun, monkeypatch):
    """Two shards and the manifest, of a cache that has one; or one damaged shard of a finished cache. Nothing that was
    published is lost, what can be opened is right, and going on ends in the same bytes, with nothing left lying
    about."""
    monkeypatch.setattr(
        os, "fsync", lambda handle: None
    )  # a process's end loses nothing that was written; this is the slow part
    records = three_shards(tmp_path / "whole")
    whole, base, folder = files(tmp_path / "whole"), tmp_path / "base", tmp_path / "cache"
    if begun == "a damaged shard":
        shutil.copytree(tmp_path / "whole", base)
        (base / SHARD).write_bytes(whole[SHARD][:-1] + b"x")
    else:
        CacheWriter(base, SAMPLED, IDENTITY).write_shard(0, [r.entry for r in records[CUTS[0]]])
    before = CacheWriter(base, SAMPLED, IDENTITY, lambda text: None).published()
    step, seen = 1, set()
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)
        if not killed_at(step, lambda: go_on(folder, records)):
            break
        if (folder / "manifest.json").exists() and begun != "a damaged shard":
            assert_same(read(CacheReader(folder, IDENTITY), records, 1.0), expected(records, 1.0), SAMPLED)
        there = go_on(folder, records)
        assert there >= before
        assert files(folder) == whole
        seen.add(frozenset(there))
        step += 1
    assert files(folder) == whole and step > 40
    assert {frozenset(before), frozenset({0, 1, 2})} <= seen


def test_random_lives(tmp_path, monkeypatch):
    """Shards written in any order and twice, files damaged, lost and mixed up, kills: at no time is anything wrong
    read, and the capture that follows makes the whole cache of it."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    records = three_shards(tmp_path / "whole")
    whole, folder, rng = files(tmp_path / "whole"), tmp_path / "cache", random.Random(8)
    for _ in range(12):
        shutil.rmtree(folder, ignore_errors=True)
        for _ in range(rng.randint(1, 8)):
            there = sorted(folder.iterdir()) if folder.exists() else []
            act, index = rng.choice(("write", "write", "finish", "kill", "flip", "lose", "swap")), rng.randrange(3)
            if act == "write":
                CacheWriter(folder, SAMPLED, IDENTITY, lambda text: None).write_shard(
                    index, [r.entry for r in records[CUTS[index]]]
                )
            elif act == "finish":
                go_on(folder, records)
            elif act == "kill":
                killed_at(rng.randint(1, 60), lambda: go_on(folder, records))
            elif there and act == "flip":
                damaged = rng.choice(there)
                raw = bytearray(damaged.read_bytes())
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
                damaged.write_bytes(raw)
            elif there and act == "lose":
                rng.choice(there).unlink()
            elif there:
                shutil.copy(rng.choice(there), folder / f"shard-00000{index}.{rng.choice(('json', 'safetensors'))}")
            try:  # noqa: SIM105
                assert_same(read(CacheReader(folder, IDENTITY), records, 2.0), expected(records, 2.0), SAMPLED)
            except CacheError:
                pass  # which file, is asked elsewhere
        go_on(folder, records)
        assert files(folder) == whole


def test_a_write_that_is_torn(tmp_path):
    """Half of the bytes, then nothing: it is not even looked at, and goes when the cache is finished."""
    records = three_shards(tmp_path / "whole")
    writer = CacheWriter(tmp_path / "cache", SAMPLED, IDENTITY)
    part = tmp_path / "cache" / f".{SHARD}.{'0' * 32}.part"
    part.write_bytes(files(tmp_path / "whole")[SHARD][:100])
    assert writer.published() == set()
    go_on(tmp_path / "cache", records)
    assert files(tmp_path / "cache") == files(tmp_path / "whole")


@contextmanager
def no_file_above(size):
    """As on a full disk, writes fail midway: the kernel takes `size` bytes of a file and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 600])
def test_a_full_disk_leaves_what_was_published(tmp_path, size):
    records = three_shards(tmp_path / "whole")
    whole, folder = files(tmp_path / "whole"), tmp_path / "cache"
    writer = CacheWriter(folder, SAMPLED, IDENTITY)
    writer.write_shard(0, [r.entry for r in records[CUTS[0]]])
    before = files(folder)
    with (
        no_file_above(size),
        pytest.raises(CacheError, match=f"{SHARD} cannot be written .*: make room.* shards that are there are kept"),
    ):
        writer.write_shard(1, [r.entry for r in records[CUTS[1]]])
    assert files(folder) == before and writer.published() == {0}
    for index in (1, 2):
        writer.write_shard(index, [r.entry for r in records[CUTS[index]]])
    before = files(folder)
    with no_file_above(size), pytest.raises(CacheError, match="manifest.json cannot be written .*: make room"):
        writer.finish(3)
    assert files(folder) == before
    with pytest.raises(CacheError, match="manifest.json is not there"):
        CacheReader(folder)
    assert go_on(folder, records) == {0, 1, 2} and files(folder) == whole


@pytest.mark.parametrize("name", ["fsync", "rename"])
def test_a_disk_that_fails_late(tmp_path, name, monkeypatch):
    """Some systems say that the disk is full when they are asked to flush."""
    records = records_of(signal_of(SAMPLED, sum(LENGTHS)))
    writer = CacheWriter(tmp_path, SAMPLED, IDENTITY)
    writer.write_shard(0, [records[0].entry])
    before = files(tmp_path)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, name, full)
        with pytest.raises(
            CacheError, match="cannot be written: the disk is full .*: make room.* shards that are there are kept"
        ):
            writer.write_shard(1, [records[1].entry])
    assert files(tmp_path) == before and writer.published() == {0}
