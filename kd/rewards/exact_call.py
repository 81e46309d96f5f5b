"""Reward for making the record's calls: 1 when they are made exactly, else 0."""

from __future__ import annotations

from kd.records.record import Record
from kd.rewards.reward import Reward, list_wanted, share_of
from kd.toolcalls.compare import count_same_calls, count_same_names, same_calls
from kd.toolcalls.parsed import ParsedCalls
from kd.toolcalls.registry import ToolRegistry


def exact_call(record: Record, turn: int, text: str, calls: ParsedCalls) -> Reward:
    """Reward an answer whose calls equal those of record.messages[turn], names and arguments as JSON values.

    The order of parallel calls is free. One block that is not valid as written makes the value 0. Where the record
    calls nothing, an answer that attempts no call gets 1. Parts:

        name       overlap of the called names with the record's, 2 same / (calls + the record's)
        arguments  the same overlap of whole calls
        schema     part of the blocks that are valid as written, name an offered tool and fit its JSON Schema

    Raises:
        ValueError: the record's tools are no valid schemas.
    """
    wanted = list_wanted(record, turn)
    num_both = len(calls.spans) + len(wanted)
    tools = ToolRegistry(record.tools)
    num_fitting = sum(not tools.validate_call(call["name"], call["arguments"]) for call in calls.calls)
    parts = {
        "name": share_of(2 * count_same_names(calls.calls, wanted), num_both),
        "arguments": share_of(2 * count_same_calls(calls.calls, wanted), num_both),
        "schema": share_of(num_fitting, len(calls.spans)),
    }
    return Reward(float(not calls.problems and same_calls(calls.calls, wanted)), parts)
