"""Rows of a teacher's signal as bytes, and back: whole micro-batches at once, in numpy, with no loop over rows or tokens.

The layout is described in kd/teacher/cache.py. Everything that comes from a file is checked here before it is used as a
place or a token: a file with the right hash may still have been written by a faulty program.

    pack_samples     [n, num_draws + 1] ids and counts -> bytes          unpack_samples   bytes -> [n, K] ids and counts
    pack_ids         [n, K] ids -> [n, ids_bytes]                        unpack_ids       and back
    pack_log_probs   [n, K] nats -> uint16                               unpack_log_probs and back
    pack_entropy     [n] nats -> uint16                                  unpack_entropy   and back
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kd.teacher.spec import CacheError, CacheSpec
from kernels.contract import NO_TOKEN

ENTROPY_STEPS = 4096  # a nat
UNKNOWN = 65535  # code of an entropy that nobody knows
_NEAR, _NEAR_STEPS, _FAR_STEPS = 32768, 2048, 128  # log-probabilities above -16 in 1/2048 nat, those below in 1/128
_EXCLUDED = 65535  # code of a log-probability of -inf


def pack_samples(spec: CacheSpec, ids: NDArray, counts: NDArray) -> tuple[NDArray, int]:
    """Bytes [E * entry_bytes] and E, the number of entries, of rows as TeacherSamples has them at one temperature."""
    used = ids != NO_TOKEN
    entries = ids[used].astype("<u4") | (counts[used].astype("<u4") << np.uint32(spec.id_bits))
    return entries.view(np.uint8).reshape(-1, 4)[:, :spec.entry_bytes].ravel(), len(entries)


def unpack_samples(spec: CacheSpec, data: NDArray, num_rows: NDArray, num_entries: NDArray) -> tuple[NDArray, NDArray]:
    """ids and counts [n, K] int32 and the rows' argmax in column 0; K is the widest row's number of entries.

    Args:
        data: [E * entry_bytes] uint8 of several records, one after another.
        num_rows, num_entries: [R] of each record, sums n and E.

    Raises:
        CacheError: counts that do not end every row at num_draws, a record that does not end with a row, an id past the vocabulary.
    """
    entries = _entries(data, spec.entry_bytes)
    ids = (entries & np.uint32((1 << spec.id_bits) - 1)).view(np.int32)
    counts = (entries >> np.uint32(spec.id_bits)).view(np.int32)
    total = np.cumsum(counts, dtype=np.int64)
    rows_done = total // spec.num_draws
    ends = np.flatnonzero(np.diff(rows_done, prepend=0)) + 1  # one past each row's last entry
    n = int(num_rows.sum())
    record_ends = np.concatenate([[0], ends])[np.minimum(np.cumsum(num_rows), len(ends))]
    if (len(ends) != n or not np.array_equal(total[ends - 1], spec.num_draws * np.arange(1, n + 1))
            or not np.array_equal(record_ends, np.cumsum(num_entries))):
        raise CacheError(f"counts do not add up to {spec.num_draws} draws a row")
    if len(ids) and ids.max() >= spec.vocab_size:
        raise CacheError(f"token {ids.max()} is past the vocabulary of {spec.vocab_size}")
    lengths = np.diff(ends, prepend=0)
    width = int(lengths.max(initial=1))
    slots = np.arange(len(ids)) + np.repeat(np.arange(n) * width - (ends - lengths), lengths)
    return _scattered(ids, slots, n, width, NO_TOKEN), _scattered(counts, slots, n, width, 0)


def _entries(data: NDArray, entry_bytes: int) -> NDArray:
    """[E] uint32 of little-endian numbers of entry_bytes bytes."""
    wide = np.zeros((len(data) // entry_bytes, 4), np.uint8)
    wide[:, :entry_bytes] = data.reshape(-1, entry_bytes)
    return wide.view("<u4")[:, 0]


def _scattered(values: NDArray, slots: NDArray, n: int, width: int, empty: int) -> NDArray:
    whole = np.full(n * width, empty, np.int32)
    whole[slots] = values
    return whole.reshape(n, width)


def pack_ids(spec: CacheSpec, ids: NDArray) -> NDArray:
    """[n, ids_bytes] uint8: ids of id_bits bits, the lowest bit first, with no gap between them."""
    bits = (ids.astype(np.uint32)[:, :, None] >> np.arange(spec.id_bits, dtype=np.uint32)) & np.uint32(1)
    return np.packbits(bits.astype(np.uint8).reshape(len(ids), spec.top_k * spec.id_bits), axis=1, bitorder="little")


def unpack_ids(spec: CacheSpec, packed: NDArray) -> NDArray:
    """[n, K] int32 of [n, ids_bytes].

    Raises:
        CacheError: an id past the vocabulary.
    """
    wide = np.zeros((len(packed), spec.ids_bytes + 3), np.uint8)
    wide[:, :spec.ids_bytes] = packed
    at = np.arange(spec.top_k) * spec.id_bits
    words = np.zeros((len(packed), spec.top_k), np.uint32)
    for byte in range(4):  # an id of up to 23 bits that begins anywhere in a byte ends within four
        words |= wide[:, at // 8 + byte].astype(np.uint32) << np.uint32(8 * byte)
    ids = ((words >> (at % 8).astype(np.uint32)) & np.uint32((1 << spec.id_bits) - 1)).view(np.int32)
    if ids.size and ids.max() >= spec.vocab_size:
        raise CacheError(f"token {ids.max()} is past the vocabulary of {spec.vocab_size}")
    return ids


def pack_log_probs(log_probs: NDArray) -> NDArray:
    """uint16 of nats, -inf to 0: half a step of 1/2048 off at most above -16, of 1/128 below; -272 and less becomes -271.98."""
    nats = np.maximum(-np.maximum(log_probs.astype(np.float64), -1e4), 0.0)
    far = np.minimum(_NEAR + np.rint((nats - 16) * _FAR_STEPS), _EXCLUDED - 1)
    near = np.rint(nats * _NEAR_STEPS)
    return np.where(np.isneginf(log_probs), _EXCLUDED, np.where(near < _NEAR, near, far)).astype("<u2")


def unpack_log_probs(codes: NDArray) -> NDArray:
    """float32 of what pack_log_probs made."""
    return _LOG_PROBS[codes]


def pack_entropy(entropy: NDArray) -> NDArray:
    """uint16 of nats in [0, 15.9997], half a step of 1/4096 off at most; NaN, an entropy that nobody knows, has a code."""
    steps = np.rint(np.nan_to_num(entropy.astype(np.float64), nan=0.0) * ENTROPY_STEPS)
    return np.where(np.isnan(entropy), UNKNOWN, np.clip(steps, 0, UNKNOWN - 1)).astype("<u2")


def unpack_entropy(codes: NDArray) -> NDArray:
    """float32 of what pack_entropy made."""
    return np.where(codes == UNKNOWN, np.float32("nan"), codes * np.float32(1 / ENTROPY_STEPS))


def _log_prob_table() -> NDArray:
    codes = np.arange(65536, dtype=np.float64)
    nats = np.where(codes < _NEAR, codes / _NEAR_STEPS, 16 + (codes - _NEAR) / _FAR_STEPS)
    nats[_EXCLUDED] = np.inf
    return -nats.astype(np.float32)


_LOG_PROBS = _log_prob_table()
