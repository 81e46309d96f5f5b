"""Capture of the shards that are not there yet: all ranks run the teacher together, each over shards of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from kd.batching.micro_batch import MicroBatch
from kd.errors import SpanwiseError
from kd.teacher.cache.manifest import shard_name
from kd.teacher.cache.spec import Entry, Missing
from kd.teacher.cache.writer import CacheWriter
from kd.teacher.cached import name_records
from kd.teacher.capture.errors import CaptureError
from kd.teacher.capture.job import Job
from kd.teacher.capture.rows import RowSource, split_by_record


@dataclass
class Written:
    """Result of write_shards: `missing` of this rank, rows and shards of all ranks."""

    missing: list[Missing] = field(default_factory=list)
    num_rows: int = 0
    num_shards: int = 0
    stopped: bool = False  # by a Unix signal, before the last shard


def write_shards(
    job: Job, writer: CacheWriter, todo: list[int], signalled: list[int], retried: dict[int, list[Missing]]
) -> Written:
    """Capture shards and publish each when it is whole. All ranks call it together.

    Args:
        todo: numbers of the shards.
        signalled: filled by a signal handler while this runs; all ranks then stop after the batch in hand.
        retried: shards of todo that are there and captured again -> the records that they lack.

    Raises:
        CaptureError: on every rank, with the first rank's reason: the teacher failed, rows cannot be stored, the disk
            is full, or a retried shard would lack other records.
    """
    ranks, written = job.ranks, Written()
    work = [(shard, number) for shard in todo[ranks.rank :: ranks.world_size] for number in job.plan.shards[shard]]
    in_hand, rows = _ShardInHand(), job.teacher.get()
    for at, micro in enumerate(job.batches([number for _, number in work])):
        num_bytes = num_rows = 0
        problem = None
        is_last = at < len(work) and (at + 1 == len(work) or work[at + 1][0] != work[at][0])
        try:
            written.missing += in_hand.add(micro, rows)
            if is_last:
                shard = work[at][0]
                in_hand.check_retried(job.folder / shard_name(shard), retried.get(shard))
                num_rows = sum(len(entry.rows.argmax) for entry in in_hand.entries)
                num_bytes = writer.write_shard(shard, in_hand.entries, in_hand.missing)
                in_hand = _ShardInHand()
        except (SpanwiseError, ValueError, OSError) as error:  # a rank that raised alone would leave the others waiting
            problem = name_records(str(error), in_hand.names)
        num_tokens = int(micro.attention_mask.sum()) if micro.keys else 0
        own = torch.tensor(
            [num_tokens, num_bytes, num_rows, bool(num_bytes), problem is not None, bool(signalled)],
            dtype=torch.float64,
        )
        num_tokens, num_bytes, num_rows, num_shards, failed, stop = map(int, ranks.sum(own))
        if failed:
            raise CaptureError(next(filter(None, ranks.gather(problem))))
        job.log.advance(num_tokens, num_bytes)
        written.num_rows, written.num_shards = written.num_rows + num_rows, written.num_shards + num_shards
        if stop:
            written.stopped = written.num_shards < len(todo)
            break
    return written


@dataclass
class _ShardInHand:
    """Records of the shard that this rank is capturing."""

    entries: list[Entry] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    names: dict[bytes, str] = field(default_factory=dict)  # record ids by key, for messages

    def add(self, micro: MicroBatch, teacher: RowSource) -> list[Missing]:
        """Ask the teacher for a batch; return its records without targets."""
        rows = teacher.target_rows(micro)
        unanswered = teacher.missing(micro)
        missing = [Missing(micro.keys[i], micro.record_ids[i], reason) for i, reason in unanswered.items()]
        self.missing += missing
        self.names |= zip(micro.keys, micro.record_ids)
        self.entries += [entry for i, entry in enumerate(split_by_record(micro, rows)) if i not in unanswered]
        return missing

    def check_retried(self, path: Path, known: list[Missing] | None) -> None:
        """Refuse to replace a shard at `path`, which lacks `known`, by one that lacks other records."""
        lost = {m.key for m in self.missing} - {m.key for m in known or ()}
        if known is not None and lost:
            raise CaptureError(
                f"{path} is kept as it was: {len(lost)} records that it has got no targets this time; start the same "
                "command again once the endpoint answers"
            )
