"""Reward for calls that their tools would take."""

from __future__ import annotations

from kd.records.record import Record
from kd.rewards.reward import Reward, list_wanted
from kd.toolcalls.parsed import ParsedCalls
from kd.toolcalls.registry import ToolRegistry


def schema_valid(record: Record, turn: int, text: str, calls: ParsedCalls) -> Reward:
    """Reward the part of an answer's call blocks that are valid as written, name an offered tool and fit its schema.

    Without a block it is 1 where the record calls nothing, and 0 where it calls.

    Raises:
        ValueError: the record's tools are no valid schemas.
    """
    if not calls.spans:
        return Reward(float(not list_wanted(record, turn)))
    tools = ToolRegistry(record.tools)
    num_fitting = sum(not tools.validate_call(call["name"], call["arguments"]) for call in calls.calls)
    return Reward(num_fitting / len(calls.spans))
