"""Job of a capture or a verification: its plan, its cache, its teacher, and the other ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch

from kd.batching.micro_batch import MicroBatch
from kd.batching.workers import in_order, num_workers
from kd.config.deepspeed.fill import resolve_ds_config, teacher_ds_config
from kd.config.schema import Endpoint, RunConfig
from kd.distributed.collectives import on_rank_0
from kd.distributed.ranks import Ranks
from kd.distributed.start import start_distributed
from kd.models.tokenizer import check_run_tokenizer, load_tokenizer
from kd.sources.stages import sources_beside
from kd.teacher.cache.identity import cache_identity, cache_spec
from kd.teacher.cache.spec import CacheSpec
from kd.teacher.capture.errors import CaptureError
from kd.teacher.capture.log import CaptureLog
from kd.teacher.capture.plan import BatchMaker, CapturePlan, make_batch_maker, plan_capture
from kd.teacher.capture.rows import LazyRows, RowSource
from kd.teacher.endpoint.records import EndpointTask
from kd.teacher.endpoint.teacher import EndpointTeacher
from kd.teacher.live import LiveRows, SparseOptions
from kd.teacher.model import TeacherModel

SHARD_ROWS = 65_536  # about 2.4 MB of draws; a kill costs each rank this much at most
_ANNOUNCED = 16  # micro-batches a row source knows of beforehand


@dataclass(frozen=True)
class Job:
    """One capture or verification, on one of its ranks.

    Attributes:
        folder: of the cache.
        plan: records in batches and shards; the same on every rank.
        maker: makes the plan's micro-batches.
        num_workers: processes of this rank that make them ahead.
        spec, identity: of the cache.
        teacher: source of its rows, opened when first asked for.
        endpoint: teacher.endpoint; None where a model of this job is the teacher.
    """

    folder: Path
    ranks: Ranks
    log: CaptureLog
    plan: CapturePlan
    maker: BatchMaker
    num_workers: int
    spec: CacheSpec
    identity: dict[str, str]
    teacher: LazyRows
    endpoint: Endpoint | None

    def batches(self, numbers: list[int]) -> Iterator[MicroBatch]:
        """Yield this rank's batches, announced to the teacher beforehand, then empty ones until every rank is done.

        All ranks iterate together.
        """
        most = max(self.ranks.gather(len(numbers)))
        places = chain(map(self.plan.batch, numbers), repeat([], most - len(numbers)))
        waiting: deque[MicroBatch] = deque()
        for micro in in_order(self.maker, places, self.num_workers):
            self.teacher.get().prefetch([micro])
            waiting.append(micro)
            if len(waiting) > _ANNOUNCED:
                yield waiting.popleft()
        yield from waiting

    def close(self) -> None:
        """End the teacher and the progress bar; the process group stays."""
        self.teacher.close()
        self.log.close()


def open_job(config: RunConfig, shard_rows: int, scratch: Path, kept: Path | None = None) -> Job:
    """Join the process group, read and check all data, and plan. Every rank of the launcher calls it.

    Args:
        shard_rows: rows of a shard, at least.
        scratch: folder that all ranks see, for files that are written once.
        kept: file for refused lines; None keeps them nowhere.

    Raises:
        CaptureError: no teacher.cache, or no record fits.
        DataError, TokenizerError, StudentError: each says where and what to do.
    """
    if config.teacher is None or config.teacher.cache is None:
        raise CaptureError(
            "teacher.cache: this configuration names no cache: add `cache: {path: runs/cache/NAME}` under teacher"
        )
    teacher, cache, data = config.teacher, config.teacher.cache, config.data
    rank, _ = start_distributed()
    ranks, log = Ranks.over_cpu(), CaptureLog(rank == 0)
    tokenizer = load_tokenizer(config.tokenizer, teacher, config.student)
    # A training run of the same configuration may be at work, and has its own files.
    sources = on_rank_0(lambda: sources_beside(config.data, scratch, kept)).stages
    on_rank_0(lambda: check_run_tokenizer(tokenizer, sources, config.tokenizer, teacher, config.student))
    maker = make_batch_maker(data, tokenizer, sources)
    spec = cache_spec(cache, len(tokenizer), has_entropy=teacher.endpoint is None)
    batch_size = config.training.micro_batch_size
    plan = plan_capture(data, maker, ranks, batch_size=batch_size, shard_rows=shard_rows)
    if not len(plan.rows):
        raise CaptureError(
            "data.stages: every record is longer than its stage's max_length: nothing to capture; raise it, or cut "
            "the records"
        )
    if teacher.endpoint is None:
        rows = LazyRows(lambda: _open_live(config, spec))
    else:
        endpoint = teacher.endpoint
        rows = LazyRows(lambda: _open_endpoint(endpoint, spec, plan, ranks.world_size, tokenizer, log.say))
    identity = cache_identity(teacher, data, tokenizer, sources)
    if "weights" not in identity and teacher.endpoint is None:  # a hub id whose weights come with the model
        rows.get()
        identity = cache_identity(teacher, data, tokenizer, sources)
    identity |= {"seed": str(config.run.seed), "batches": f"{batch_size} records, {shard_rows} rows a shard"}
    workers = num_workers(data.workers)
    return Job(Path(cache.path), ranks, log, plan, maker, workers, spec, identity, rows, teacher.endpoint)


def _open_live(config: RunConfig, spec: CacheSpec) -> RowSource:
    assert config.teacher is not None
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    ds_config = resolve_ds_config(config.training, config.optimizer, config.student)
    model = TeacherModel(
        config.teacher,
        teacher_ds_config(config.teacher, ds_config),
        device,
        packed=False,
        attention_implementation=config.student.attention_implementation,
    )
    options = SparseOptions(spec.kind, spec.top_k, spec.num_draws, spec.vocab_size, config.run.seed)
    return LiveRows(model, options, spec.temperatures, device)


def _open_endpoint(
    endpoint: Endpoint, spec: CacheSpec, plan: CapturePlan, world_size: int, tokenizer: Any, say: Callable[[str], None]
) -> RowSource:
    task = EndpointTask(
        endpoint,
        top_k=spec.kept,
        vocab_size=spec.vocab_size,
        num_records=-(-len(plan.rows) // world_size),
        longest=int(plan.lengths.max()),
        decode=lambda token: tokenizer.decode([token]),
        say=say,
    )
    return EndpointTeacher(task)
