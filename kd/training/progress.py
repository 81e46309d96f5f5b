"""Progress: all that a run is besides weights and optimizer, which a checkpoint holds so that a resumed run has the
same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kd.checkpoints.plain_state import RANKS
from kd.rendering.spans import BIT_NAMES
from kd.training.engine import SUMS
from kd.training.tally import NO_TARGETS, REFUSED, TOO_LONG, TRUNCATED, Tally
from kd.training.validation import Best

LOSS_MEAN_DECAY = 0.98  # of the running mean that stage.until.loss_below looks at


@dataclass
class Window:
    """Sums since the last line of metrics."""

    sums: Tensor = field(default_factory=lambda: torch.zeros(len(SUMS) + len(BIT_NAMES), dtype=torch.float64))
    steps: int = 0
    tokens: int = 0
    samples: int = 0
    began: float = 0.0  # seconds of training
    waited: float = 0.0  # seconds for the data of a step
    waited_for_ranks: float = 0.0  # seconds at its beginning, for the slowest rank

    def restart(self, seconds: float) -> None:
        """Begin a new window at `seconds` of training."""
        self.sums.zero_()
        self.steps, self.tokens, self.samples, self.began = 0, 0, 0, seconds
        self.waited = self.waited_for_ranks = 0.0


@dataclass
class Progress:
    """Place of a run after an optimizer step; the same on every rank, `window.sums` and the random state aside."""

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    loss_mean: tuple[float, float] = (0.0, 0.0)  # of the stage: running mean of the loss and its weight
    tokens: int = 0
    seconds: float = 0.0
    processor_seconds: float = 0.0  # of this process, its threads added up
    skipped_in_a_row: int = 0
    num_skipped: int = 0  # optimizer steps whose gradient was not finite
    data: dict[str, Any] | None = None  # of the stage: StepBatches.state_dict after the last step
    tally: Tally = field(default_factory=Tally)
    window: Window = field(default_factory=Window)
    best: Best | None = None  # by training.keep_best
    answers: dict[str, Any] | None = None  # of the stage: kd.training.process.Process.state_dict at a checkpoint

    def next_stage(self) -> None:
        """Move to the first step of the stage that follows."""
        self.stage, self.stage_step, self.loss_mean = self.stage + 1, 0, (0.0, 0.0)
        self.data = self.answers = None

    def see_loss(self, loss: float) -> None:
        """Update the stage's running mean."""
        mean, weight = self.loss_mean
        kept = LOSS_MEAN_DECAY
        self.loss_mean = (kept * mean + (1 - kept) * loss, kept * weight + 1 - kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the progress and this process's random state as plain values and tensors."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        random_state = {"cpu": torch.get_rng_state(), "cuda": cuda}
        return vars(self) | {
            "tally": self.tally.state_dict(),
            "window": vars(self.window),
            "best": None if self.best is None else tuple(self.best),
            "random_state": random_state,
        }

    @classmethod
    def resume(cls, state: Mapping[str, Any], rank: int = 0) -> Progress:
        """Make the progress that `state_dict` described, and set this process's random state to what it was.

        From another number of ranks (RANKS) rank 0 takes the sums of all, and ranks that are new draw random numbers of
        their own.
        """
        state = dict(state)
        ranks = state.pop(RANKS, None)
        random_state = state.pop("random_state")
        torch.set_rng_state(random_state["cpu"])
        if random_state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(random_state["cuda"])
        if "tally" not in state:
            state = _upgrade(state)
        if ranks is not None:
            sums = torch.stack([other["window"]["sums"] for other in ranks])
            own, counts = sums[:, : len(SUMS)].sum(0), sums[0, len(SUMS) :]  # each rank has the counts of all
            state["window"] |= {"sums": torch.cat([own if rank == 0 else torch.zeros_like(own), counts])}
            if rank >= len(ranks):
                torch.manual_seed(int(torch.randint(1 << 62, ())) + rank)
        best = state.get("best")
        parts: dict[str, Any] = {
            "tally": Tally.from_state(state["tally"]),
            "window": Window(**state["window"]),
            "best": None if best is None else Best(*best),
        }
        return cls(**state | parts)


def _upgrade(state: dict[str, Any]) -> dict[str, Any]:
    """Read the state of a checkpoint of version 1, which had a counter for each reason."""
    names = ("num_too_long", "num_truncated", "num_no_signal", "refused")
    too_long, num_truncated, no_targets, refusals = (state.pop(name) for name in names)
    counts: dict[str, dict[str, int]] = {}
    for reason, by_stage in ((TOO_LONG, too_long), (NO_TARGETS, no_targets)):
        for stage, num in by_stage.items():
            counts.setdefault(stage, {})[reason] = num
    for stage, reasons in refusals.items():
        counts.setdefault(stage, {})[REFUSED] = len(reasons)
    if num_truncated:  # it was of no stage in particular
        counts.setdefault("", {})[TRUNCATED] = num_truncated
    window = {name: state.pop(f"window_{name}") for name in ("steps", "tokens")}
    window |= {"began": state.pop("window_seconds"), "sums": state["window"]}
    return state | {"tally": {"counts": counts, "refusals": refusals}, "window": window}
