"""Reward for calls that are written whole."""

from __future__ import annotations

from kd.records.record import Record
from kd.rewards.reward import Reward, list_wanted, share_of
from kd.toolcalls.parsed import ParsedCalls


def json_valid(record: Record, turn: int, text: str, calls: ParsedCalls) -> Reward:
    """Reward the part of an answer's call blocks that are valid as written.

    Without a block it is 1 where the record calls nothing, and 0 where it calls. Parts:

        repaired  part of the blocks that are valid as written or could be mended
    """
    num = len(calls.spans)
    if not num:
        value = float(not list_wanted(record, turn))
        return Reward(value, {"repaired": value})
    return Reward(1 - len(calls.problems) / num, {"repaired": share_of(len(calls.repaired_calls), num)})
