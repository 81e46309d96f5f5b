"""Progress that another number of ranks wrote: a line of metrics goes on as if they were still there."""

from __future__ import annotations

import pytest
import torch

from kd.checkpoints.plain_state import RANKS
from kd.training.engine import SUMS
from kd.training.progress import Progress


@pytest.mark.parametrize("num_now", [1, 3])
def test_sums_are_those_of_all_ranks_and_counts_are_not_added(num_now):
    states = []
    for rank in range(2):
        progress = Progress(step=8, tokens=100)
        progress.window.sums[: len(SUMS)] = rank + 1  # of each rank's own rows
        progress.window.sums[len(SUMS) :] = 40  # rows of the step on all ranks
        torch.manual_seed(rank)
        states.append(progress.state_dict())
    drawn, now = [], []
    for rank in range(num_now):
        now.append(Progress.resume(states[rank % 2] | {RANKS: states}, rank))
        drawn.append(float(torch.rand(())))
    assert all(progress.step == 8 and progress.tokens == 100 for progress in now)
    assert torch.equal(sum(one.window.sums[: len(SUMS)] for one in now), torch.full((len(SUMS),), 3.0).double())
    assert all(bool((one.window.sums[len(SUMS) :] == 40).all()) for one in now)
    assert len(set(drawn)) == num_now
