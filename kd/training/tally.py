"""Tallies: the sums of one optimizer step over ranks, and the records that a run did not train whole, by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kd.batching.micro_batch import MicroBatch, count_rows
from kd.distributed.ranks import Ranks

TOO_LONG, NO_TARGETS, REFUSED, TRUNCATED = "too_long", "no_targets", "refused", "truncated"
REASONS = (TOO_LONG, NO_TARGETS, REFUSED, TRUNCATED)  # each a field of MicroBatch that names such records
LEFT_OUT = (TOO_LONG, NO_TARGETS, REFUSED)  # reasons for which a record is not trained at all
_SENTENCES = {
    TOO_LONG: "were longer than their stage's max_length and were left out",
    NO_TARGETS: "had no targets from the teacher (its cache says why) and were left out",
    REFUSED: "could not be rendered or located and were left out",
    TRUNCATED: "were longer than their stage's max_length and were cut after an assistant turn",
}


class StepTally(NamedTuple):
    """Sums of one optimizer step over all ranks, known before its first forward."""

    rows: Tensor  # [4] float64, CPU: weighted rows with TRUTH, TOOL, ARGS, INTEGRATION (the terms' normalisers)
    num_tokens: int
    num_samples: int  # records, or turns of those that are trained turn by turn
    left_out: dict[str, int]  # records by reason, each named in the first epoch alone
    stopped: str | None  # "signal" or "budget" where any rank must stop
    saves: bool = False  # any rank was asked for a checkpoint


def tally_step(
    micro_batches: list[MicroBatch], ranks: Ranks, *, signalled: bool, over_budget: bool, saves: bool = False
) -> StepTally:
    """Sum this rank's part of a step with the others', in one all-reduce on the CPU."""
    tokens = sum(int(micro.attention_mask.sum()) for micro in micro_batches if micro.record_ids)
    samples = sum(len(micro.record_ids) for micro in micro_batches)
    records = [sum(len(getattr(micro, reason)) for micro in micro_batches) for reason in REASONS]
    own = torch.tensor([tokens, samples, *records, signalled, over_budget, saves], dtype=torch.float64)
    sums = ranks.sum(torch.cat([count_rows(micro_batches), own]))
    num_tokens, num_samples, *counts, num_signalled, num_over, num_saves = map(int, sums[4:])
    stopped = "signal" if num_signalled else "budget" if num_over else None
    return StepTally(sums[:4], num_tokens, num_samples, dict(zip(REASONS, counts)), stopped, num_saves > 0)


class Tally:
    """Records of a run that were not trained whole, over all ranks, by stage and reason."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self.refusals: dict[str, list[str]] = {}  # by stage: why each refused record is refused

    def add(self, stage: str, counts: Mapping[str, int], refusals: Sequence[str] = ()) -> None:
        """Add one step's records of `stage`."""
        self._counts.setdefault(stage, Counter()).update(counts)
        self.refusals.setdefault(stage, []).extend(refusals)

    def count(self, reason: str, stage: str | None = None) -> int:
        """Count the records of a reason, of one stage or of all."""
        stages = self._counts.values() if stage is None else [self._counts.get(stage, Counter())]
        return sum(counts[reason] for counts in stages)

    def describe(self) -> list[str]:
        """Write one sentence, without its full stop, for each reason that any record has."""
        counted = {reason: self.count(reason) for reason in _SENTENCES}
        return [f"{num} records {_SENTENCES[reason]}" for reason, num in counted.items() if num]

    def state_dict(self) -> dict[str, Any]:
        """Return the tally as plain values, for a checkpoint."""
        return {"counts": {stage: dict(counts) for stage, counts in self._counts.items()}, "refusals": self.refusals}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Tally:
        """Make the tally that `state_dict` described."""
        made = cls()
        made._counts = {stage: Counter(counts) for stage, counts in state["counts"].items()}
        made.refusals = {stage: list(reasons) for stage, reasons in state["refusals"].items()}
        return made
