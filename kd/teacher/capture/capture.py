"""Capture: the teacher runs once over the data and its signal goes to disk, shard by shard.

All ranks run the teacher together, a batch each; a rank with no batch left runs empty ones, as under ZeRO-3 the others
would wait for it. What a shard holds is fixed before ranks come into it (kd/teacher/capture/plan.py), so any number of
ranks, and any number of kills, makes the same bytes. A shard that is whole on disk is never made again.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from kd.batching.micro_batch import MicroBatch
from kd.batching.workers import in_order, num_workers
from kd.config.schema import RunConfig
from kd.distributed.collectives import on_rank_0
from kd.distributed.deepspeed_json import resolve_ds_config, teacher_ds_config
from kd.distributed.start import start_distributed
from kd.errors import SpanwiseError
from kd.models.tokenizer import load_tokenizer
from kd.sources.stages import sources_beside
from kd.teacher.cache.check_rows import slice_rows
from kd.teacher.cache.identity import cache_identity, cache_spec
from kd.teacher.cache.manifest import MANIFEST, shard_name
from kd.teacher.cache.shard import open_shard
from kd.teacher.cache.spec import CacheSpec, Entry, Missing
from kd.teacher.cache.writer import CacheWriter, make_folder
from kd.teacher.cached import by_record_id
from kd.teacher.capture.log import CaptureLog
from kd.teacher.capture.plan import BatchMaker, CapturePlan, batch_maker, plan_capture
from kd.teacher.endpoint.teacher import EndpointTeacher
from kd.teacher.live import LiveRows
from kd.units import duration, size
from kernels import TeacherSamples, TeacherTopK

SHARD_ROWS = 65_536  # about 2.4 MB of draws; what a kill costs each rank at most
_ANNOUNCED = 16  # micro-batches a source of rows knows of beforehand


class CaptureError(SpanwiseError, ValueError):
    """Capture cannot go on; the message says why, what is kept, and what to do."""


class RowSource(Protocol):
    """Where capture's rows come from. Ranks call it together; micro-batches are on the CPU."""

    def prefetch(self, micro_batches: Iterable[MicroBatch]) -> None:
        """Announces micro-batches that `signal_rows` will be called with."""

    def signal_rows(self, micro: MicroBatch) -> TeacherTopK | TeacherSamples:
        """The rows of `micro`, in its order, at every temperature of the cache."""

    def missing(self, micro: MicroBatch) -> dict[int, str]:
        """Which records (indices into micro.record_ids) of a micro-batch asked for have no signal, and why."""

    def close(self) -> None: ...


class CaptureResult(NamedTuple):
    """`stopped`: a signal came before the last shard. `num_bytes` and `num_rows` are of what is on disk, shards
    alone.
    """

    num_shards: int
    num_published: int
    num_rows: int
    num_bytes: int
    num_missing: int
    seconds: float
    stopped: bool


