"""Held-out metrics of the demo's student by the kind of its teacher's targets.

    live dense                     the demo as it is, on a corpus of 15,000 records (its steps take 14,400)
    cache, sampled 50              the same from a cache of 50 draws a row: 1.2 distinct tokens, as this teacher is sure
                                   of nearly all
    cache, sampled 255             of as many draws as a cache takes
    cache, topk K renormalised     from a topk cache whose tails were taken away, so that K tokens' probabilities sum to
                                   1, as other trainers store them. No configuration makes such a cache;
                                   `remove_tails` does, to compare
    ..., T 2                       at a temperature of 2, where 100 draws are about 12 distinct tokens

One cache serves every seed, as teacher and corpus are the same. Runs on launch/capture.py and launch/train.py alone.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from demo_quality import launcher, run  # noqa: E402

from kd.teacher.cache.reader import CacheReader  # noqa: E402
from kd.teacher.cache.spec import Entry  # noqa: E402
from kd.teacher.cache.writer import CacheWriter  # noqa: E402
from kernels import TeacherTopK  # noqa: E402

RECORDS_A_STEP = 8  # the demo's


class Variant(NamedTuple):
    cache: str = ""  # keys of teacher.cache beside path and temperatures; "": the teacher is live
    strip: bool = False  # its tails are taken away
    temperature: float = 1.0


VARIANTS = {
    "live dense": Variant(),
    "cache, sampled 50": Variant("kind: sampled, num_draws: 50"),
    "cache, sampled 255": Variant("kind: sampled, num_draws: 255"),
    "cache, topk 50 renormalised": Variant("kind: topk, top_k: 50", strip=True),
    "cache, topk 12 renormalised": Variant("kind: topk, top_k: 12", strip=True),
    "live dense, T 2": Variant(temperature=2.0),
    "cache, sampled 100, T 2": Variant("kind: sampled, num_draws: 100", temperature=2.0),
    "cache, topk 50 renormalised, T 2": Variant("kind: topk, top_k: 50", strip=True, temperature=2.0),
    "cache, topk 12 renormalised, T 2": Variant("kind: topk, top_k: 12", strip=True, temperature=2.0),
}


def live_of(name: str) -> str:
    """Name the live dense teacher at a variant's temperature, which it is compared with."""
    return next(
        live
        for live, variant in VARIANTS.items()
        if not variant.cache and variant.temperature == VARIANTS[name].temperature
    )


def common(temperature: float, ranks: int) -> list[str]:
    """List the overrides of every variant: the corpus, enough held-out records to tell a point, and the demo's step."""
    return [
        "data.demo.num_records=15000",
        "evaluation.num_records=1200",
        f"training.micro_batch_size={RECORDS_A_STEP // ranks}",
        f"loss.temperature.start={temperature}",
    ]


def folder_name(name: str) -> str:
    return name.replace(", ", "_").replace(" ", "_")


def override_of(name: str, folder: Path) -> str:
    variant = VARIANTS[name]
    return f"teacher.cache={{path: {folder}, {variant.cache}, temperatures: [{variant.temperature}]}}"


def cache_of(name: str, output: Path, ranks: int) -> Path:
    """Return the folder of a variant's cache, captured now unless it is there."""
    variant = VARIANTS[name]
    folder = output / folder_name(name)
    captured = folder.with_name(folder.name + "-captured") if variant.strip else folder
    if not (captured / "manifest.json").exists():
        settings = [
            part
            for key in (override_of(name, captured), *common(variant.temperature, ranks))
            for part in ("--set", key)
        ]
        subprocess.run(
            [*launcher(ranks), "launch/capture.py", "--config", "configs/demo.yaml", *settings], cwd=ROOT, check=True
        )
    if variant.strip and not (folder / "manifest.json").exists():
        remove_tails(captured, folder)
    return folder


def tokens_a_row(folder: Path) -> float:
    """Return the mean number of tokens that the cache holds of a row."""
    manifest = CacheReader(folder).manifest
    if manifest.spec.kind == "topk":
        return manifest.spec.top_k
    entries = 0
    for shard in manifest.shards:
        with safe_open(folder / shard.name, "np") as tensors:
            entries += int(tensors.get_tensor("num_entries").sum())
    return entries / sum(shard.rows for shard in manifest.shards)


def remove_tails(source: Path, target: Path) -> None:
    """Write the topk cache `source` again at `target`, with no mass outside its K tokens."""
    reader = CacheReader(source)
    (temperature,) = reader.spec.temperatures
    writer = CacheWriter(target, reader.spec, reader.manifest.identity)
    for index, shard in enumerate(reader.manifest.shards):
        held = load_file(source / shard.name)
        entries = []
        for key, digest, rows in zip(held["keys"], held["row_digests"], held["num_rows"].tolist()):
            key, digest = key.tobytes(), digest.tobytes()
            targets = reader.read([key], [digest], [rows], temperature)
            log_probs_t = (targets.probs / targets.probs.sum(-1, keepdim=True)).log()
            tail = torch.full((1, rows), -math.inf)
            # At T = 1 they need not sum to 1: a reader makes p^(1/T) of them and divides by the sum.
            targets = TeacherTopK(
                targets.ids,
                log_probs_t * temperature,
                log_probs_t[None],
                tail,
                targets.entropy,
                targets.entropy_t[None],
                targets.argmax,
                (temperature,),
            )
            entries.append(Entry(key, digest, targets))
        writer.write_shard(index, entries)
    writer.finish(len(reader.manifest.shards), reader.manifest.missing)


def metrics_of(name: str, seed: int, output: Path, ranks: int) -> dict:
    """Train and evaluate a variant; return its line of the table."""
    overrides, held = common(VARIANTS[name].temperature, ranks), None
    if VARIANTS[name].cache:
        folder = cache_of(name, output, ranks)
        overrides, held = [*overrides, override_of(name, folder)], tokens_a_row(folder)
    return run(folder_name(name), seed, overrides, ranks, output) | {"tokens_a_row": held}
