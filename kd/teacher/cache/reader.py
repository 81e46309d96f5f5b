"""Reader of a finished cache. The layout is in kd/teacher/cache/format.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kd.teacher.cache import manifest as manifests
from kd.teacher.cache.decode import decode, no_rows
from kd.teacher.cache.integrity import check_size, find_damage
from kd.teacher.cache.lookup import Lookup
from kd.teacher.cache.manifest import MANIFEST
from kd.teacher.cache.shard import Shard, open_shard
from kd.teacher.cache.spec import CacheError, CacheSpec, check_spec
from kernels import SparseTeacher

_REMEDY = "restore it, or start its capture again, which writes that shard anew"


class CacheReader:
    """Finished cache, memory-mapped. Threads may share one, and a process forked from one that has it may read on.

    Attributes:
        spec, manifest: of the cache.
        missing: key of each record without targets -> the reason.

    Args:
        identity, spec: that the cache must have; None leaves it unasked.

    Raises:
        CacheError: no finished cache; another spec or identity (every difference, with both values); a shard that is
            missing, truncated or unreadable.
    """

    def __init__(self, folder: str | Path, identity: dict[str, str] | None = None, spec: CacheSpec | None = None):
        self._folder = Path(folder)
        self.manifest = manifests.read(self._folder / MANIFEST)
        self.spec = self.manifest.cache_spec
        wanted = manifests.make(
            self.spec if spec is None else check_spec(spec),
            self.manifest.identity if identity is None else identity,
            [],
        )
        other = manifests.describe_differences(wanted, self.manifest)
        if other:
            raise CacheError(
                f"{self._folder} is a cache of something else: {other}; undo that change, or capture into another "
                "folder with launch/capture.py and name it in teacher.cache.path"
            )
        self.missing = {bytes.fromhex(m.key): m.reason for m in self.manifest.missing}
        self._digest = manifests.cache_digest(self.spec, self.manifest.identity)
        self._paths = [self._folder / info.name for info in self.manifest.shards]
        self._shards = [self._open(index) for index in range(len(self._paths))]
        self._whole = [False] * len(self._shards)
        self._lookup = Lookup(self._shards)

    def read(
        self, keys: Sequence[bytes], row_digests: Sequence[bytes], num_rows: Sequence[int], temperature: float
    ) -> SparseTeacher:
        """Read the targets of some records' rows, one record after another, on the CPU.

        Args:
            keys, row_digests, num_rows: of each record (kd/batching/record_key.py).
            temperature: one of spec.temperatures.

        Returns:
            SparseTeacher of sum(num_rows) rows; K is spec.top_k, or the widest row's number of tokens.

        Raises:
            CacheError: a record that is not there, or with other rows; a damaged shard; another temperature.
        """
        if float(temperature) not in self.spec.temperatures:
            raise CacheError(
                f"{self._folder} has the temperatures {list(self.spec.temperatures)}, not {temperature}: ask for one "
                "of them, or capture it"
            )
        t = self.spec.temperatures.index(float(temperature))
        if not keys:
            return no_rows(self.spec)
        shards, records, absent = self._lookup.find(keys, row_digests)
        if absent is not None:
            raise self._explain_absence(keys[absent])
        checked = {index: self._check(index) for index in set(shards)}
        parts = [(checked[index], record) for index, record in zip(shards, records)]
        for (shard, record), key, wanted in zip(parts, keys, num_rows, strict=True):
            if shard.num_rows[record] != wanted:
                raise CacheError(
                    f"record {key.hex()} has {wanted} supervised positions and {shard.num_rows[record]} in "
                    f"{self._folder}: capture the cache again"
                )
        try:
            return decode(self.spec, parts, t)
        except CacheError:
            for index, part in zip(shards, parts):
                self._decode_alone(index, part, t)
            raise

    def verify(self) -> list[str]:
        """Read every byte of every shard; list the damage by file and offset."""
        found = (
            find_damage(path, info, self._digest, index)
            for index, (path, info) in enumerate(zip(self._paths, self.manifest.shards))
        )
        return [problem for problem in found if problem]

    def _open(self, index: int) -> Shard:
        """Map shard `index`; its header and lengths are checked, no more."""
        info, path = self.manifest.shards[index], self._paths[index]
        problem = check_size(path, info)
        if problem is None:
            try:
                shard = open_shard(path, self.spec)
                if (len(shard.num_rows), shard.first_row[-1]) == (info.records, info.rows):
                    return shard
                problem = (
                    f"{path} has {len(shard.num_rows)} records and {shard.first_row[-1]} rows, the manifest "
                    f"{info.records} and {info.rows}"
                )
            except CacheError as error:
                problem = str(error)
        raise CacheError(f"{find_damage(path, info, self._digest, index) or problem}; {_REMEDY}")

    def _check(self, index: int) -> Shard:
        """Return the shard, its every byte checked when this process first uses it."""
        info, path = self.manifest.shards[index], self._paths[index]
        # Cut short while it is mapped, a file would kill the process at the first byte that it no longer has.
        if self._whole[index]:
            problem = check_size(path, info)
        else:
            self._shards[index] = self._open(index)  # mended since the cache was opened, it is another file
            problem = find_damage(path, info, self._digest, index)
        if problem:
            raise CacheError(f"{problem}; {_REMEDY}")
        self._whole[index] = True
        return self._shards[index]

    def _explain_absence(self, key: bytes) -> CacheError:
        damaged = self.verify()  # a record whose key was damaged is not absent
        if damaged:
            return CacheError(
                f"record {key.hex()} is not found, and the cache is damaged: {'; '.join(damaged[:5])}; {_REMEDY}"
            )
        if self._lookup.has_key(key):
            return CacheError(
                f"record {key.hex()} is in {self._folder} with other supervised positions: its spans changed since "
                "capture; undo that, or capture the cache again"
            )
        if key in self.missing:
            return CacheError(
                f"record {key.hex()} got no targets when {self._folder} was captured: {self.missing[key]}"
            )
        return CacheError(
            f"record {key.hex()} is not in {self._folder}: its text, the chat template, the tokenizer or max_length "
            "changed since capture, or its data was not captured; undo that, or capture the cache again"
        )

    def _decode_alone(self, index: int, part: tuple[Shard, int], t: int) -> None:
        try:
            decode(self.spec, [part], t)
        except CacheError as error:
            raise CacheError(
                f"{self._paths[index]}: record {part[1]}, though as it was written, cannot be read: {error}; {_REMEDY}"
            ) from error