class Job:
    """What every rank of a capture or of its verification has: the plan, the teacher, and the others.

    `scratch`: a folder that all ranks see, for what is written once; `kept`: a file for refused lines.
    """

    def __init__(self, config: RunConfig, shard_rows: int, scratch: Path, kept: Path | None = None):
        self.config, self.folder = config, Path(config.teacher.cache.path)
        self.rank, self.world = start_distributed()
        self.device = (
            torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        )
        # Counts and messages travel over the CPU; NCCL cannot carry that.
        self._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        self.log = CaptureLog(self.rank == 0)
        self.tokenizer = load_tokenizer(config.tokenizer, config.teacher, config.student)
        # A training run of the same configuration may be at work, and has its own files.
        sources = on_rank_0(lambda: sources_beside(config, scratch, kept)).stages
        self.maker: BatchMaker = batch_maker(config, self.tokenizer, sources)
        self.spec: CacheSpec = cache_spec(config, len(self.tokenizer))
        self.plan: CapturePlan = plan_capture(config, self.maker, shard_rows, self.sum, self.rank, self.world)
        if not len(self.plan.rows):
            raise CaptureError(
                "data.stages: every record is longer than its stage's max_length: nothing to capture; raise it, or "
                "cut the records"
            )
        self._rows: RowSource | None = None
        identity = cache_identity(config, self.tokenizer, sources)
        if "weights" not in identity and config.teacher.endpoint is None:  # a hub id whose weights come with the model
            self.rows()
            identity = cache_identity(config, self.tokenizer, sources)
        batches = f"{config.training.micro_batch_size} records, {shard_rows} rows a shard"
        self.identity = identity | {"seed": str(config.run.seed), "batches": batches}

    def rows(self) -> RowSource:
        """The teacher; it is loaded when it is first asked for, by all ranks together."""
        if self._rows is None:
            self._rows = self._live() if self.config.teacher.endpoint is None else self._endpoint()
        return self._rows

    def _live(self) -> RowSource:
        config = self.config
        ds_config = resolve_ds_config(config.training, config.optimizer, config.student)
        return LiveRows(config, teacher_ds_config(config.teacher, ds_config), len(self.tokenizer), self.device)

    def _endpoint(self) -> RowSource:
        return EndpointTeacher(
            self.config.teacher.endpoint,
            top_k=self.spec.top_k,
            vocab_size=self.spec.vocab_size,
            say=self.log.say,
            num_records=-(-len(self.plan.rows) // self.world),
            longest=int(self.plan.lengths.max()),
            decode=lambda token: self.tokenizer.decode([token]),
        )

    def close(self) -> None:
        if self._rows is not None:
            self._rows.close()
        self.log.close()

    def sum(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, group=self._group)
        return values

    def everyones(self, value) -> list:
        """The value of every rank, in their order."""
        values = [None] * self.world
        dist.all_gather_object(values, value, group=self._group)
        return values

    def batches(self, numbers: list[int]) -> Iterator[MicroBatch]:
        """This rank's batches, announced to the teacher beforehand, then empty ones until the last rank has none
        left.
        """
        most = max(self.everyones(len(numbers)))
        places = chain(map(self.plan.batch, numbers), repeat([], most - len(numbers)))
        waiting: deque[MicroBatch] = deque()
        for micro in in_order(self.maker, places, num_workers(self.config.data.workers)):
            self.rows().prefetch([micro])
            waiting.append(micro)
            if len(waiting) > _ANNOUNCED:
                yield waiting.popleft()
        yield from waiting


def capture(config: RunConfig, *, shard_rows: int = SHARD_ROWS, retry_missing: bool = False) -> CaptureResult:
    """Write the cache that `config.teacher.cache` describes, or what is missing of it. Every rank of the launcher calls
    it.

    Args:
        retry_missing: capture shards again in which records got no signal; one that would then lack another is kept as
            it is.

    Raises:
        CaptureError, CacheError: on every rank; what is published stays, and the same call goes on from there.
    """
    if config.teacher is None or config.teacher.cache is None:
        raise CaptureError(
            "teacher.cache: this configuration names no cache to write: add `cache: {path: runs/cache/NAME}` "
            "under teacher"
        )
    folder = Path(config.teacher.cache.path)
    make_folder(folder)
    job = Job(config, shard_rows, folder, folder / "refused.jsonl")
    signalled: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: signalled.append(number))
    try:
        result = _capture(job, signalled, retry_missing)
        _report(job, result)
        return result
    finally:
        signal.signal(signal.SIGTERM, previous)
        job.close()


