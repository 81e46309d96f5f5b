"""One shard of a cache: the records of some capture batches as a safetensors file. The layout is described in
kd/teacher/cache/format.py.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from kd.batching.record_key import DIGEST_BYTES, KEY_BYTES
from kd.teacher.cache.check_rows import check_rows
from kd.teacher.cache.codec import pack_entropy, pack_ids, pack_log_probs, pack_samples
from kd.teacher.cache.manifest import BLOCK, MAX_INDEX, ShardInfo, shard_name
from kd.teacher.cache.spec import CacheError, CacheSpec, Entry

_TAG = "cache"  # of the file's metadata: which cache it is of, and which of its shards it is


def shard_tag(cache_digest: str, index: int) -> str:
    return json.dumps([cache_digest, index])


def encode_shard(spec: CacheSpec, cache_digest: str, index: int, entries: Sequence[Entry]) -> tuple[bytes, ShardInfo]:
    """The file's bytes, the same for the same entries, and what the manifest says of them.

    Raises:
        CacheError: rows that are not of the spec, or that no teacher gives; the record's key is named.
    """
    assert 0 <= index <= MAX_INDEX
    for entry in entries:
        if len(entry.key) != KEY_BYTES or len(entry.row_digest) != DIGEST_BYTES:
            raise CacheError(
                f"record {entry.key.hex()}: a key has {KEY_BYTES} bytes and a row digest {DIGEST_BYTES}: see "
                "kd.batching.record_key"
            )
        problem = check_rows(spec, entry.rows)
        if problem:
            raise CacheError(f"record {entry.key.hex()}: {problem}")
    tensors = (
        {
            "keys": np.frombuffer(b"".join(e.key for e in entries), np.uint8).reshape(-1, KEY_BYTES),
            "row_digests": np.frombuffer(b"".join(e.row_digest for e in entries), np.uint8).reshape(-1, DIGEST_BYTES),
            "num_rows": np.array([len(e.rows.argmax) for e in entries], np.int32),
        }
        | (_samples if spec.kind == "sampled" else _top_k)(spec, entries)
        | _entropies(spec, entries)
    )
    tensors = {
        name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()
    }  # of a view it would write other bytes, silently
    raw = safetensors.numpy.save(tensors, {_TAG: shard_tag(cache_digest, index)})
    return raw, ShardInfo(
        name=shard_name(index),
        bytes=len(raw),
        sha256=sha256_of(raw),
        blocks=blocks_of(raw),
        records=len(entries),
        rows=int(tensors["num_rows"].sum()),
    )


def sha256_of(raw: bytes | memoryview) -> str:
    return hashlib.sha256(raw).hexdigest()


def blocks_of(raw: bytes | memoryview) -> str:
    """The CRC-32 of each BLOCK bytes, 8 hex digits each."""
    return "".join(f"{zlib.crc32(raw[at : at + BLOCK]):08x}" for at in range(0, len(raw), BLOCK))


def _samples(spec: CacheSpec, entries: Sequence[Entry]) -> dict[str, NDArray]:
    packed = [
        [pack_samples(spec, e.rows.ids[t].numpy(), e.rows.counts[t].numpy()) for e in entries]
        for t in range(len(spec.temperatures))
    ]
    data = {f"data_{t}": _joined([raw for raw, _ in of_t], np.uint8) for t, of_t in enumerate(packed)}
    return data | {"num_entries": np.array([[n for _, n in of_t] for of_t in packed], np.int32)}


def _top_k(spec: CacheSpec, entries: Sequence[Entry]) -> dict[str, NDArray]:
    exact = spec.precision == "fp32"
    ids = np.concatenate([np.zeros((0, spec.top_k), np.int32)] + [e.rows.ids.numpy() for e in entries])
    log_probs = np.concatenate(
        [np.zeros((0, spec.top_k), np.float32)] + [e.rows.log_probs.float().numpy() for e in entries]
    )
    log_tail = np.concatenate(
        [np.zeros((len(spec.temperatures), 0), np.float32)] + [e.rows.log_tail.float().numpy() for e in entries], 1
    )
    return {
        "ids": pack_ids(spec, ids),
        "log_probs": log_probs if exact else pack_log_probs(log_probs),
        "log_tail": log_tail,
    }


def _entropies(spec: CacheSpec, entries: Sequence[Entry]) -> dict[str, NDArray]:
    pack = pack_entropy if spec.precision == "16bit" else lambda nats: nats.astype(np.float32)
    at_one = {"entropy": pack(_joined([e.rows.entropy.numpy() for e in entries], np.float32))}
    if not spec.tempered:
        return at_one
    return at_one | {
        "entropy_t": np.stack(
            [pack(_joined([e.rows.entropy_t[t].numpy() for e in entries], np.float32)) for t in spec.tempered]
        )
    }


def _joined(parts: list[NDArray], dtype: type) -> NDArray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


class Shard(NamedTuple):
    """A shard's tensors, memory-mapped, and where each record begins in them."""

    tensors: dict[str, NDArray]
    num_rows: NDArray  # [R] int64
    first_row: NDArray  # [R + 1] int64
    first_entry: NDArray | None  # [M, R + 1] int64, of sampled
    tag: str


