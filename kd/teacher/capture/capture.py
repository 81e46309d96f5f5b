"""Capture: the teacher runs once over the data and its targets go to disk, shard by shard.

All ranks run the teacher together, a batch each; a rank with no batch left runs empty ones, as under ZeRO-3 the others
would wait for it. The content of a shard is fixed before ranks come into it (kd/teacher/capture/plan.py), so any number
of ranks, and any number of kills, makes the same bytes. A shard that is whole on disk is never made again.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import NamedTuple

from kd.config.schema import RunConfig
from kd.distributed.collectives import on_rank_0
from kd.distributed.start import start_distributed
from kd.folders.lock import FolderLock
from kd.records.quarantine import earlier
from kd.teacher.cache.manifest import MANIFEST, shard_name
from kd.teacher.cache.spec import Missing
from kd.teacher.cache.writer import CacheWriter, check_folder
from kd.teacher.capture.errors import CaptureError
from kd.teacher.capture.job import SHARD_ROWS, Job, open_job
from kd.teacher.capture.missing import check_missing, read_missing
from kd.teacher.capture.plan import CapturePlan
from kd.teacher.capture.shards import Written, write_shards
from kd.units import duration, size


class CaptureResult(NamedTuple):
    """Cache after a capture. `num_bytes` and `num_rows` are of the shards on disk alone."""

    num_shards: int
    num_published: int
    num_rows: int
    num_bytes: int
    num_missing: int
    seconds: float
    stopped: bool  # by a Unix signal, before the last shard


def capture(config: RunConfig, *, shard_rows: int = SHARD_ROWS, retry_missing: bool = False) -> CaptureResult:
    """Write the cache that `config.teacher.cache` describes, or the rest of it. Every rank of the launcher calls it.

    Args:
        shard_rows: rows of a shard, at least.
        retry_missing: capture shards again in which records got no targets; one that would then lack another record is
            kept as it is.

    Raises:
        CaptureError, CacheError: on every rank; published shards stay, and the same call resumes after them.
        DataError, TokenizerError, StudentError: the data or the teacher cannot be read.
    """
    if config.teacher is None or config.teacher.cache is None:
        raise CaptureError(
            "teacher.cache: this configuration names no cache to write: add `cache: {path: runs/cache/NAME}` "
            "under teacher"
        )
    folder = Path(config.teacher.cache.path)
    start_distributed()
    lock = FolderLock(folder)
    on_rank_0(lambda: _take(folder, lock))
    try:
        return _capture_into(folder, config, shard_rows, retry_missing)
    finally:
        lock.release()


def _take(folder: Path, lock: FolderLock) -> None:
    """Check and lock the cache's folder; rank 0 alone."""
    check_folder(folder)
    holder = lock.take()
    if holder is not None:
        raise CaptureError(f"{folder} is being written by {holder}: wait for it, end it, or change teacher.cache.path")


def _capture_into(folder: Path, config: RunConfig, shard_rows: int, retry_missing: bool) -> CaptureResult:
    refused = folder / "refused.jsonl"
    job = open_job(config, shard_rows, folder, refused)
    on_rank_0(lambda: earlier(refused).unlink(missing_ok=True))  # of the same cache: its lines are in the new one
    signalled: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: signalled.append(number))
    try:
        result = _capture(job, signalled, retry_missing)
        job.log.say(_describe_result(folder, result))
        return result
    finally:
        signal.signal(signal.SIGTERM, previous)
        job.close()


def _capture(job: Job, signalled: list[int], retry_missing: bool) -> CaptureResult:
    started, plan, say = time.monotonic(), job.plan, job.log.say
    say(_describe_plan(plan))
    writer = CacheWriter(job.folder, job.spec, job.identity, say)
    # Every byte is hashed: once, not once a rank.
    looked = (writer.published(), writer.finished()) if job.ranks.rank == 0 else (set(), False)
    whole, finished = job.ranks.gather(looked)[0]
    published = sorted(whole & set(range(len(plan.shards))))
    before = read_missing(job.folder, job.spec, plan, writer, published)
    retried: dict[int, list[Missing]] = {}
    if retry_missing:
        published = [shard for shard in published if shard not in before]
        retried, before = before, {}
    todo = sorted(set(range(len(plan.shards))) - set(published))
    if published and todo:
        say(f"going on: {len(published)} of {len(plan.shards)} shards are there")
    job.log.begin(
        num_tokens=int(plan.lengths.sum()),
        num_done=sum(int(plan.of_shard(plan.lengths, shard).sum()) for shard in published),
        num_bytes=sum((job.folder / shard_name(shard)).stat().st_size for shard in published),
    )
    written = write_shards(job, writer, todo, signalled, retried) if todo else Written()
    missing = [m for some in (*before.values(), *job.ranks.gather(written.missing)) for m in some]
    check_missing(job.endpoint, len(plan.rows), missing)
    if not written.stopped and (todo or not finished):
        on_rank_0(lambda: writer.finish(len(plan.shards), sorted(missing)))
    return CaptureResult(
        num_shards=len(plan.shards),
        num_published=len(published) + written.num_shards,
        num_rows=sum(int(plan.of_shard(plan.rows, shard).sum()) for shard in published) + written.num_rows,
        num_bytes=job.log.num_bytes,
        num_missing=len(missing),
        seconds=time.monotonic() - started,
        stopped=written.stopped,
    )


def _describe_plan(plan: CapturePlan) -> str:
    sequences = "records" if plan.num_records == len(plan.rows) else f"sequences ({plan.num_records:,} records)"
    parts = [
        f"{len(plan.rows):,} {sequences} of {int(plan.lengths.sum()):,} tokens, {int(plan.rows.sum()):,} rows, in "
        f"{len(plan.shards)} shards"
    ]
    if plan.num_repeated:
        parts.append(f"{plan.num_repeated:,} repeat another's tokens")
    if plan.num_too_long:
        parts.append(f"{plan.num_too_long:,} are longer than max_length and left out")
    if plan.num_refused:
        parts.append(
            f"{plan.num_refused:,} cannot be rendered or located and are left out, the first is {plan.refused}"
        )
    return "; ".join(parts)


def _describe_result(folder: Path, result: CaptureResult) -> str:
    if result.stopped:
        return (
            f"stopped by a signal: {result.num_published} of {result.num_shards} shards are there; the same command "
            "goes on from here"
        )
    missing = f"; {result.num_missing} records got no targets, {folder / MANIFEST} says why"
    return (
        f"captured  {result.num_rows:,} rows, {size(result.num_bytes)} "
        f"({result.num_bytes / max(result.num_rows, 1):.1f} bytes a row), in {duration(result.seconds)}"
        + (missing if result.num_missing else "")
        + f"\ncache     {folder}"
    )