def _capture(job: Job, signalled: list[int], retry_missing: bool) -> CaptureResult:
    started, plan, say = time.monotonic(), job.plan, job.log.say
    say(
        f"{len(plan.rows):,} records of {int(plan.lengths.sum()):,} tokens, {int(plan.rows.sum()):,} rows, in "
        f"{len(plan.shards)} shards"
        + (f"; {plan.num_repeated:,} repeat another's tokens" if plan.num_repeated else "")
        + (f"; {plan.num_too_long:,} are longer than max_length and left out" if plan.num_too_long else "")
        + (
            f"; {plan.num_refused:,} cannot be rendered or located and are left out, the first is {plan.refused}"
            if plan.num_refused
            else ""
        )
    )
    writer = CacheWriter(job.folder, job.spec, job.identity, say)
    looked = (
        (writer.published(), writer.finished()) if job.rank == 0 else None
    )  # hashing every byte: once, not once a rank
    published, finished = job.everyones(looked)[0]
    published = sorted(published & set(range(len(plan.shards))))
    before = _missing_before(job, writer, published)
    retried: dict[int, list[Missing]] = {}
    if retry_missing:
        published = [shard for shard in published if shard not in before]
        retried, before = before, {}
    todo = [shard for shard in range(len(plan.shards)) if shard not in set(published)]
    if published and todo:
        say(f"going on: {len(published)} of {len(plan.shards)} shards are there")
    num_bytes = sum((job.folder / shard_name(shard)).stat().st_size for shard in published)
    job.log.begin(
        int(plan.lengths.sum()), sum(int(plan.of_shard(plan.lengths, shard).sum()) for shard in published), num_bytes
    )
    missing, written, stopped = _write(job, writer, todo, signalled, retried) if todo else ([], (0, 0), False)
    everyones = [m for some in (*before.values(), *job.everyones(missing)) for m in some]
    _refuse_too_many(job, everyones)
    if not stopped and (todo or not finished):
        on_rank_0(lambda: writer.finish(len(plan.shards), sorted(everyones)))
    num_rows = sum(int(plan.of_shard(plan.rows, shard).sum()) for shard in published) + written[0]
    return CaptureResult(
        len(plan.shards),
        len(published) + written[1],
        num_rows,
        job.log.num_bytes,
        len(everyones),
        time.monotonic() - started,
        stopped,
    )


def _report(job: Job, result: CaptureResult) -> None:
    if result.stopped:
        job.log.say(
            f"stopped by a signal: {result.num_published} of {result.num_shards} shards are there; the same command "
            "goes on from here"
        )
        return
    job.log.say(
        f"captured  {result.num_rows:,} rows, {size(result.num_bytes)} "
        f"({result.num_bytes / max(result.num_rows, 1):.1f} bytes a row), "
        f"in {duration(result.seconds)}"
        + (
            f"; {result.num_missing} records got no signal, {job.folder / MANIFEST} says why"
            if result.num_missing
            else ""
        )
        + f"\ncache     {job.folder}"
    )


def _refuse_too_many(job: Job, missing: list[Missing]) -> None:
    """Counts those of earlier starts as well, which the endpoint's own limit does not know of."""
    endpoint = job.config.teacher.endpoint
    if endpoint is not None and len(missing) > int(endpoint.max_missing * len(job.plan.rows)):
        raise CaptureError(
            f"{len(missing)} of {len(job.plan.rows)} records have no signal, more than teacher.endpoint.max_missing "
            f"({endpoint.max_missing:g}) allows; the last is {missing[-1].record_id}: {missing[-1].reason}; what was "
            "captured is kept: "
            "start the same command with --retry-missing once the endpoint is mended, or raise max_missing"
        )


