"""Cached teacher: targets from files (kd/teacher/cache/format.py), read ahead of training by a thread and moved to the
device without a wait.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from kd.batching.micro_batch import MicroBatch
from kd.config.derived import uses_temperature
from kd.config.schema import TeacherCache
from kd.teacher.cache.identity import CAPTURE_ALONE, cache_identity, cache_spec
from kd.teacher.cache.manifest import MANIFEST, content_of, read
from kd.teacher.cache.reader import CacheReader
from kd.teacher.cache.spec import CacheError
from kd.teacher.source import OpenTeacher
from kernels import SparseTeacher


class NotCaptured(CacheError):
    """Cache at teacher.cache.path that is not there, or not finished yet."""

    remedy = "launch/capture.py"


def require_captured(cache: TeacherCache) -> None:
    """Check that teacher.cache.path has a finished cache; only the manifest's presence is checked.

    Raises:
        NotCaptured: it has none.
        CacheError: it is a file.
    """
    folder = Path(cache.path)
    if (folder / MANIFEST).exists():
        return
    if folder.exists() and not folder.is_dir():
        raise CacheError(f"teacher.cache.path: {folder} is a file, and a cache is a folder: name that, or a new one")
    shards = len(list(folder.glob("shard-*.safetensors"))) if folder.is_dir() else 0
    state = (
        f"its capture was not finished ({shards} shards are there, and are kept)" if shards else "there is no cache yet"
    )
    raise NotCaptured(
        f"teacher.cache.path: {folder}: {state}; launch/capture.py runs the teacher once over the data, before training"
    )


def open_cache(request: OpenTeacher) -> CacheTeacher:
    """Open the configuration's cache and check it against the teacher, tokenizer, template and data of the run.

    All ranks call it together.

    Raises:
        NotCaptured: it is not there, or not finished.
        CacheError: damaged, or of something else: every difference, with both values.
    """
    teacher, cache = request.teacher, request.teacher.cache
    if cache is None:
        raise CacheError("teacher.source: cache needs a cache: add `cache: {path: ...}` under teacher")
    require_captured(cache)
    identity = cache_identity(teacher, request.data, request.tokenizer, request.sources)
    reader = CacheReader(
        cache.path,
        replace_free_values(identity, read(Path(cache.path) / MANIFEST).identity),
        cache_spec(cache, len(request.tokenizer), has_entropy=teacher.endpoint is None),
    )
    shards = reader.manifest.shards
    request.say(
        f"teacher's targets: {cache.path}, {cache.kind}, {sum(s.records for s in shards):,} records, "
        f"{sum(s.rows for s in shards):,} rows"
        + (f"; {len(reader.missing)} records got no targets and are left out" if reader.missing else "")
    )
    tolerance = cache.t_tolerance if uses_temperature(request.loss) else math.inf
    return CacheTeacher(reader, tolerance, request.device)


def replace_free_values(ours: dict[str, str], found: dict[str, str]) -> dict[str, str]:
    """Return our identity with the cache's own values where training may differ from capture.

    The teacher's folder may have moved where its weights can be compared; where they cannot, its name is all there is.
    """
    free = (*CAPTURE_ALONE, "teacher" if "weights" in ours and "weights" in found else "weights")
    return {name: value for name, value in ours.items() if name not in free} | {
        name: value for name, value in found.items() if name in free
    }


class CacheTeacher:
    """TeacherSource over a finished cache.

    Args:
        t_tolerance: largest distance of a temperature asked for from one of the cache's; infinite where no term of the
            loss has it.
        device: of the targets; from pinned memory where it is a GPU.
    """

    def __init__(self, reader: CacheReader, t_tolerance: float, device: torch.device):
        self._reader, self._tolerance, self._device = reader, t_tolerance, device
        self.missing, self.has_entropy = frozenset(reader.missing), reader.spec.has_entropy
        self.content: dict[str, str] | None = content_of(reader.manifest)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="teacher-cache")
        self._ahead: deque[list[tuple[tuple, Future]]] = deque(maxlen=2)  # of the step that is trained, and of the next

    def temperature(self, wanted: float) -> float:
        """Return the cache's temperature nearest to `wanted`. Raises CacheError beyond t_tolerance."""
        nearest = min(self._reader.spec.temperatures, key=lambda at: abs(at - wanted))
        if abs(nearest - wanted) > self._tolerance + 1e-12:
            raise CacheError(
                f"training wants temperature {wanted:.4g} and the cache has {list(self._reader.spec.temperatures)}, "
                f"t_tolerance {self._tolerance:g}: capture with {wanted:.4g} in teacher.cache.temperatures"
            )
        return nearest

    def prefetch(self, micro_batches: list[MicroBatch], temperature: float) -> None:
        """Begin to read on the thread; see TeacherSource.prefetch."""
        self._ahead.append(
            [
                ((micro.keys, temperature), self._thread.submit(self._read, micro, temperature))
                for micro in micro_batches
            ]
        )

    def targets(self, micro: MicroBatch, temperature: float, step: int = 0) -> SparseTeacher:
        """Return what was stored of the rows of `micro`; see TeacherSource.targets.

        Raises:
            CacheError: a record is not there, or its shard is damaged; also one that the thread met.
        """
        found = self._take((micro.keys, temperature))
        read = self._read(micro, temperature) if found is None else found.result()
        return _map(read, lambda tensor: tensor.to(self._device, non_blocking=True))

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _take(self, wanted: tuple) -> Future | None:
        for step in self._ahead:
            for place, (name, future) in enumerate(step):
                if name == wanted:
                    del step[place]
                    return future
        return None

    def _read(self, micro: MicroBatch, temperature: float) -> SparseTeacher:
        num_rows = torch.bincount(micro.record, minlength=len(micro.keys)).tolist()
        try:
            read = self._reader.read(micro.keys, micro.row_digests, num_rows, temperature)
        except CacheError as error:
            raise CacheError(name_records(str(error), dict(zip(micro.keys, micro.record_ids)))) from error
        if not self.has_entropy:  # NaN in a row stops the step that has it
            read = read._replace(entropy=torch.zeros_like(read.entropy), entropy_t=torch.zeros_like(read.entropy_t))
        # Only from pinned memory does a copy run beside the GPU's work.
        return _map(read, Tensor.pin_memory) if self._device.type == "cuda" else read


def name_records(text: str, names: dict[bytes, str]) -> str:
    """Put record ids in place of keys in a message of the cache, which knows records by key."""
    for key, name in names.items():
        text = text.replace(f"record {key.hex()}", f"record {name}")
    return text


def _map(teacher: SparseTeacher, change: Callable[[Tensor], Tensor]) -> SparseTeacher:
    fields = {name: change(value) for name, value in teacher._asdict().items() if isinstance(value, Tensor)}
    return teacher._replace(**fields)
