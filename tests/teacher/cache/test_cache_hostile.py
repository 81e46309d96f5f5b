"""A cache whose hashes all fit, from a program that is faulty or hostile: bounds hold, and what is wrong is refused by
file.
"""

import hashlib
import json
import random
import struct

import numpy as np
import pytest
import safetensors.numpy

from helpers.cache_cases import IDENTITY, LENGTHS, REMEDY, SAMPLED, TOP_K, read, refused, three_shards
from kd.teacher.cache import manifest as manifests
from kd.teacher.cache.reader import CacheReader
from kd.teacher.cache.shard import blocks_of, sha256_of, shard_tag
from kd.teacher.cache.spec import CacheError
from kd.teacher.cache.writer import CacheWriter

SHARD = "shard-000001.safetensors"


def with_manifest(folder, change):
    """The manifest with its content changed and hashed again."""
    content = json.loads((folder / "manifest.json").read_text())
    del content["sha256"]
    change(content)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n")


def with_shard(folder, raw, records=None):
    """The shard's bytes changed, and hashed again in the manifest."""
    (folder / SHARD).write_bytes(raw)
    old = manifests.read(folder / "manifest.json").shards[1]
    info = {
        "name": SHARD,
        "bytes": len(raw),
        "sha256": sha256_of(raw),
        "blocks": blocks_of(raw),
        "records": old.records if records is None else records,
        "rows": old.rows,
    }
    with_manifest(folder, lambda content: content["shards"].__setitem__(1, info))


