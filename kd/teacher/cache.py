"""A teacher's signal on disk, addressed by content: format, and reading.

A folder holds manifest.json (kd/teacher/manifest.py) and shard-000000.safetensors, shard-000001.safetensors, ...

(FORMAT DOCUMENTATION FOLLOWS)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kd.data.content import DIGEST_BYTES, KEY_BYTES
from kd.teacher import manifest as manifests
from kd.teacher.damage import damage, wrong_size
from kd.teacher.decode import decode, no_rows
from kd.teacher.manifest import MANIFEST, Manifest
from kd.teacher.shard import Shard, open_shard, shard_name
from kd.teacher.spec import CacheError, CacheSpec, Entry, Missing
from kd.teacher.writer import CacheWriter
from kernels import SparseTeacher

__all__ = ["CacheError", "CacheReader", "CacheSpec", "CacheWriter", "Entry", "Manifest", "Missing"]
_PAIR = KEY_BYTES + DIGEST_BYTES


class CacheReader:
    """A finished cache, memory-mapped. Threads may share one, and a process forked from one that has it may go on reading.

    Attributes:
        spec, manifest: what it holds.
        missing: key of each record that got no signal, and why.

    Args:
        identity, spec: what the cache must be of; None leaves it unasked.

    Raises:
        CacheError: no finished cache, another spec or identity (every difference with both values), a shard that is missing, truncated
            or unreadable.
    """

    def __init__(self, folder: str | Path, identity: dict[str, str] | None = None, spec: CacheSpec | None = None):
        self._folder = Path(folder)
        self.manifest = manifests.read(self._folder / MANIFEST)
        self.spec = self.manifest.cache_spec
        wanted = manifests.make(self.spec if spec is None else spec, self.manifest.identity if identity is None else identity, [])
        other = manifests.differences(wanted, self.manifest)
        if other:
            raise CacheError(f"{self._folder} is a cache of something else: {other}; capture it again with launch/capture.py, or restore what changed")
        self.missing = {bytes.fromhex(m.key): m.reason for m in self.manifest.missing}
        self._digest = manifests.cache_digest(self.spec, self.manifest.identity)
        self._shards = [self._open(i) for i in range(len(self.manifest.shards))]
        self._whole = [False] * len(self._shards)
        self._index_records()

    def read(self, keys: Sequence[bytes], row_digests: Sequence[bytes], num_rows: Sequence[int], temperature: float) -> SparseTeacher:
        """The signal of some records' rows, one record after another, on the CPU.

        Args:
            keys, row_digests: of each record (kd/data/content.py).
            num_rows: of each record.
            temperature: one of spec.temperatures.

        Returns:
            SparseTeacher of sum(num_rows) rows; K is spec.top_k, or the widest row's number of tokens.

        Raises:
            CacheError: a record that is not there, or with other rows; a damaged shard; another temperature.
        """
        if float(temperature) not in self.spec.temperatures:
            raise CacheError(f"{self._folder} has temperatures {list(self.spec.temperatures)}, not {temperature}")
        t = self.spec.temperatures.index(float(temperature))
        if not keys:
            return no_rows(self.spec)
        places = self._find(keys, row_digests)
        parts = [(self._checked(int(self._shard_of[place])), int(self._record_of[place])) for place in places]
        for (shard, record), key, wanted in zip(parts, keys, num_rows, strict=True):
            if shard.num_rows[record] != wanted:
                raise CacheError(f"record {key.hex()} has {wanted} supervised positions and {shard.num_rows[record]} in {self._folder}: "
                                 "capture the cache again")
        try:
            return decode(self.spec, parts, t)
        except CacheError as error:
            raise self._named(error, places, t) from error

    def verify(self) -> list[str]:
        """Every byte of every shard: problems by name and offset; none where all is well."""
        problems = []
        for index, info in enumerate(self.manifest.shards):
            problem = damage(self._folder / info.name, info, self._digest, index)
            if problem:
                problems.append(problem)
        return problems

    def _open(self, index: int) -> Shard:
        info = self.manifest.shards[index]
        path = self._folder / info.name
        problem = wrong_size(path, info)
        if problem:
            raise CacheError(f"{problem}; {_REMEDY}")
        try:
            shard = open_shard(path, self.spec)
        except CacheError as error:
            raise CacheError(f"{damage(path, info, self._digest, index) or error}; {_REMEDY}") from error
        if len(shard.num_rows) != info.records or shard.first_row[-1] != info.rows:
            raise CacheError(f"{path} has {len(shard.num_rows)} records of {shard.first_row[-1]} rows and the manifest says {info.records} of "
                             f"{info.rows}; {_REMEDY}")
        return shard

    def _checked(self, index: int) -> Shard:
        """The shard, every byte of which was what it should be when this process first used it."""
        info = self.manifest.shards[index]
        path = self._folder / info.name
        # A file that was cut short under its map would kill the process at the first byte past its end.
        problem = wrong_size(path, info) if self._whole[index] else damage(path, info, self._digest, index)
        if problem:
            raise CacheError(f"{problem}; {_REMEDY}")
        self._whole[index] = True
        return self._shards[index]

    def _index_records(self) -> None:
        pairs = [np.concatenate([s.tensors["keys"], s.tensors["row_digests"]], 1) for s in self._shards]
        whole = np.concatenate([np.zeros((0, _PAIR), np.uint8), *pairs])
        # As bytes strings of one length they sort by content; that numpy drops zeros at a string's end when it shows it changes no order.
        order = np.argsort(whole.view(f"S{_PAIR}")[:, 0], kind="stable")
        self._pairs = whole[order].view(f"S{_PAIR}")[:, 0]
        counts = [len(s.num_rows) for s in self._shards]
        self._shard_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)[order]
        self._record_of = np.concatenate([np.zeros(0, np.int32), *(np.arange(n, dtype=np.int32) for n in counts)])[order]

    def _find(self, keys: Sequence[bytes], row_digests: Sequence[bytes]) -> NDArray:
        """Places in the index, one a record."""
        wanted = np.frombuffer(b"".join(k + d for k, d in zip(keys, row_digests, strict=True)), f"S{_PAIR}")
        places = np.searchsorted(self._pairs, wanted)
        there = self._pairs[np.minimum(places, len(self._pairs) - 1)] == wanted if len(self._pairs) else np.zeros(len(wanted), bool)
        if not there.all():
            raise self._not_there(keys[int(np.argmin(there))])
        return places

    def _not_there(self, key: bytes) -> CacheError:
        damaged = self.verify()  # a record whose key was damaged is not absent
        if damaged:
            return CacheError(f"record {key.hex()} is not found, and {self._folder} is damaged: {'; '.join(damaged[:5])}; {_REMEDY}")
        place = np.searchsorted(self._pairs, np.bytes_(key))
        if place < len(self._pairs) and self._pairs[place:place + 1].view(np.uint8)[:KEY_BYTES].tobytes() == key:
            return CacheError(f"record {key.hex()} is in {self._folder} with other supervised positions: spans changed since capture; capture the "
                              "cache again")
        if key in self.missing:
            return CacheError(f"record {key.hex()} got no signal when {self._folder} was captured: {self.missing[key]}")
        return CacheError(f"record {key.hex()} is not in {self._folder}: its text, template, tokenizer or max_length changed since capture, or its "
                          "data was not captured; capture the cache again")

    def _named(self, error: CacheError, places: NDArray, t: int) -> CacheError:
        """The error with the first record that it is true of."""
        for place in places:
            index, record = int(self._shard_of[place]), int(self._record_of[place])
            try:
                decode(self.spec, [(self._shards[index], record)], t)
            except CacheError as found:
                return CacheError(f"{self._folder / shard_name(index)}, record {record}: {found}: it was written by a faulty program; {_REMEDY}")
        return error


_REMEDY = "restore it, or start its capture again, which writes that shard anew"
