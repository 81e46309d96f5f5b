"""Reward for giving the arguments that the record gives, whatever their values."""

from __future__ import annotations

from kd.records.record import Record
from kd.rewards.argument_values import reward_overlap
from kd.rewards.reward import Reward
from kd.toolcalls.parsed import ParsedCalls


def argument_names(record: Record, turn: int, text: str, calls: ParsedCalls) -> Reward:
    """Reward the overlap of the arguments' names with the record's, calls paired by tool: 2 same / (given + wanted).

    Where neither gives an argument, the overlap of the called tools counts. Parts:

        precision  part of the given arguments that are wanted
        recall     part of the wanted arguments that are given
    """
    return reward_overlap(record, turn, calls, lambda given, wanted: True)
