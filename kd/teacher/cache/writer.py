"""Writer of a cache: shard after shard, each whole or not there, then the manifest. The layout is in
kd/teacher/cache/format.py.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from kd.atomic_files import describe_failure, flush, is_full, publish
from kd.outputs import check_writable
from kd.teacher.cache import manifest as manifests
from kd.teacher.cache.integrity import find_damage
from kd.teacher.cache.manifest import MANIFEST, Manifest, ShardInfo, shard_name
from kd.teacher.cache.shard import encode_shard, read_tag
from kd.teacher.cache.spec import CacheError, CacheSpec, Entry, Missing, check_spec


def make_folder(folder: Path) -> None:
    """Make the cache's folder where it is not there. Raises CacheError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"{folder} cannot be made ({error}): change teacher.cache.path") from error


def check_folder(folder: Path) -> None:
    """Make the cache's folder, and check that what is there under names of a cache is a cache's.

    Raises:
        OutputError: the folder cannot be written.
        CacheError: a file of another program has such a name.
    """
    check_writable("teacher.cache.path", folder)
    named = [path for path in sorted(folder.iterdir()) if path.name == MANIFEST or _NAMED.fullmatch(path.name)]
    said = {path: _is_ours(path) for path in named}
    known = any(ours for path, ours in said.items() if path.suffix == ".json")  # a damaged shard of it says nothing
    for path, ours in said.items():
        if not ours and not (known and path.suffix == ".safetensors" and path.is_file()):
            raise CacheError(f"{path} is there already and no cache's: move it away, or change teacher.cache.path")


def _is_ours(path: Path) -> bool:
    try:
        if path.stat().st_size and path.suffix == ".json":
            with path.open("rb") as file:
                return b"spanwise teacher cache" in file.read(200)  # of a damaged one that much is left
        return path.is_file() and (not path.stat().st_size or bool(read_tag(path)))
    except (OSError, CacheError):
        return False


