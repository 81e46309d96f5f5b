"""Reward for calling the tools that the record calls."""

from __future__ import annotations

from kd.records.record import Record
from kd.rewards.reward import Reward, list_wanted, share_of
from kd.toolcalls.compare import count_same_names
from kd.toolcalls.parsed import ParsedCalls


def tool_choice(record: Record, turn: int, text: str, calls: ParsedCalls) -> Reward:
    """Reward the overlap of the called tools with the record's: 2 same / (call blocks + the record's calls).

    A block that is not valid as written names no tool. Where the record calls nothing, an answer without a block gets
    1, and any other 0.
    """
    wanted = list_wanted(record, turn)
    return Reward(share_of(2 * count_same_names(calls.calls, wanted), len(calls.spans) + len(wanted)))
