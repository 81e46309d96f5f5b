"""A loss far above its running mean: every rank skips the step by the finite gate, and the worst records are named.

Plain SGD at a rate of 1024 throws the student off in its first step, so that the second has a loss of many times the
first one's.
"""

from __future__ import annotations

import torch


def test_the_step_is_skipped_on_both_ranks_the_weights_stay_and_the_records_are_named(runs):
    ranks = [runs(2, "spike", rank) for rank in (0, 1)]
    assert not any("error" in run for run in ranks), ranks
    losses = [row.get("loss") for row in ranks[0]["lines"]]
    assert losses[0] is not None and losses[1] is None
    for run in ranks:
        assert run["refusals"][:2] == [False, True] and run["reports"][1][0]
        before, after = run["weights"][1:3]
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert len(run["reports"][1][1]) >= 1  # the records that this rank had
    (told, *_) = [text for text in ranks[0]["said"] if "loss_spike_factor" in text]
    assert (
        "step 2: the loss is over 1.5 times its running mean" in told
        and "skipped on every rank; largest: rows of" in told
    )
    named = {name for run in ranks for name in run["reports"][1][1]}
    assert all(name in told for name in named)
