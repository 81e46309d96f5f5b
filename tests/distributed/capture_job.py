"""What one rank of a capture test runs: captures, verifications and what is done to a cache between them, one after
another.

    python capture_job.py JOB.json

JOB.json: {"config": path, "out": folder, "acts": [{"name", "do", "overrides": [...], ...}]}. Rank 0 writes {name:
result or {"error"}} to <out>/results.json, with what was said. Acts: capture (shard_rows, stop_after: batches until a
SIGTERM, full: bytes a file may have), verify (records), flip (file, a bit of it), alter (rewrite a shard with one row's
counts changed), copy.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import kd.teacher.capture.job as jobs
from kd.config.load import load_config
from kd.distributed.start import start_distributed
from kd.teacher.cache.writer import CacheWriter
from kd.teacher.capture.capture import capture as capture_cache
from kd.teacher.capture.log import CaptureLog
from kd.teacher.capture.rows import split_by_record
from kd.teacher.capture.verify import verify_cache
from kd.teacher.live import LiveRows

SHARD_ROWS = 100


class Lines(CaptureLog):
    """Keeps what is said, and sends its process a SIGTERM after some batches."""

    said: list[str] = []
    stop_after: int | None = None

    def advance(self, tokens, num_bytes):
        super().advance(tokens, num_bytes)
        if self.stop_after is not None and dist.get_rank() == dist.get_world_size() - 1:
            type(self).stop_after -= 1
            if self.stop_after == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    def say(self, text):
        self.said.append(text)


class Counted(LiveRows):
    """Counts how often a teacher was loaded, and the batches it was asked for."""

    loaded = asked = empty = 0

    def __init__(self, *args):
        super().__init__(*args)
        type(self).loaded += 1

    def target_rows(self, micro):
        type(self).asked += 1
        type(self).empty += not micro.keys
        return super().target_rows(micro)


def capture(act, config):
    Lines.stop_after = act.get("stop_after")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if "full" in act:  # what a full disk does, for files of this process: an OSError in write
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (act["full"], hard))
    try:
        return capture_cache(config, shard_rows=act.get("shard_rows", SHARD_ROWS))._asdict()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def verify(act, config):
    return verify_cache(config, act["records"])


def alter(act, config):
    """A shard whose hash is right and whose second record has a draw moved in its third row."""
    job = jobs.open_job(config, SHARD_ROWS, Path(config.run.output_dir))
    if job.ranks.rank == 0:
        shard = act["shard"]
        entries = [
            entry for number in job.plan.shards[shard] for entry in _entries(job, job.maker(job.plan.batch(number)))
        ]
        rows = entries[1].rows
        rows.entropy[2] += 0.01
        writer = CacheWriter(job.folder, job.spec, job.identity)
        writer.write_shard(shard, entries)
        writer.finish(len(job.plan.shards))
        return job.maker.sources[0][int(job.plan.of_shard(job.plan.places, shard)[1, 1])].id
    return None


def _entries(job, micro):
    return split_by_record(micro, job.teacher.get().target_rows(micro))


def flip(act, config):
    path = Path(config.teacher.cache.path) / act["file"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def copy(act, config):
    shutil.copytree(config.teacher.cache.path, act["to"])


COLLECTIVE = {"capture": capture, "verify": verify, "alter": alter}


def run(act, config):
    if act["do"] in COLLECTIVE:
        return COLLECTIVE[act["do"]](act, config)
    if dist.get_rank() == 0:
        {"flip": flip, "copy": copy}[act["do"]](act, config)
    return None


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    rank, _ = start_distributed()
    jobs.CaptureLog, jobs.LiveRows = Lines, Counted
    results = {}
    for act in job["acts"]:
        Lines.said, Counted.loaded, Counted.asked, Counted.empty = [], 0, 0, 0
        dist.barrier()
        try:
            result = {"result": run(act, load_config(job["config"], act.get("overrides", [])))}
        except (ValueError, RuntimeError) as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        counts = [torch.tensor([Counted.loaded, Counted.asked, Counted.empty]) for _ in range(dist.get_world_size())]
        dist.all_gather(counts, counts[rank].clone())
        results[act["name"]] = result | {"said": Lines.said, "counts": [c.tolist() for c in counts]}
    if rank == 0:
        (Path(job["out"]) / "results.json").write_text(json.dumps(results, indent=1))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
