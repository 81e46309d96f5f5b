"""Shard of a cache: the records of some capture batches as a safetensors file. The layout is described in
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
from kernels import TeacherSamples, TeacherTopK

_TAG = "cache"  # key of the file's metadata: digest of its cache, and its number in it


def shard_tag(cache_digest: str, index: int) -> str:
    """Write the metadata by which a file names its cache and its number in it."""
    return json.dumps([cache_digest, index])


def encode_shard(spec: CacheSpec, cache_digest: str, index: int, entries: Sequence[Entry]) -> tuple[bytes, ShardInfo]:
    """Encode records as a file: its bytes, the same for the same entries, and its line in the manifest.

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
        | _encode_rows(spec, entries)
        | _entropies(spec, entries)
    )
    # Make copies: from a view safetensors would write other bytes, silently.
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
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
    """Hash a shard's bytes; 64 hex digits."""
    return hashlib.sha256(raw).hexdigest()


def blocks_of(raw: bytes | memoryview) -> str:
    """Return the CRC-32 of each BLOCK bytes, 8 hex digits each."""
    return "".join(f"{zlib.crc32(raw[at : at + BLOCK]):08x}" for at in range(0, len(raw), BLOCK))


def _encode_rows(spec: CacheSpec, entries: Sequence[Entry]) -> dict[str, NDArray]:
    if spec.kind == "sampled":
        return _samples(spec, [e.rows for e in entries if isinstance(e.rows, TeacherSamples)])
    return _top_k(spec, [e.rows for e in entries if isinstance(e.rows, TeacherTopK)])


def _samples(spec: CacheSpec, records: Sequence[TeacherSamples]) -> dict[str, NDArray]:
    packed = [
        [pack_samples(spec, rows.ids[t].numpy(), rows.counts[t].numpy()) for rows in records]
        for t in range(len(spec.temperatures))
    ]
    data = {f"data_{t}": _joined([raw for raw, _ in of_t], np.uint8) for t, of_t in enumerate(packed)}
    return data | {"num_entries": np.array([[n for _, n in of_t] for of_t in packed], np.int32)}


def _top_k(spec: CacheSpec, records: Sequence[TeacherTopK]) -> dict[str, NDArray]:
    exact = spec.precision == "fp32"
    ids = np.concatenate([np.zeros((0, spec.kept), np.int32)] + [rows.ids.numpy() for rows in records])
    log_probs = np.concatenate(
        [np.zeros((0, spec.kept), np.float32)] + [rows.log_probs.float().numpy() for rows in records]
    )
    log_tail = np.concatenate(
        [np.zeros((len(spec.temperatures), 0), np.float32)] + [rows.log_tail.float().numpy() for rows in records], 1
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
    """Shard in memory: its tensors, memory-mapped, and each record's start in them."""

    tensors: dict[str, NDArray]
    num_rows: NDArray  # [R] int64
    first_row: NDArray  # [R + 1] int64
    first_entry: NDArray | None  # [M, R + 1] int64, of sampled
    tag: str

    def entry_span(self, t: int, record: int) -> tuple[int, int]:
        """Return the first and the past-the-last entry of a record at temperature number t (sampled)."""
        assert self.first_entry is not None, "entries are of a sampled cache"
        return int(self.first_entry[t, record]), int(self.first_entry[t, record + 1])


def open_shard(path: Path, spec: CacheSpec) -> Shard:
    """Map the shard at `path`; its header and shapes are checked, its contents are not.

    Raises:
        CacheError: the file is no shard of such a cache; what is wrong in it is named.
    """
    with _open_file(path) as file:
        tag = (file.metadata() or {}).get(_TAG, "")
        tensors = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118 (not a dict)
    problem = _check_tensors(spec, tensors)
    if problem:
        raise CacheError(f"{path} is no shard of this cache: {problem}")
    num_rows = tensors["num_rows"].astype(np.int64)
    first_entry = _starts(tensors["num_entries"]) if spec.kind == "sampled" else None
    return Shard(tensors, num_rows, _starts(num_rows), first_entry, tag)


def read_tag(path: Path) -> str:
    """Read the shard_tag that a file carries; "" where it has none. Raises CacheError for an unreadable header."""
    with _open_file(path) as file:
        return (file.metadata() or {}).get(_TAG, "")


@contextmanager
def _open_file(path: Path) -> Iterator:
    if path.exists() and not path.is_file():  # opening a pipe would wait for one who writes into it
        raise CacheError(f"{path} is no file: move it away")
    try:
        with safe_open(path, "pt") as file:  # of numpy it would make copies
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise CacheError(f"{path} is no readable safetensors file: {error}") from error


def _starts(lengths: NDArray) -> NDArray:
    return np.cumsum(np.insert(lengths.astype(np.int64), 0, 0, axis=-1), axis=-1)


def _check_tensors(spec: CacheSpec, tensors: dict[str, NDArray]) -> str | None:
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
            "log_probs": (real, (rows, spec.kept)),
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
