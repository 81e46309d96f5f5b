"""Reward for not calling where no call is due."""

from __future__ import annotations

from kd.records.record import Record
from kd.rewards.reward import Reward, list_wanted
from kd.toolcalls.parsed import ParsedCalls


def refrains(record: Record, turn: int, text: str, calls: ParsedCalls) -> Reward:
    """Reward an answer without a call block where the record calls nothing; where it calls, every answer gets 1."""
    return Reward(float(bool(list_wanted(record, turn)) or not calls.spans))