NAMES = [
    "../shard-000001.safetensors",
    "/etc/passwd",
    "a/shard-000001.safetensors",
    "shard-000001.safetensors\n",
    "shard-000001.pt",
    "..",
    "",
    "shard-000007.safetensors",
    "shard-0000010.safetensors",
    "shard-\u0660\u0660\u0660\u0660\u0660\u0661.safetensors",
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_do_not_leave_the_folder(tmp_path, name):
    three_shards(tmp_path)
    with_manifest(tmp_path, lambda content: content["shards"][1].update(name=name))
    with pytest.raises(CacheError, match="manifest.json says what no cache can be .*: capture the cache again"):
        CacheReader(tmp_path)


@pytest.mark.parametrize(
    "path, value",
    [
        (("spec", "vocab_size"), 0),
        (("spec", "vocab_size"), 10**30),
        (("spec", "vocab_size"), "500"),
        (("spec", "num_draws"), 256),
        (("spec", "num_draws"), 0),
        (("spec", "num_draws"), None),
        (("spec", "top_k"), 3),
        (("spec", "kind"), "dense"),
        (("spec", "id_bits"), 10),
        (("spec", "temperatures"), []),
        (("spec", "temperatures"), [1.0, 1.0]),
        (("spec", "temperatures"), [-1.0]),
        (("spec", "temperatures"), [float("nan")]),
        (("spec", "temperatures"), [float("inf")]),
        (("spec", "precision"), "fp32"),
        (("spec", "precision"), 16),
        (("spec",), None),
        (("identity",), {"a": 1}),
        (("identity",), []),
        (("shards",), {}),
        (("shards", 0, "bytes"), -1),
        (("shards", 0, "bytes"), 1.5),
        (("shards", 0, "sha256"), "../x"),
        (("shards", 0, "blocks"), "xyz"),
        (("shards", 0, "records"), -2),
        (("shards", 0, "more"), 1),
        (("missing",), [{"key": "00", "record_id": "a", "reason": "b"}]),
        (("more",), 1),
    ],
)
def test_manifests_that_no_cache_has(tmp_path, path, value):
    three_shards(tmp_path)

    def change(content):
        for step in path[:-1]:
            content = content[step]
        content[path[-1]] = value

    with_manifest(tmp_path, change)
    with pytest.raises(CacheError, match="manifest.json says what no cache can be .*: capture the cache again"):
        CacheReader(tmp_path)


NO_MANIFESTS = [
    b"",
    b"\xff\xfe",
    b"{}",
    b"[]\n",
    b"null\n",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"9" * 10_000,
    b'{"sha256":1}\n',
]


@pytest.mark.parametrize("text", NO_MANIFESTS, ids=range(len(NO_MANIFESTS)))
def test_manifests_that_are_no_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(CacheError, match="manifest.json is damaged .*: restore it, or capture the cache again"):
        CacheReader(tmp_path)


def test_a_format_of_another_version(tmp_path):
    three_shards(tmp_path)
    with_manifest(tmp_path, lambda content: content.update(format="spanwise teacher cache 9"))
    with pytest.raises(
        CacheError, match="is of format 'spanwise teacher cache 9' and this program reads 'spanwise teacher cache 1'"
    ):
        CacheReader(tmp_path)


def test_a_sidecar_is_no_manifest(tmp_path):
    CacheWriter(tmp_path, SAMPLED, IDENTITY).write_shard(0, [])
    (tmp_path / "shard-000000.json").rename(tmp_path / "manifest.json")
    with pytest.raises(CacheError, match="is of format 'spanwise teacher cache 1, one shard'"):
        CacheReader(tmp_path)


def _header(raw):
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["data_0"].update(data_offsets=[0, 2**63]),
        lambda h: h["data_0"].update(data_offsets=[2**64 - 8, 2**64 - 1]),
        lambda h: h["data_0"].update(data_offsets=[5, 0]),
        lambda h: h["data_0"].update(shape=[2**40, 2**40]),
        lambda h: h["data_0"].update(shape=[-1]),
        lambda h: h["keys"].update(dtype="F8_E4M3"),
        lambda h: h["keys"].update(dtype="F4"),
        lambda h: h["entropy"].update(dtype="BF16"),
        lambda h: h["entropy"].update(dtype="F16"),
        lambda h: h["entropy"].update(shape=[1, 48]),
        lambda h: h["keys"].update(shape=[24, 2]),
        lambda h: h.pop("keys"),
        lambda h: h.update(more=h["keys"]),
        lambda h: h.clear(),
        lambda h: h["__metadata__"].update(cache=7),
        lambda h: h.update(data_2=h.pop("data_1")),
    ],
    ids=range(16),
)
def test_headers_that_no_shard_has(tmp_path, change):
    records = three_shards(tmp_path)
    header, body = _header((tmp_path / SHARD).read_bytes())
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with_shard(tmp_path, struct.pack("<Q", len(text)) + text + body)
    message = refused(tmp_path, records)
    assert str(tmp_path / SHARD) in message and "restore it" in message


@pytest.mark.parametrize("size", [0, 2**63, 2**64 - 1, 10**8])
def test_a_header_of_absurd_length(tmp_path, size):
    records = three_shards(tmp_path)
    raw = (tmp_path / SHARD).read_bytes()
    with_shard(tmp_path, struct.pack("<Q", size) + raw[8:])
    assert f"{tmp_path / SHARD} is no readable safetensors file" in refused(tmp_path, records)


def _changed(name, at, value):
    def change(tensors):
        tensors[name] = tensors[name].copy()
        tensors[name][at] = value

    return change


def _longer_row(tensors):
    """A draw more than there are in record 3's first row."""
    entries = tensors["data_0"].view("<u2").copy()
    entries[0] += 1 << 9
    tensors["data_0"] = entries.view(np.uint8)


def _a_draw_in_the_next_row(tensors):
    """Its first row has 51 draws and its second 49, so that rows and records end where they did."""
    entries = tensors["data_0"].view("<u2").copy()
    second = int(np.searchsorted(np.cumsum(entries >> 9), 50)) + 1
    assert entries[second] >> 9
    entries[second - 1] += 1 << 9
    entries[second] -= 1 << 9
    tensors["data_0"] = entries.view(np.uint8)


