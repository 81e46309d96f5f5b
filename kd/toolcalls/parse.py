"""Calls that a generated text makes in Hermes' and Qwen's form.

A call is written <tool_call>{"name": ..., "arguments": {...}}</tool_call>; a text may hold several. The scanner reads
the JSON itself, so braces, quotes and even tags inside strings stay characters of a string. Calls that are valid as
written and calls that json-repair mends are kept apart: a mended call never counts as a valid one.
"""

from __future__ import annotations

from kd.toolcalls.parsed import ParsedCalls
from kd.toolcalls.reader import CALL_CLOSE, CALL_OPEN, HERMES

__all__ = ["CALL_CLOSE", "CALL_OPEN", "ParsedCalls", "parse_tool_calls"]


def parse_tool_calls(text: str) -> ParsedCalls:
    """Read every <tool_call> block of a generated text.

    A block is valid when it holds exactly one JSON object with a string "name" and an object "arguments", without
    duplicate keys or NaN, and is closed by </tool_call>. A block that is not ends at the next tag or the end of the
    text.
    """
    return HERMES.parse(text)
