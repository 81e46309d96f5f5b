"""A loss that is not finite on one rank: nobody steps, the record is named, and training goes on from the same weights.

AdamW, two steps of the same four records; the teacher's signal of one record is NaN on rank 1, in whichever step that
rank gets it.
"""

from __future__ import annotations

import math

import pytest
import torch


@pytest.fixture(params=["nan_fp32", "nan_bf16", "nan_packed"])
def both(runs, request):
    ranks = [runs(2, request.param, rank) for rank in (0, 1)]
    assert not any("error" in run for run in ranks), ranks
    return ranks


def test_the_step_is_skipped_on_both_ranks_and_the_weights_stay(both):
    one, two = both
    skipped = [step for step, (was_skipped, _) in enumerate(two["reports"]) if was_skipped]
    assert skipped and [s for s, _ in one["reports"]] == [s for s, _ in two["reports"]]
    for run in both:
        for step in skipped:
            before, after = run["weights"][step : step + 2]
            assert all(torch.equal(before[name], after[name]) for name in before)
            assert all(torch.isfinite(after[name]).all() for name in after)


def test_only_the_rank_with_the_record_suspects_it_and_the_run_names_it(both, records):
    one, two = both
    for (skipped, here), (_, there) in zip(one["reports"], two["reports"]):
        assert here == () and there == ((records[1].id,) if skipped else ())
    told = [text for text in one["said"] if "not finite" in text]
    assert told and all(f"rows of {records[1].id}" in text and "skipped on every rank" in text for text in told)


def test_a_skipped_step_is_counted_and_left_out_of_the_logged_loss(both):
    rows = both[0]["lines"]
    assert rows[-1]["skipped_steps"] == sum(skipped for skipped, _ in both[0]["reports"])
    for row, (skipped, _) in zip(rows, both[0]["reports"]):
        assert ("loss" in row) == (not skipped)
        assert all(
            math.isfinite(row[name]) for name in ("loss", "kd", "truth", "grad_norm") if name in row and not skipped
        )