TENSORS = [
    (_changed("num_rows", 0, -1), "num_rows has a negative number"),
    (_changed("num_rows", 0, 2**31 - 1), "entropy is"),
    (
        _changed("num_rows", slice(0, 2), [2, 6]),
        "counts do not add up",
    ),  # the sum is right: rows of two records are confused
    (_changed("num_entries", (0, 0), -5), "num_entries has a negative number"),
    (_changed("num_entries", (0, 0), 2**31 - 1), "data_0 is"),
    (_changed("num_entries", (0, slice(0, 2)), [1, 39]), "data_0 is|counts do not add up"),
    (_changed("data_0", slice(None), 255), "counts do not add up"),
    (_changed("data_0", slice(None), 0), "counts do not add up"),
    (_longer_row, "counts do not add up"),
    (_a_draw_in_the_next_row, "counts do not add up"),
]


@pytest.mark.parametrize("change, problem", TENSORS, ids=range(len(TENSORS)))
def test_tensors_that_no_writer_makes(tmp_path, change, problem):
    """Counts of 50 in 6 bits, ids below 500 in 9: entries of 2 bytes. Records 3 to 5 have 7, 1 and 40 rows."""
    records = three_shards(tmp_path)
    tensors = safetensors.numpy.load((tmp_path / SHARD).read_bytes())
    tag = shard_tag(manifests.cache_digest(SAMPLED, IDENTITY), 1)
    change(tensors)
    with_shard(tmp_path, safetensors.numpy.save(tensors, {"cache": tag}))
    with pytest.raises(CacheError, match=f"{SHARD}.*({problem}).*; {REMEDY}"):
        entries = [record.entry for record in records[3:6]]
        CacheReader(tmp_path).read(
            [e.key for e in entries], [e.row_digest for e in entries], tensors["num_rows"].tolist(), 1.0
        )


@pytest.mark.parametrize("spec", [SAMPLED, TOP_K], ids=["sampled", "topk"])
def test_a_token_past_the_vocabulary(tmp_path, spec):
    """9 bits hold ids up to 511 and the vocabulary ends at 500."""
    records = three_shards(tmp_path, spec)
    tensors = safetensors.numpy.load((tmp_path / SHARD).read_bytes())
    if spec.kind == "sampled":
        entries = tensors["data_0"].view("<u2").copy()
        entries[3] |= 511
        tensors["data_0"] = entries.view(np.uint8)
    else:
        tensors["ids"] = tensors["ids"].copy()
        tensors["ids"][2] = 255
    tag = shard_tag(manifests.cache_digest(spec, IDENTITY), 1)
    with_shard(tmp_path, safetensors.numpy.save(tensors, {"cache": tag}))
    with pytest.raises(CacheError, match=f"{SHARD}: record 0, .* its token 511 is past the vocabulary of 500"):
        read(CacheReader(tmp_path), records[2:6], 1.0)


def test_random_headers_never_crash(tmp_path):
    """300 shards with a few bits of the header changed, hashes and all: read as they were, or refused by name."""
    records = three_shards(tmp_path)
    whole, rng = (tmp_path / SHARD).read_bytes(), random.Random(6)
    size = 8 + struct.unpack("<Q", whole[:8])[0]
    outcomes = {"read": 0, "refused": 0}
    for _ in range(300):
        raw = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 5))):
            raw[rng.randrange(size)] ^= 1 << rng.randrange(8)
        with_shard(tmp_path, bytes(raw))
        try:
            read(CacheReader(tmp_path), records, 1.0)
            outcomes["read"] += 1  # a tensor's name moved, say, to one that is as good
        except CacheError as error:
            assert SHARD in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 270


def test_the_number_of_records_must_be_the_manifests(tmp_path):
    records = three_shards(tmp_path)
    with_shard(tmp_path, (tmp_path / SHARD).read_bytes(), records=2)
    assert (
        f"{tmp_path / SHARD} has 3 records and {sum(LENGTHS[3:6])} rows, the manifest 2 and {sum(LENGTHS[3:6])}"
        in refused(tmp_path, records)
    )
