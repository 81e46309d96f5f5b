"""The teacher's signal from a cache (kd/teacher/cache/format.py): read ahead of training by a thread, moved to the
device without a wait.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from kd.batching.micro_batch import MicroBatch
from kd.config.derived import uses_temperature
from kd.config.schema import RunConfig
from kd.sources.source import Source
from kd.teacher.cache.identity import CAPTURE_ALONE, cache_identity, cache_spec
from kd.teacher.cache.manifest import MANIFEST, content_of, read
from kd.teacher.cache.reader import CacheReader
from kd.teacher.cache.spec import CacheError
from kernels import SparseTeacher


class NotCaptured(CacheError):
    """teacher.cache.path has no finished cache yet."""

    remedy = "launch/capture.py"


def require_captured(config: RunConfig) -> None:
    """Raises NotCaptured where the configuration reads a cache and there is none; nothing else is looked at."""
    folder = Path(config.teacher.cache.path)
    if (folder / MANIFEST).exists():
        return
    shards = len(list(folder.glob("shard-*.safetensors"))) if folder.is_dir() else 0
    state = (
        f"its capture was not finished ({shards} shards are there, and are kept)" if shards else "there is no cache yet"
    )
    raise NotCaptured(
        f"teacher.cache.path: {folder}: {state}; launch/capture.py runs the teacher once over the data, before training"
    )


def open_cache(
    config: RunConfig, tokenizer, device: torch.device, say: Callable[[str], None], sources: Sequence[Source]
) -> CacheTeacher:
    """The configuration's cache, checked against everything it must be of (`sources`: the records of each stage). All
    ranks together.

    Raises:
        NotCaptured: it is not there, or not finished.
        CacheError: damaged, or of something else: every difference, with both values.
    """
    cache = config.teacher.cache
    require_captured(config)
    reader = CacheReader(
        cache.path,
        comparable(cache_identity(config, tokenizer, sources), read(Path(cache.path) / MANIFEST).identity),
        cache_spec(config, len(tokenizer)),
    )
    shards = reader.manifest.shards
    say(
        f"teacher's signal: {cache.path}, {cache.kind}, {sum(s.records for s in shards):,} records, "
        f"{sum(s.rows for s in shards):,} rows"
        + (f"; {len(reader.missing)} records got no signal and are left out" if reader.missing else "")
    )
    return CacheTeacher(reader, cache.t_tolerance if uses_temperature(config.loss) else math.inf, device)


def comparable(ours: dict[str, str], found: dict[str, str]) -> dict[str, str]:
    """Our identity, with the cache's own values where training may differ from capture.

    The teacher's folder may have moved where its weights can be compared; where they cannot, its name is all there is.
    """
    free = (*CAPTURE_ALONE, "teacher" if "weights" in ours and "weights" in found else "weights")
    return {name: value for name, value in ours.items() if name not in free} | {
        name: value for name, value in found.items() if name in free
    }


class CacheTeacher:
    """A TeacherSource (kd/teacher/source.py) over a finished cache.

    Args:
        t_tolerance: how far a temperature asked for may be from one of the cache's; infinite where no term of the loss
            has it.
    """

    def __init__(self, reader: CacheReader, t_tolerance: float, device: torch.device):
        self._reader, self._tolerance, self._device = reader, t_tolerance, device
        self.missing, self.has_entropy = frozenset(reader.missing), reader.spec.has_entropy
        self.content = content_of(reader.manifest)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="teacher-cache")
        self._ahead: deque[list[tuple[tuple, Future]]] = deque(maxlen=2)  # of the step that is trained, and of the next

    def temperature(self, wanted: float) -> float:
        nearest = min(self._reader.spec.temperatures, key=lambda at: abs(at - wanted))
        if abs(nearest - wanted) > self._tolerance + 1e-12:
            raise CacheError(
                f"training wants temperature {wanted:.4g} and the cache has {list(self._reader.spec.temperatures)}, "
                "t_tolerance "
                f"{self._tolerance:g}: capture with {wanted:.4g} in teacher.cache.temperatures"
            )
        return nearest

    def prefetch(self, micro_batches: list[MicroBatch], temperature: float) -> None:
        self._ahead.append(
            [
                ((micro.keys, temperature), self._thread.submit(self._read, micro, temperature))
                for micro in micro_batches
            ]
        )

    def signal(self, micro: MicroBatch, temperature: float, step: int = 0) -> SparseTeacher:
        found = self._taken((micro.keys, temperature))
        read = (
            self._read(micro, temperature) if found is None else found.result()
        )  # an error of the thread is raised here
        return _map(read, lambda tensor: tensor.to(self._device, non_blocking=True))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _taken(self, wanted: tuple) -> Future | None:
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
            raise CacheError(by_record_id(str(error), dict(zip(micro.keys, micro.record_ids)))) from error
        if not self.has_entropy:  # NaN in a row stops the step that has it
            read = read._replace(entropy=torch.zeros_like(read.entropy), entropy_t=torch.zeros_like(read.entropy_t))
        # Only from pinned memory does a copy go on beside the GPU's work.
        return _map(read, Tensor.pin_memory) if self._device.type == "cuda" else read


def by_record_id(text: str, names: dict[bytes, str]) -> str:
    """A message of the cache, which knows records by key, for a person, who knows them by id."""
    for key, name in names.items():
        text = text.replace(f"record {key.hex()}", f"record {name}")
    return text


def _map(teacher: SparseTeacher, change: Callable[[Tensor], Tensor]) -> SparseTeacher:
    return SparseTeacher(*(change(value) if isinstance(value, Tensor) else value for value in teacher))
