"""Nothing of a damaged or foreign cache is given out: it is refused by file and, where it can be told, by place."""

import os
import random
import shutil

import pytest

from helpers.cache_cases import (
    IDENTITY,
    REMEDY,
    SAMPLED,
    TOP_K,
    assert_same,
    expected,
    read,
    records_of,
    refused,
    signal_of,
    three_shards,
    write,
)
from kd.teacher.cache.reader import CacheReader
from kd.teacher.cache.spec import CacheError

SHARD = "shard-000001.safetensors"


@pytest.mark.parametrize("spec", [SAMPLED, TOP_K], ids=["sampled", "topk"])
def test_one_flipped_bit_at_200_places(tmp_path, spec):
    """Each is named: by the manifest, by reading, and by `verify`, which says where; nothing is reported that is not
    there.
    """
    records = three_shards(tmp_path, spec)
    files = sorted(tmp_path.iterdir())
    sizes = [path.stat().st_size for path in files]
    rng = random.Random(20)
    for place in rng.sample(range(8 * sum(sizes)), 180) + rng.sample(range(8 * sizes[0]), 20):
        byte, bit = divmod(place, 8)
        file = next(i for i in range(len(files)) if byte < sum(sizes[: i + 1]))
        at, path = byte - sum(sizes[:file]), files[file]
        whole = path.read_bytes()
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        message = refused(tmp_path, records)
        assert str(path) in message and "restore it" in message, (path, at, bit, message)
        if path.name != "manifest.json":
            assert "changed within offsets 0 to" in message or "it says that it is" in message
            reader = _opened(tmp_path)
            problems = reader.verify() if reader else [message]
            assert len(problems) == 1 and str(path) in problems[0]
        path.write_bytes(whole)
    assert CacheReader(tmp_path, IDENTITY).verify() == []


def _opened(folder):
    try:
        return CacheReader(folder)
    except CacheError:
        return None


def test_a_shard_mended_after_it_was_opened_is_read_as_it_is_now(tmp_path):
    """Mended as capture mends it: another file in its place. What was mapped before is of the damaged one."""
    records = three_shards(tmp_path)
    path, wanted = tmp_path / SHARD, expected(records, 1.0)
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little") + 36  # of the entropies
    path.write_bytes(whole[:begin] + bytes(byte ^ 1 for byte in whole[begin : begin + 96]) + whole[begin + 96 :])
    reader = CacheReader(tmp_path)
    mended = tmp_path / "mended"
    mended.write_bytes(whole)
    mended.replace(path)
    assert_same(read(reader, records, 1.0), wanted, SAMPLED)


def test_damage_is_told_by_its_64_kib(tmp_path):
    records = records_of(signal_of(SAMPLED, 2000), [500] * 4)
    write(tmp_path, SAMPLED, [records])
    path = tmp_path / "shard-000000.safetensors"
    raw = bytearray(path.read_bytes())
    assert len(raw) > 3 * 65536
    raw[70_000] ^= 1
    raw[-1] ^= 128
    path.write_bytes(raw)
    last = len(raw) - 1
    (problem,) = CacheReader(tmp_path).verify()
    assert f"changed within offsets 65536 to 131071, {last // 65536 * 65536} to {last}" in problem


@pytest.mark.parametrize("left", [0, 1, 8, 100, 400, -1])
def test_a_shard_cut_short(tmp_path, left):
    records = three_shards(tmp_path)
    whole = (tmp_path / SHARD).read_bytes()
    (tmp_path / SHARD).write_bytes(whole[:left])
    size = len(whole[:left])
    assert f"{tmp_path / SHARD} has {size} bytes, not {len(whole)}: it ends at offset {size}" in refused(
        tmp_path, records
    )


def test_a_shard_with_more_behind_it(tmp_path):
    records = three_shards(tmp_path)
    with (tmp_path / SHARD).open("ab") as file:
        file.write(b"\0")
    assert f"{SHARD} has " in refused(tmp_path, records)


def test_a_shard_cut_short_while_it_is_mapped(tmp_path):
    """Touching the missing pages would be a SIGBUS, which no handler survives."""
    records = three_shards(tmp_path)
    reader = CacheReader(tmp_path)
    read(reader, records, 1.0)
    with (tmp_path / SHARD).open("r+b") as file:
        file.truncate(10)
    with pytest.raises(CacheError, match=f"{SHARD} has 10 bytes.*; {REMEDY}"):
        read(reader, records, 1.0)


def test_a_shard_that_changes_after_the_cache_was_opened(tmp_path):
    records = three_shards(tmp_path)
    reader = CacheReader(tmp_path)
    raw = bytearray((tmp_path / SHARD).read_bytes())
    raw[-1] ^= 4
    (tmp_path / SHARD).write_bytes(raw)
    with pytest.raises(CacheError, match=f"{SHARD} does not have the SHA-256.*; {REMEDY}"):
        read(reader, records[3:5], 1.0)


def test_missing_foreign_and_swapped_shards(tmp_path):
    records = three_shards(tmp_path / "ours")
    three_shards(tmp_path / "theirs", identity=IDENTITY | {"revision": "of another"})
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    whole = (ours / SHARD).read_bytes()
    (ours / SHARD).unlink()
    assert f"{ours / SHARD} is missing; restore it" in refused(ours, records)

    shutil.copy(theirs / SHARD, ours / SHARD)
    assert f"{ours / SHARD} is a shard of another cache" in refused(ours, records)

    (ours / SHARD).write_bytes(whole)
    other = ours / "shard-000002.safetensors"
    other.rename(ours / "x"), (ours / SHARD).rename(other), (ours / "x").rename(ours / SHARD)
    message = refused(ours, records)
    assert "another shard of this one" in message and SHARD in message


@pytest.mark.parametrize("name", [SHARD, "manifest.json"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, name, make):
    records = three_shards(tmp_path)
    (tmp_path / name).unlink()
    make(tmp_path / name)
    assert f"{tmp_path / name} is no file: move it away" in refused(tmp_path, records)


def test_swapped_shards_of_one_shape(tmp_path):
    """Every length agrees, so that only the hash tells."""
    signal = signal_of(TOP_K, 8)
    records = records_of(signal, (4, 4))
    write(tmp_path, TOP_K, [records[:1], records[1:]])
    first, second = (tmp_path / f"shard-00000{i}.safetensors" for i in range(2))
    assert first.stat().st_size == second.stat().st_size
    first.rename(tmp_path / "x"), second.rename(first), (tmp_path / "x").rename(second)
    assert "another shard of this one" in refused(tmp_path, records)


def test_a_damaged_key_is_not_reported_as_absence(tmp_path):
    records = three_shards(tmp_path)
    raw = (tmp_path / SHARD).read_bytes()
    key = records[4].entry.key
    assert raw.count(key) == 1
    (tmp_path / SHARD).write_bytes(raw.replace(key, bytes([key[0] ^ 1]) + key[1:]))
    with pytest.raises(
        CacheError, match=f"record {key.hex()} is not found, and the cache is damaged: .*{SHARD} .* SHA-256"
    ):
        read(CacheReader(tmp_path), [records[4]], 1.0)