def open_shard(path: Path, spec: CacheSpec) -> Shard:
    """Map the shard at `path`; its header and shapes are checked, its contents are not.

    Raises:
        CacheError: the file is no shard of such a cache; what is wrong in it is named.
    """
    with _opened(path) as file:
        tag = (file.metadata() or {}).get(_TAG, "")
        tensors = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118 (not a dict)
    problem = _misshapen(spec, tensors)
    if problem:
        raise CacheError(f"{path} is no shard of this cache: {problem}")
    num_rows = tensors["num_rows"].astype(np.int64)
    first_entry = _starts(tensors["num_entries"]) if spec.kind == "sampled" else None
    return Shard(tensors, num_rows, _starts(num_rows), first_entry, tag)


def read_tag(path: Path) -> str:
    """Which shard of which cache the file says it is, as shard_tag; "" where it says nothing. Raises CacheError for an
    unreadable header.
    """
    with _opened(path) as file:
        return (file.metadata() or {}).get(_TAG, "")


@contextmanager
def _opened(path: Path) -> Iterator:
    try:
        with safe_open(path, "pt") as file:  # of numpy it would make copies
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise CacheError(f"{path} is no readable safetensors file: {error}") from error


def _starts(lengths: NDArray) -> NDArray:
    return np.cumsum(np.insert(lengths.astype(np.int64), 0, 0, axis=-1), axis=-1)


def _misshapen(spec: CacheSpec, tensors: dict[str, NDArray]) -> str | None:
    if "num_rows" not in tensors or tensors["num_rows"].ndim != 1 or tensors["num_rows"].dtype != np.int32:
        return "num_rows is missing or no int32 vector"
    records, temps = len(tensors["num_rows"]), len(spec.temperatures)
    if (tensors["num_rows"] < 0).any():
        return "num_rows has a negative number"
    rows = int(tensors["num_rows"].sum(dtype=np.int64))
    real = np.uint16 if spec.precision == "16bit" else np.float32
    wanted = {
        "keys": (np.uint8, (records, KEY_BYTES)),
        "row_digests": (np.uint8, (records, DIGEST_BYTES)),
        "num_rows": (np.int32, (records,)),
        "entropy": (real, (rows,)),
    }
    if spec.tempered:
        wanted["entropy_t"] = (real, (len(spec.tempered), rows))
    if spec.kind == "topk":
        wanted |= {
            "ids": (np.uint8, (rows, spec.ids_bytes)),
            "log_probs": (real, (rows, spec.top_k)),
            "log_tail": (np.float32, (temps, rows)),
        }
    else:
        wanted["num_entries"] = (np.int32, (temps, records))
        found = tensors.get("num_entries")
        if found is not None and found.shape == (temps, records) and found.dtype == np.int32:
            if (found < 0).any():
                return "num_entries has a negative number"
            totals = found.sum(1, dtype=np.int64)
            wanted |= {f"data_{t}": (np.uint8, (int(totals[t]) * spec.entry_bytes,)) for t in range(temps)}
    if tensors.keys() != wanted.keys():
        return f"its tensors are {sorted(tensors)}, not {sorted(wanted)}"
    for name, (dtype, shape) in wanted.items():
        if tensors[name].dtype != dtype or tensors[name].shape != shape:
            return f"{name} is {tensors[name].dtype} {list(tensors[name].shape)}, not {np.dtype(dtype)} {list(shape)}"
    return None
