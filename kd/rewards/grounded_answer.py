"""Reward for carrying the tools' values into the answer."""

from __future__ import annotations

from kd.records.record import Record
from kd.rewards.reward import Reward, list_wanted, share_of
from kd.toolcalls.grounding import find_carried, occurs
from kd.toolcalls.parsed import ParsedCalls


def grounded_answer(record: Record, turn: int, text: str, calls: ParsedCalls) -> Reward:
    """Reward the part of the values that the record's answer carries out of the results and the given one carries too.

    Only what stands outside of calls counts. A turn whose answer carries nothing, or that calls, gives 1. Parts:

        faithful  part of the given answer's carried values that the record's answer has
    """
    results = [one["content"] or "" for one in record.messages[:turn] if one["role"] == "tool"]
    said = record.messages[turn].get("content") or ""
    wanted = [] if list_wanted(record, turn) else list(dict.fromkeys(one.text for one in find_carried(said, results)))
    if not wanted:
        return Reward(1.0, {"faithful": 1.0})
    given = list(dict.fromkeys(one.text for one in find_carried(calls.text_outside, results)))
    faithful = share_of(sum(occurs(value, said) for value in given), len(given))
    return Reward(sum(occurs(value, calls.text_outside) for value in wanted) / len(wanted), {"faithful": faithful})
