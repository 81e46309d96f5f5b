"""Lookup of a record's rows: an index by content of all shards, 32 bytes a record in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kd.batching.record_key import DIGEST_BYTES, KEY_BYTES
from kd.teacher.cache.shard import Shard

# Byte strings of one length compare as their bytes do; numpy hides zeros at a string's end only when it shows one.
_PAIR = f"S{KEY_BYTES + DIGEST_BYTES}"


class Lookup:
    """Records by key and row digest: the same tokens with other supervised positions are another record.

    Of several equal ones (the same conversation twice in the data) the first counts.
    """

    def __init__(self, shards: Sequence[Shard]):
        pairs = [np.concatenate([s.tensors["keys"], s.tensors["row_digests"]], 1) for s in shards]
        joined = np.concatenate([np.zeros((0, KEY_BYTES + DIGEST_BYTES), np.uint8), *pairs]).view(_PAIR)[:, 0]
        counts = [len(s.num_rows) for s in shards]
        order = np.argsort(joined, kind="stable")
        self._pairs = joined[order]
        self._shards = np.repeat(np.arange(len(counts), dtype=np.int32), counts)[order]
        self._records = np.concatenate([np.zeros(0, np.int32), *(np.arange(n, dtype=np.int32) for n in counts)])[order]

    def find(self, keys: Sequence[bytes], row_digests: Sequence[bytes]) -> tuple[list[int], list[int], int | None]:
        """Find records: the shard and the place in it of each, and the index of the first that is not there, if any."""
        wanted = np.frombuffer(b"".join(k + d for k, d in zip(keys, row_digests, strict=True)), _PAIR)
        if not len(self._pairs):
            return [], [], 0
        at = np.minimum(np.searchsorted(self._pairs, wanted), len(self._pairs) - 1)
        absent = np.flatnonzero(self._pairs[at] != wanted)
        return self._shards[at].tolist(), self._records[at].tolist(), int(absent[0]) if len(absent) else None

    def has_key(self, key: bytes) -> bool:
        """Tell whether a record of these tokens is there, with whatever rows."""
        at = np.searchsorted(self._pairs, np.frombuffer(key + bytes(DIGEST_BYTES), _PAIR))[0]
        return self._pairs[at : at + 1].tobytes()[:KEY_BYTES] == key
