"""Row source: gives a capture the teacher's rows, from a model of this job or from an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor

from kd.batching.micro_batch import MicroBatch
from kd.teacher.cache.check_rows import slice_rows
from kd.teacher.cache.spec import Entry
from kernels import TeacherSamples, TeacherTopK


class RowSource(Protocol):
    """Teacher of a capture. Ranks call every method together; micro-batches are on the CPU."""

    def prefetch(self, micro_batches: Iterable[MicroBatch]) -> None:
        """Announce micro-batches that `target_rows` will be called with."""
        ...

    def target_rows(self, micro: MicroBatch) -> TeacherTopK | TeacherSamples:
        """Return the rows of `micro`, row i for micro.rows[i], at every temperature of the cache, on any device."""
        ...

    def missing(self, micro: MicroBatch) -> dict[int, str]:
        """Return the records without targets, as index into micro.record_ids -> reason.

        `target_rows` was called with this micro-batch before.
        """
        ...

    def close(self) -> None:
        """End threads and connections."""
        ...


class LazyRows:
    """Row source that is opened when it is first asked for; a finished cache asks for none."""

    def __init__(self, open_rows: Callable[[], RowSource]):
        self._open, self._rows = open_rows, None

    def get(self) -> RowSource:
        """Return the source, opened by the first call. All ranks call it together."""
        if self._rows is None:
            self._rows: RowSource | None = self._open()
        return self._rows

    def close(self) -> None:
        """Close the source if it was opened."""
        if self._rows is not None:
            self._rows.close()


def split_by_record(micro: MicroBatch, rows: TeacherTopK | TeacherSamples) -> list[Entry]:
    """Split the rows of a micro-batch into cache entries, one a record, on the CPU."""
    rows = rows._replace(**{name: value.cpu() for name, value in rows._asdict().items() if isinstance(value, Tensor)})
    ends = torch.bincount(micro.record, minlength=len(micro.keys)).cumsum(0).tolist()
    return [
        Entry(key, digest, slice_rows(rows, start, end))
        for key, digest, start, end in zip(micro.keys, micro.row_digests, [0, *ends], ends)
    ]
