"""benchmarks/teacher_targets.py: the caches that it makes to compare with, and the arithmetic of its tables."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import target_metrics
import teacher_targets

from helpers import cache_cases
from kd.teacher.cache.reader import CacheReader
from kd.teacher.cache.spec import CacheSpec


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_remove_tails(tmp_path, temperature):
    """Every row's K probabilities over their own sum, at the temperature that the cache is for; the tokens stay."""
    records = cache_cases.three_shards(
        tmp_path / "whole", CacheSpec("topk", 5000, (temperature,), top_k=12, precision="fp32")
    )
    target_metrics.remove_tails(tmp_path / "whole", tmp_path / "stripped")
    whole, stripped = (
        cache_cases.read(CacheReader(tmp_path / name), records, temperature) for name in ("whole", "stripped")
    )
    kept = whole.probs.sum(-1, keepdim=True)
    assert (kept < 0.99).any() and torch.equal(whole.ids, stripped.ids)
    torch.testing.assert_close(stripped.probs, whole.probs / kept, rtol=1e-5, atol=1e-9)
    assert stripped.log_tail.isneginf().all() and target_metrics.tokens_a_row(tmp_path / "stripped") == 12


def test_tokens_a_row(tmp_path):
    records = cache_cases.three_shards(tmp_path, CacheSpec("sampled", 500, (2.0,), num_draws=50))
    found = cache_cases.read(CacheReader(tmp_path), records, 2.0)
    assert target_metrics.tokens_a_row(tmp_path) == pytest.approx((found.ids >= 0).sum(-1).double().mean().item())


def test_metric_table():
    """A cache is compared with the live teacher at its own temperature, seed by seed."""

    def row(variant, seed, value, tokens=None):
        metrics = dict.fromkeys(teacher_targets.SHOWN, value)
        return dict(variant=variant, seed=seed, metrics={"held": metrics}, training_seconds=60.0, tokens_a_row=tokens)

    rows = [row("live dense", 1, 0.80), row("live dense", 2, 0.90), row("live dense, T 2", 1, 0.10)]
    rows += [
        row("cache, sampled 50", 1, 0.83, 1.25),
        row("cache, sampled 50", 2, 0.91, 1.25),
        row("cache, sampled 100, T 2", 1, 0.12, 11.7),
    ]
    lines = teacher_targets.metric_table(rows).splitlines()[2:]
    assert lines[0].startswith("| live dense | all | held | 85.0 (80.0 to 90.0) |") and lines[0].endswith("| 60 | 2 |")
    # Differences of 3 and 1: mean 2, standard deviation sqrt 2, over sqrt 2 seeds.
    assert lines[2].startswith("| cache, sampled 50 | 1.2 | held | 87.0 (83.0 to 91.0; +2.0 ± 1.0) |")
    assert lines[3].startswith("| cache, sampled 100, T 2 | 11.7 | held | 12.0 (12.0 to 12.0; +2.0) |")
    assert all(target_metrics.live_of(name) in ("live dense", "live dense, T 2") for name in target_metrics.VARIANTS)
