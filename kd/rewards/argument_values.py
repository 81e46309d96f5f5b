"""Reward for giving the arguments that the record gives, with its values."""

from __future__ import annotations

from collections.abc import Callable

from kd.records.record import Record
from kd.rewards.reward import Reward, list_wanted, share_of
from kd.toolcalls.compare import count_arguments, count_same_names
from kd.toolcalls.json_values import same_json
from kd.toolcalls.parsed import ParsedCalls


def argument_values(record: Record, turn: int, text: str, calls: ParsedCalls) -> Reward:
    """Reward the overlap of the arguments with the record's, names and values: 2 right / (given + wanted).

    Calls are paired by tool, those most alike first; values are compared as JSON. Where neither gives an argument, the
    overlap of the called tools counts. Parts:

        precision  part of the given arguments that are right
        recall     part of the wanted arguments that are given right
    """
    return reward_overlap(record, turn, calls, same_json)


def reward_overlap(record: Record, turn: int, calls: ParsedCalls, same: Callable[[object, object], bool]) -> Reward:
    """Reward the overlap of the arguments with the record's, as `argument_values` does, where `same` compares two."""
    wanted = list_wanted(record, turn)
    found = count_arguments(calls.calls, wanted, same)
    parts = {"precision": share_of(found.right, found.given), "recall": share_of(found.right, found.wanted)}
    if not found.given + found.wanted:
        return Reward(share_of(2 * count_same_names(calls.calls, wanted), len(calls.spans) + len(wanted)), parts)
    return Reward(2 * found.right / (found.given + found.wanted), parts)