class CacheWriter:
    """Cache folder being written, by one program or by several that write different shards of it.

    Args:
        folder: made where it is not there.
        spec: numbers that are stored of each row.
        identity: teacher, revision, tokenizer, data, ... of the targets, by name.
        say: told, in words, of shards that are written again and why.

    Raises:
        CacheError: the folder holds a cache, finished or begun, of another spec or identity (both shown), or cannot be
            written.
    """

    def __init__(
        self, folder: str | Path, spec: CacheSpec, identity: dict[str, str], say: Callable[[str], None] = print
    ):
        self._folder, self._spec, self._identity, self._say = Path(folder), check_spec(spec), dict(identity), say
        self._digest = manifests.cache_digest(self._spec, self._identity)
        make_folder(self._folder)
        self._missing: dict[bytes, Missing] = {}
        self._of_manifest = self._read_finished()
        for path in sorted(self._folder.glob("shard-*.json")):
            self._read_begun(path)

    def published(self) -> set[int]:
        """Return the indices of shards that are there and whole, every byte checked.

        Damaged ones are told of, and are to be written again.
        """
        found = set()
        for path in sorted(self._folder.glob("shard-*.safetensors")):
            number = _SHARD.fullmatch(path.name)
            if number is None:
                continue
            try:
                self._info(int(number[1]))
                found.add(int(number[1]))
            except CacheError as error:
                self._say(f"written again: {error}")
        return found

    def finished(self) -> bool:
        """Tell whether there is a manifest, and no shard was written since."""
        return (self._folder / MANIFEST).exists() and not any(self._folder.glob("shard-*.json"))

    @property
    def missing(self) -> dict[bytes, Missing]:
        """Records, by key, that got no targets when a shard that was there already was written."""
        return self._missing

    def write_shard(self, index: int, entries: Sequence[Entry], missing: Sequence[Missing] = ()) -> int:
        """Publish the records of one fixed run of capture batches as shard `index`; return its size in bytes.

        Args:
            missing: those of the records that got no targets.

        Raises:
            CacheError: rows that do not fit the spec, or a disk that does not take them; what was published stays.
        """
        raw, info = encode_shard(self._spec, self._digest, index, entries)
        try:
            publish(self._folder / info.name, raw)
            manifests.write(self._sidecar(index), manifests.make_sidecar(self._spec, self._identity, info, missing))
        except OSError as error:
            raise self._cannot_write(self._folder / info.name, error) from error
        return info.bytes

    def finish(self, num_shards: int, missing: Sequence[Missing] = ()) -> None:
        """Publish the manifest over shards 0 to num_shards - 1, then remove files that are no longer needed.

        Raises:
            CacheError: a shard is not there or not whole (each named), or the disk does not take the manifest.
        """
        infos, problems = [], []
        for index in range(num_shards):
            try:
                infos.append(self._info(index))
            except CacheError as error:
                problems.append(str(error))
        if problems:
            shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
            raise CacheError(
                f"{self._folder} is not finished: {shown}; start the same capture again, which writes these"
            )
        try:
            manifests.write(self._folder / MANIFEST, manifests.make(self._spec, self._identity, infos, missing))
            wanted = {MANIFEST, *(info.name for info in infos)}
            for path in self._folder.iterdir():
                if path.name not in wanted and _OURS.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            flush(self._folder)
        except OSError as error:
            raise self._cannot_write(self._folder / MANIFEST, error) from error
        self._of_manifest = {info.name: info for info in infos}

    def _info(self, index: int) -> ShardInfo:
        """Return the ShardInfo of shard `index`, which is whole. Raises CacheError where it is not."""
        name = shard_name(index)
        if self._sidecar(index).exists():
            sidecar = manifests.read(self._sidecar(index), manifests.SIDECAR_FORMAT)
            info = sidecar.shards[0] if len(sidecar.shards) == 1 and sidecar.shards[0].name == name else None
        else:
            info = self._of_manifest.get(name)
        if info is None:
            raise CacheError(f"{self._folder / name} was not published")
        problem = find_damage(self._folder / name, info, self._digest, index)
        if problem:
            raise CacheError(problem)
        return info

    def _read_finished(self) -> dict[str, ShardInfo]:
        if not (self._folder / MANIFEST).exists():
            return {}
        try:
            manifest = manifests.read(self._folder / MANIFEST)
        except manifests.Unreadable as error:
            self._say(f"captured again: {error}")
            return {}
        self._take_missing(manifest, "a finished cache")
        return {info.name: info for info in manifest.shards}

    def _read_begun(self, sidecar: Path) -> None:
        with contextlib.suppress(manifests.Unreadable):  # `published` tells of it, and its shard is written again
            begun = manifests.read(sidecar, manifests.SIDECAR_FORMAT)
            self._take_missing(begun, f"a cache that was begun, {sidecar.name} is there,")

    def _take_missing(self, manifest: Manifest, state: str) -> None:
        """Take the missing records of a manifest of this cache. Raises CacheError where it is of another."""
        other = manifests.describe_differences(manifests.make(self._spec, self._identity, []), manifest)
        if other:
            raise CacheError(
                f"{self._folder} holds {state} of something else ({other}): undo that change, choose another "
                "teacher.cache.path, or delete it"
            )
        self._missing |= {
            bytes.fromhex(m.key): Missing(bytes.fromhex(m.key), m.record_id, m.reason) for m in manifest.missing
        }

    def _sidecar(self, index: int) -> Path:
        return (self._folder / shard_name(index)).with_suffix(".json")

    def _cannot_write(self, path: Path, error: OSError) -> CacheError:
        remedy = "make room, or change teacher.cache.path, and start the same command again"
        told = describe_failure(error, path) if is_full(error) else f"{path} cannot be written ({error}): {remedy}"
        return CacheError(f"{told}; shards that are there are kept")


_NAMED = re.compile(r"shard-\d{6}\.(safetensors|json)")
_SHARD = re.compile(r"shard-(\d{6})\.safetensors")
_OURS = re.compile(
    r"\.records-.*\.jsonl|shard-\d{6}\.(safetensors|json)|\.(shard-\d{6}\.(safetensors|json)|manifest\.json)\.[0-9a-f]{32}\.part"
)
