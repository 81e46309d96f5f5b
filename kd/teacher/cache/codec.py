"""Codec of a teacher's rows: to bytes and back, whole micro-batches at once, in numpy, no loop over rows or tokens.

The layout is described in kd/teacher/cache/format.py. A number from a file is checked here before it is used as
a place or a token: a file with the right hash may still have been written by a faulty program.

    pack_samples     [n, num_draws + 1] ids and counts -> bytes          unpack_samples   bytes -> [n, K] ids and counts
    pack_ids         [n, K] ids -> [n, ids_bytes]                        unpack_ids       and back
    pack_log_probs   [n, K] nats -> uint16                               unpack_log_probs and back
    pack_entropy     [n] nats -> uint16                                  unpack_entropy   and back
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kd.teacher.cache.spec import CacheError, CacheSpec
from kernels.contract import NO_TOKEN

ENTROPY_STEPS = 4096  # a nat
UNKNOWN = 65535  # code of an unknown entropy
_NEAR, _NEAR_STEPS, _FAR_STEPS = 32768, 2048, 128  # log-probabilities above -16 in 1/2048 nat, those below in 1/128
_EXCLUDED = 65535  # code of a log-probability of -inf


def pack_samples(spec: CacheSpec, ids: NDArray, counts: NDArray) -> tuple[NDArray, int]:
    """Pack rows at one temperature as TeacherSamples has them.

    Args:
        ids, counts: [n, num_draws + 1] int32; NO_TOKEN in an empty slot of ids.

    Returns:
        uint8 [E * entry_bytes], and E, the number of entries.
    """
    used = ids != NO_TOKEN
    entries = ids[used].astype("<u4") | (counts[used].astype("<u4") << np.uint32(spec.id_bits))
    return entries.view(np.uint8).reshape(-1, 4)[:, : spec.entry_bytes].ravel(), len(entries)


def unpack_samples(
    spec: CacheSpec, data: Sequence[NDArray], num_rows: NDArray, num_entries: NDArray
) -> tuple[NDArray, NDArray]:
    """Unpack what pack_samples made of R records.

    Args:
        data: uint8 of each record.
        num_rows, num_entries: [R] of each record, sums n and E.

    Returns:
        ids and counts [n, K] int32, the rows' argmax in column 0; K is the widest row's number of entries. An empty
        slot has id -1 and count 0.

    Raises:
        CacheError: counts that do not end every row at num_draws and every record with a row, or an id past the
            vocabulary.
    """
    entries = _entries(data, spec.entry_bytes)
    id_bits, n = np.uint32(spec.id_bits), int(num_rows.sum())
    total = np.cumsum(entries >> id_bits, dtype=np.int64)
    rows_done = np.zeros(len(entries) + 1, np.int64)
    np.floor_divide(total, spec.draws, out=rows_done[1:])
    ends = np.flatnonzero(rows_done[1:] != rows_done[:-1])  # the last entry of each row
    starts = np.zeros(len(ends) + 1, np.int64)
    np.add(ends, 1, out=starts[1:])
    if (
        len(ends) != n
        or not np.array_equal(total[ends], np.arange(1, n + 1) * spec.draws)
        or not np.array_equal(starts[np.cumsum(num_rows)], np.cumsum(num_entries))
    ):
        raise CacheError(f"its counts do not add up to {spec.draws} draws in each of its rows")
    lengths = np.diff(starts)
    width = int(lengths.max(initial=1))
    slots = np.arange(len(entries)) + np.repeat(np.arange(n) * width - starts[:-1], lengths)
    whole = np.full(n * width, -1, np.int32)
    whole[slots] = entries.view(np.int32)  # an entry is below 2^31, and an empty slot has all bits
    empty = whole >> np.int32(31)
    ids = whole & (np.int32((1 << spec.id_bits) - 1) | empty)
    if n and ids.max() >= spec.vocab_size:
        raise CacheError(f"its token {ids.max()} is past the vocabulary of {spec.vocab_size}")
    return ids.reshape(n, width), np.maximum(whole >> np.int32(spec.id_bits), 0).reshape(n, width)


def _entries(data: Sequence[NDArray], entry_bytes: int) -> NDArray:
    """Read little-endian numbers of entry_bytes bytes as [E] uint32."""
    joined = np.concatenate([*data, np.zeros(4 - entry_bytes, np.uint8)])  # the last one is read as four bytes, too
    apart = np.ndarray(((len(joined) - (4 - entry_bytes)) // entry_bytes,), "<u4", joined, strides=(entry_bytes,))
    return apart & np.uint32((1 << (8 * entry_bytes)) - 1)


def pack_ids(spec: CacheSpec, ids: NDArray) -> NDArray:
    """Pack ids [n, K] to uint8 [n, ids_bytes]: id_bits bits each, the lowest bit first, with no gap between them."""
    packed = np.zeros((len(ids), spec.ids_bytes + 3), np.uint8)
    # Every eighth id begins at the same bit of a byte, id_bits bytes after the one before.
    for first in range(min(8, spec.kept)):
        some = ids[:, first::8].astype(np.uint32)
        at, shift = divmod(first * spec.id_bits, 8)
        for byte in range(4):  # with up to 23 bits it ends within four
            packed[:, at + byte :: spec.id_bits][:, : some.shape[1]] |= (
                (some << np.uint32(shift)) >> np.uint32(8 * byte)
            ).astype(np.uint8)
    return packed[:, : spec.ids_bytes]


def unpack_ids(spec: CacheSpec, packed: Sequence[NDArray]) -> NDArray:
    """Unpack ids [n, K] int32 from uint8 [n, ids_bytes], given in parts.

    Raises:
        CacheError: an id past the vocabulary.
    """
    # One more row: the last id is read as four bytes, and without rows the views below lie inside the buffer, too.
    joined = np.concatenate([*(part.reshape(-1) for part in packed), np.zeros(spec.ids_bytes + 3, np.uint8)])
    n = sum(map(len, packed))
    ids = np.empty((n, spec.kept), np.uint32)
    for first in range(min(8, spec.kept)):
        at, shift = divmod(first * spec.id_bits, 8)
        shape = n, len(range(first, spec.kept, 8))
        ids[:, first::8] = np.ndarray(shape, "<u4", joined, at, (spec.ids_bytes, spec.id_bits)) >> np.uint32(shift)
    ids &= np.uint32((1 << spec.id_bits) - 1)
    if ids.size and ids.max() >= spec.vocab_size:
        raise CacheError(f"its token {ids.max()} is past the vocabulary of {spec.vocab_size}")
    return ids.view(np.int32)


def pack_log_probs(log_probs: NDArray) -> NDArray:
    """Round log-probabilities, in nats from -inf to 0, to uint16 codes of the same shape.

    The error is at most half a step: of 1/2048 above -16, of 1/128 below. -272 and less becomes -271.98.
    """
    nats = np.maximum(-np.maximum(log_probs.astype(np.float64), -1e4), 0.0)
    far = np.minimum(_NEAR + np.rint((nats - 16) * _FAR_STEPS), _EXCLUDED - 1)
    near = np.rint(nats * _NEAR_STEPS)
    return np.where(np.isneginf(log_probs), _EXCLUDED, np.where(near < _NEAR, near, far)).astype("<u2")


def unpack_log_probs(codes: NDArray) -> NDArray:
    """Return float32 log-probabilities, in nats, of what pack_log_probs made."""
    return _LOG_PROBS[codes]


def pack_entropy(entropy: NDArray) -> NDArray:
    """Round entropies, in nats from 0 to 15.9997, to uint16 codes of the same shape.

    The error is at most half a step of 1/4096. NaN, an unknown entropy, has a code.
    """
    steps = np.rint(np.nan_to_num(entropy.astype(np.float64), nan=0.0) * ENTROPY_STEPS)
    return np.where(np.isnan(entropy), UNKNOWN, np.clip(steps, 0, UNKNOWN - 1)).astype("<u2")


def unpack_entropy(codes: NDArray) -> NDArray:
    """Return float32 entropies, in nats, of what pack_entropy made; NaN where unknown."""
    return np.where(codes == UNKNOWN, np.float32("nan"), codes * np.float32(1 / ENTROPY_STEPS))


def _log_prob_table() -> NDArray:
    codes = np.arange(65536, dtype=np.float64)
    nats = np.where(codes < _NEAR, codes / _NEAR_STEPS, 16 + (codes - _NEAR) / _FAR_STEPS)
    nats[_EXCLUDED] = np.inf
    return -nats.astype(np.float32)


_LOG_PROBS = _log_prob_table()
