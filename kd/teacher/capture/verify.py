"""Verification of a cache: every byte by its hash, and a random sample of records computed again by the teacher.

A record is computed in the batch it was captured in, so on the same machine and software every number comes out equal.
On others the last bits of the logits differ: a draw at the edge of a token may go to its neighbour, and a stored number
to the next one. Such differences are shown with their size, for a person to judge. A server batches requests as they
come, so of an endpoint's probabilities only those that differ by more than its rounding are told of.
"""

from __future__ import annotations

import random
import re
import tempfile
from pathlib import Path

import torch

from kd.config.derived import run_folder
from kd.config.schema import RunConfig
from kd.teacher.cache.manifest import MANIFEST, read
from kd.teacher.cache.reader import CacheReader
from kd.teacher.cache.spec import Entry
from kd.teacher.cache.writer import CacheWriter
from kd.teacher.cached import name_records, require_captured
from kd.teacher.capture.errors import CaptureError
from kd.teacher.capture.job import SHARD_ROWS, Job, open_job
from kd.teacher.capture.rows import split_by_record
from kernels import SparseTeacher

_SHOWN = 20
# bf16 has steps of 1/8 between logits of 16 and 32, so two of them may move by 1/8 against each other, twice over in
# two runs; p (1 - p) of that is at most 1/16.
_SERVERS_ROUNDING = 1 / 16


def verify_cache(config: RunConfig, num_records: int) -> list[str]:
    """Verify a finished cache; print and return its problems, by file or record. All ranks call it together.

    Args:
        num_records: records to compute again.

    Raises:
        CacheError, CaptureError: there is no finished cache, or it is of something else.
    """
    if config.teacher is None or config.teacher.cache is None:
        raise CaptureError("teacher.cache: this configuration names no cache to verify")
    require_captured(config.teacher.cache)
    job = open_job(config, _read_shard_rows(Path(config.teacher.cache.path)), run_folder(config.run))
    try:
        reader = CacheReader(job.folder, job.identity, job.spec)
        problems = job.ranks.gather(reader.verify() if job.ranks.rank == 0 else [])[0]
        shards = reader.manifest.shards
        job.log.say(
            f"{len(shards)} shards, {sum(s.bytes for s in shards):,} bytes: "
            + (f"{len(problems)} damaged" if problems else "every hash is right")
        )
        remedy = "the same command without --verify writes damaged shards anew"
        if not problems:  # from damaged shards no record is read
            problems = _compute_again(job, reader, num_records)
            remedy = (
                "where the machine or its software is another one, small differences are rounding; else capture it anew"
            )
        for problem in problems[:_SHOWN]:
            job.log.say(f"  {problem}")
        if len(problems) > _SHOWN:
            job.log.say(f"  and {len(problems) - _SHOWN} more")
        if problems:
            job.log.say(f"NOT VERIFIED: {remedy}")
        return problems
    finally:
        job.close()


def _read_shard_rows(folder: Path) -> int:
    """Read the rows a shard that the cache was captured with; they are part of its identity."""
    batches = read(folder / MANIFEST).identity.get("batches", "")
    said = re.fullmatch(r"\d+ records, (\d+) rows a shard", batches)
    return int(said[1]) if said else SHARD_ROWS


def _compute_again(job: Job, reader: CacheReader, num_records: int) -> list[str]:
    """Let the teacher compute random records again; return the differences of all ranks."""
    ranks, total, size = job.ranks, len(job.plan.rows), job.plan.batch_size
    drawn = random.SystemRandom().sample(range(total), min(num_records, total)) if ranks.rank == 0 else []
    chosen = set(ranks.gather(drawn)[0])
    numbers = sorted({record // size for record in chosen})[ranks.rank :: ranks.world_size]
    found: list[str] = []
    compared = 0
    for at, micro in enumerate(job.batches(numbers)):
        teacher = job.teacher.get()
        rows, unanswered = teacher.target_rows(micro), teacher.missing(micro)
        for i, entry in enumerate(split_by_record(micro, rows)):
            if numbers[at] * size + i not in chosen or entry.key in reader.missing or i in unanswered:
                continue
            compared += 1
            difference = _find_difference(job, reader, entry)
            if difference:
                record_id = micro.record_ids[i]
                found.append(f"record {record_id}: {name_records(difference, {entry.key: record_id})}")
    problems = [problem for of_rank in ranks.gather(found) for problem in of_rank]
    compared = int(ranks.sum(torch.tensor(compared)))
    job.log.say(
        f"{compared} records computed again by the teacher: "
        + (f"{len(problems)} differ" if problems else "all are equal")
    )
    return problems


def _find_difference(job: Job, reader: CacheReader, entry: Entry) -> str | None:
    """Compare the cache's rows of a record with these, which go the same way through a cache of their own."""
    with tempfile.TemporaryDirectory() as folder:
        CacheWriter(folder, job.spec, job.identity).write_shard(0, [entry])
        writer = CacheWriter(folder, job.spec, job.identity)
        writer.finish(1)
        again = CacheReader(folder)
        wanted = [entry.key], [entry.row_digest], [len(entry.rows.argmax)]
        served = job.endpoint is not None
        for temperature in job.spec.temperatures:
            computed, stored = again.read(*wanted, temperature), reader.read(*wanted, temperature)
            difference = _compare_rows(computed, stored, served)
            if difference:
                return f"at temperature {temperature:g} {difference}"
    return None


def _compare_rows(teacher: SparseTeacher, cached: SparseTeacher, served: bool) -> str | None:
    """Say how many rows differ, and by how much at most; None where all are equal."""
    gaps = {"probability": probability_gaps(teacher, cached)}
    for name in () if served else ("entropy", "entropy_t", "log_tail"):
        one, two = (torch.nan_to_num(getattr(of, name)) for of in (teacher, cached))
        gaps[name] = (one - two).abs()
    if not served:
        gaps["argmax"] = (teacher.argmax != cached.argmax).float()
    differing = torch.stack(list(gaps.values())).amax(0) > (_SERVERS_ROUNDING if served else 0)
    if not differing.any():
        return None
    largest = ", ".join(f"{name} by {float(gap.max()):.3g}" for name, gap in gaps.items() if gap.max() > 0)
    return f"{int(differing.sum())} of {len(differing)} rows differ from the teacher's (at most: {largest})"


def probability_gaps(one: SparseTeacher, two: SparseTeacher) -> torch.Tensor:
    """Return the largest difference [N] of a token's probability in each row; a token that only one has is 0 in the
    other.

    Example: ids [7, 9] with [.6, .4] against ids [9, 8] with [.5, .5]: 7 differs by .6, 8 by .5, 9 by .1; so .6.
    """
    ids, order = torch.cat([one.ids, two.ids], 1).sort(1)
    signed = torch.cat([one.probs, -two.probs], 1).gather(1, order)
    token = torch.zeros_like(order)
    token[:, 1:] = (ids[:, 1:] != ids[:, :-1]).cumsum(1)
    return torch.zeros_like(signed).scatter_add_(1, token, signed).abs().amax(1)
