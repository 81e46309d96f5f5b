"""Reward for a change that keeps to the record's CAWS spec."""

from __future__ import annotations

from kd.records.caws.change import read_change
from kd.records.caws.context import read_context
from kd.records.caws.verdict import Verdict, judge_change
from kd.records.record import Record
from kd.rewards.reward import Reward
from kd.toolcalls.parsed import ParsedCalls

_NAMES = {"budget_limit": "budget", "spec_completeness": "completeness", "scope_boundary": "scope"}


def caws_compliance(record: Record, turn: int, text: str, calls: ParsedCalls) -> Reward:
    """Reward an answer by the verdict on the change that it makes (kd/records/caws/change.py).

    The value is the product of the parts of the gates that block; a gate whose violations are waived counts 1, and one
    that warns does not count. Waivers are looked at on the date of the record's `caws`. Parts:

        budget        least of allowed / made, of files and of inserted lines, at most 1
        scope         part of the changed paths that the spec allows
        completeness  part of the three conditions on the spec that hold
        allowed       1 where the verdict is pass or waived, else 0

    A record without `caws` has nothing to comply with: 1.

    Raises:
        CawsError: the record's `caws` is no context.
    """
    if record.caws is None:
        return Reward(1.0)
    context = read_context(record.caws, f"record {record.id}")
    return score_verdict(judge_change(context, read_change(text, calls.calls)))


def score_verdict(verdict: Verdict) -> Reward:
    """Score a verdict as `caws_compliance` does."""
    value, parts = 1.0, {}
    for gate in verdict.gates:
        part = 1.0 if gate.waived_by else gate.share
        parts[_NAMES[gate.gate]] = part
        value *= part if gate.mode == "block" else 1.0
    return Reward(value, {**parts, "allowed": float(verdict.verdict != "blocked")})
