"""Held-out metrics of the demo's student by the form of its teacher's signal.

    live dense                     the demo as it is, on a corpus of 15,000 records (its steps take 14,400)
    cache, sampled 50              the same from a cache of 50 draws a row: 1.2 distinct tokens, as this teacher is sure of nearly all
    cache, sampled 255             of as many draws as a cache takes
    cache, topk K renormalised     from a topk cache whose tails were taken away, so that K tokens' probabilities sum to 1: what other
                                   trainers store. No configuration makes such a cache; `without_tails` does, to compare

One cache serves every seed, as teacher and corpus are the same. Runs on launch/capture.py and launch/train.py alone.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from demo_quality import launcher, run  # noqa: E402
from kd.teacher.cache import CacheReader, CacheWriter, Entry  # noqa: E402
from kernels import TeacherTopK  # noqa: E402

LIVE = "live dense"
RECORDS_A_STEP = 8  # the demo's
CACHES = {  # name -> the cache that is captured, and whether its tails are taken away
    "cache, sampled 50": ("kind: sampled, num_draws: 50", False),
    "cache, sampled 255": ("kind: sampled, num_draws: 255", False),
    "cache, topk 50 renormalised": ("kind: topk, top_k: 50", True),
    "cache, topk 12 renormalised": ("kind: topk, top_k: 12", True),
}


def common(ranks: int) -> list[str]:
    """Overrides of every variant: the corpus, enough held-out records to tell a point, and the demo's step at any number of ranks."""
    return ["data.demo.num_records=15000", "evaluation.num_records=1200", f"training.micro_batch_size={RECORDS_A_STEP // ranks}"]


def cache_of(name: str, output: Path, ranks: int) -> list[str]:
    """Captures the cache of a variant, unless it is there, and returns the override that trains from it."""
    form, strip = CACHES[name]
    folder = output / (name.removeprefix("cache, ").replace(" ", "-"))
    captured = folder.with_name(folder.name + "-captured") if strip else folder

    def override(path: Path) -> str:
        return f"teacher.cache={{path: {path}, {form}, temperatures: [1.0]}}"

    if not (captured / "manifest.json").exists():
        settings = [part for key in (override(captured), *common(ranks)) for part in ("--set", key)]
        subprocess.run([*launcher(ranks), "launch/capture.py", "--config", "configs/demo.yaml", *settings], cwd=ROOT, check=True)
    if strip and not (folder / "manifest.json").exists():
        without_tails(captured, folder)
    return [override(folder)]


def without_tails(source: Path, target: Path) -> None:
    """The topk cache `source` again at `target`, with nothing said to be outside its K tokens."""
    reader = CacheReader(source)
    writer = CacheWriter(target, reader.spec, reader.manifest.identity)
    for index, shard in enumerate(reader.manifest.shards):
        held = load_file(source / shard.name)
        entries = []
        for key, digest, rows in zip(held["keys"], held["row_digests"], held["num_rows"].tolist()):
            key, digest = key.tobytes(), digest.tobytes()
            signal = reader.read([key], [digest], [rows], 1.0)
            log_probs = (signal.probs / signal.probs.sum(-1, keepdim=True)).log()
            tail = torch.full((1, rows), -math.inf)
            signal = TeacherTopK(signal.ids, log_probs, log_probs[None], tail, signal.entropy, signal.entropy_t[None], signal.argmax, (1.0,))
            entries.append(Entry(key, digest, signal))
        writer.write_shard(index, entries)
    writer.finish(len(reader.manifest.shards), reader.manifest.missing)


def metrics_of(name: str, seed: int, output: Path, ranks: int) -> dict:
    """One training and evaluation of a variant: its row of the table."""
    overrides = [] if name == LIVE else cache_of(name, output, ranks)
    return run(name.replace(", ", "_").replace(" ", "_"), seed, [*common(ranks), *overrides], ranks, output)