def _write(
    job: Job, writer: CacheWriter, todo: list[int], signalled: list[int], retried: dict[int, list[Missing]]
) -> tuple[list[Missing], tuple[int, int], bool]:
    """Captures shards; (this rank's missing records, (rows, shards) written by all ranks, whether a signal stopped it).

    `retried`: shards that are there and captured again, and what each lacks.
    """
    work = [(shard, number) for shard in todo[job.rank :: job.world] for number in job.plan.shards[shard]]
    entries: list[Entry] = []
    names: dict[bytes, str] = {}
    missing: list[Missing] = []
    of_shard = 0  # where the missing of the shard in hand begin
    rows_written = shards_written = 0
    rows = job.rows()
    for at, micro in enumerate(job.batches([number for _, number in work])):
        num_bytes = num_rows = 0
        problem, last = None, at < len(work) and (at + 1 == len(work) or work[at + 1][0] != work[at][0])
        try:
            signal_rows = rows.signal_rows(micro)
            unanswered = rows.missing(micro)
            missing += [Missing(micro.keys[i], micro.record_ids[i], reason) for i, reason in unanswered.items()]
            names |= zip(micro.keys, micro.record_ids)
            entries += [entry for i, entry in enumerate(entries_of(micro, signal_rows)) if i not in unanswered]
            if last:
                known = retried.get(work[at][0])
                lost = {m.key for m in missing[of_shard:]} - {m.key for m in known or ()}
                if known is not None and lost:
                    raise CaptureError(
                        f"{job.folder / shard_name(work[at][0])} is kept as it was: {len(lost)} records that it has "
                        "got no signal this time; "
                        "start the same command again once the endpoint answers"
                    )
                num_rows = sum(len(entry.rows.argmax) for entry in entries)
                num_bytes = writer.write_shard(work[at][0], entries, missing[of_shard:])
                entries, names, of_shard = [], {}, len(missing)
        except (
            ValueError,
            OSError,
        ) as error:  # told to all ranks below: one that raised alone would leave the others waiting
            problem = by_record_id(str(error), names)
        tokens = int(micro.attention_mask.sum()) if micro.keys else 0
        own = torch.tensor(
            [tokens, num_bytes, num_rows, bool(num_bytes), problem is not None, bool(signalled)], dtype=torch.float64
        )
        tokens, num_bytes, num_rows, num_shards, failed, stop = map(int, job.sum(own))
        if failed:
            raise CaptureError(next(filter(None, job.everyones(problem))))
        job.log.advance(tokens, num_bytes)
        rows_written, shards_written = rows_written + num_rows, shards_written + num_shards
        if stop:
            return missing, (rows_written, shards_written), shards_written < len(todo)
    return missing, (rows_written, shards_written), False


def entries_of(micro: MicroBatch, rows: TeacherTopK | TeacherSamples) -> list[Entry]:
    """The rows of a micro-batch by record, on the CPU."""
    rows = rows._replace(**{name: value.cpu() for name, value in rows._asdict().items() if isinstance(value, Tensor)})
    ends = torch.bincount(micro.record, minlength=len(micro.keys)).cumsum(0).tolist()
    return [
        Entry(key, digest, slice_rows(rows, start, end))
        for key, digest, start, end in zip(micro.keys, micro.row_digests, [0, *ends], ends)
    ]


def _missing_before(job: Job, writer: CacheWriter, published: list[int]) -> dict[int, list[Missing]]:
    """Records that got no signal when their published shard was written, by shard.

    Raises:
        CaptureError: a shard is not of the records that it should be of: they are rendered otherwise now, and what it
            holds is of no use to them.
    """
    found: dict[int, list[Missing]] = {}
    for shard in published:
        there = set(map(bytes, open_shard(job.folder / shard_name(shard), job.spec).tensors["keys"]))
        wanted = {row.tobytes() for row in job.plan.of_shard(job.plan.keys, shard)}
        without = wanted - there
        strange = len(there - wanted) + len(without - writer.missing.keys())
        if strange:
            raise CaptureError(
                f"{job.folder / shard_name(shard)} does not hold the records that the data gives now ({strange} "
                "differ), though data, "
                "tokenizer and template are the same: something else changes how they are rendered; undo that, or "
                "capture into another "
                "teacher.cache.path"
            )
        if without:
            found[shard] = [writer.missing[key] for key in without]
    return found
